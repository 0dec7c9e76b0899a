"""A tokenizer with the interface of the first Qwen models': slow, tokens are bytes, and no special token has a role.

It has ``eod_id`` where others have ``eos_token``, refuses tokens that it does not know, writes its vocabulary into a
file of base64 texts and ranks, and leaves its special tokens out of ``get_vocab``.
"""

from __future__ import annotations

import base64
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>")
_PIECES = re.compile(r" ?\w+| ?[^\s\w]+|\s+")
_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")


class StandInTokenizer(PreTrainedTokenizer):
    """Byte-level BPE; see the module."""

    vocab_files_names = {"vocab_file": "standin.tiktoken"}  # noqa: RUF012 - as transformers wants it

    def __init__(self, vocab_file: str, errors: str = "replace", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        lines = Path(vocab_file).read_bytes().split()
        self.errors = errors
        self.mergeable_ranks = {
            base64.b64decode(token): int(rank) for token, rank in zip(lines[::2], lines[1::2], strict=True)
        }
        self.special_tokens = {token: len(self.mergeable_ranks) + index for index, token in enumerate(SPECIAL)}
        self.decoder: dict[int, bytes | str] = {
            **{rank: token for token, rank in self.mergeable_ranks.items()},
            **{index: token for token, index in self.special_tokens.items()},
        }
        self.eod_id = self.special_tokens["<|endoftext|>"]
        self.im_start_id = self.special_tokens["<|im_start|>"]
        self.im_end_id = self.special_tokens["<|im_end|>"]

    def __len__(self) -> int:
        return len(self.decoder)

    @property
    def vocab_size(self) -> int:
        return len(self.decoder)

    def get_vocab(self) -> dict[Any, int]:
        return self.mergeable_ranks

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        if not special_tokens and new_tokens:
            raise ValueError("regular tokens cannot be added")
        for token in new_tokens:
            if (token.content if isinstance(token, AddedToken) else token) not in SPECIAL:
                raise ValueError("unknown special tokens cannot be added")
        return 0

    def tokenize(self, text: str, **kwargs: Any) -> list[Any]:
        tokens: list[bytes | str] = []
        for part in _SPECIAL.split(text):
            tokens += [part] if part in SPECIAL else [t for piece in _PIECES.findall(part) for t in self._merged(piece)]
        return tokens

    def _merged(self, piece: str) -> list[bytes]:
        parts = [bytes([byte]) for byte in piece.encode()]
        while len(parts) > 1:
            ranks = [self.mergeable_ranks.get(a + b, 1 << 30) for a, b in pairwise(parts)]
            best = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[best] == 1 << 30:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        return parts

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        if isinstance(tokens, str | bytes):
            return self.special_tokens.get(tokens, self.mergeable_ranks.get(tokens))  # pyright: ignore
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def _convert_token_to_id(self, token: Any) -> int:
        if token in self.special_tokens:
            return self.special_tokens[token]
        if token in self.mergeable_ranks:
            return self.mergeable_ranks[token]
        raise ValueError("unknown token")

    def _convert_id_to_token(self, index: int) -> Any:
        if index in self.decoder:
            return self.decoder[index]
        raise ValueError("unknown ids")

    def convert_tokens_to_string(self, tokens: Any) -> str:
        return b"".join(t.encode() if isinstance(t, str) else t for t in tokens).decode(errors=self.errors)

    def _decode(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        kept = [self.decoder[i] for i in ids if not (skip_special_tokens and i >= self.eod_id)]
        return self.convert_tokens_to_string(kept)

    def save_vocabulary(self, save_directory: str, *arguments: Any, **options: Any) -> tuple[str]:
        path = Path(save_directory) / self.vocab_files_names["vocab_file"]
        write_vocabulary(path, list(self.mergeable_ranks))
        return (str(path),)


def write_vocabulary(path: Path, tokens: list[bytes]) -> None:
    """Write a vocabulary; a token's place in ``tokens`` is its id and its rank."""
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)))
