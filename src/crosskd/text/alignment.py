"""Tokens of two tokenizers side by side: pieces as plain text, and the alignment of two token sequences."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("eos", "bos", "unk", "pad")
"""Special tokens that have a counterpart whatever they are called; a token in two roles counts as the first."""

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SCALE = 1 << 20  # costs are fixed-point integers, so that equal costs are equal when the path is traced back
_ALONE = _SCALE // 2


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's entries as plain text, comparable across kinds of tokenizers.

    A space is a space (neither ``Ġ`` nor ``▁``), a byte that is no whole character by itself is a lone surrogate
    (``"\\udc80"`` to ``"\\udcff"``, as ``surrogateescape`` decodes it).

    Args:
        pieces: The text of each id; ``""`` for an id without a token.
        added: Ids of tokens added to the model's own (special tokens, placeholders): they match exactly or not at all.
        fallback: Ids that spell one byte (``<0x0A>``): used only where no other entry has that text.
        roles: Id of the token that plays each of the ``ROLES``, where there is one.
    """

    pieces: tuple[str, ...]
    added: frozenset[int] = frozenset()
    fallback: frozenset[int] = frozenset()
    roles: Mapping[str, int] = field(default_factory=dict[str, int])

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Pieces of a token sequence, as :func:`align_tokens` takes them."""
        return [self.pieces[token] for token in ids]


def read_vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Read the entries of a tokenizer as plain text.

    Knows byte-level BPE (GPT-2, Llama 3, Qwen), SentencePiece with or without byte fallback (Llama 2, Gemma, T5) and
    plain text (anything else). The kind is seen in the pieces: only SentencePiece writes ``▁`` (byte-level BPE cannot),
    and only byte-level BPE writes ``Ġ`` without it.

    Args:
        tokenizer: A tokenizer of transformers, fast or slow.

    Returns:
        The vocabulary, of ``len(tokenizer)`` pieces. The model's logits may have more columns (padding): those map to
        nothing.
    """
    raw = [_as_text(piece) for piece in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    added = frozenset(tokenizer.added_tokens_decoder)
    own = [piece for token, piece in enumerate(raw) if token not in added]
    fallback: frozenset[int] = frozenset()
    if any("▁" in piece for piece in own):
        fallback = frozenset(token for token, piece in enumerate(raw) if _BYTE_FALLBACK.fullmatch(piece))
        pieces = [_from_sentencepiece(piece) for piece in raw]
    elif any("Ġ" in piece for piece in own):
        table = _byte_alphabet()
        pieces = [piece if token in added else _from_bytes(piece, table) for token, piece in enumerate(raw)]
    else:
        pieces = raw
    roles: dict[str, int] = {}
    for role in ROLES:
        token = getattr(tokenizer, f"{role}_token_id", None)
        if isinstance(token, int):
            roles[role] = token
    return Vocabulary(tuple(pieces), added - fallback, fallback, roles)


def write_vocabulary(vocabulary: Vocabulary) -> bytes:
    """A vocabulary as compressed JSON; the same vocabulary gives the same bytes. :func:`parse_vocabulary` reads it."""
    facts = {
        "pieces": vocabulary.pieces,
        "added": sorted(vocabulary.added),
        "fallback": sorted(vocabulary.fallback),
        "roles": dict(sorted(vocabulary.roles.items())),
    }
    return gzip.compress(json.dumps(facts).encode("ascii"), mtime=0)  # lone surrogates are escaped like any other


def parse_vocabulary(content: bytes) -> Vocabulary:
    """What :func:`write_vocabulary` wrote."""
    facts = json.loads(gzip.decompress(content))
    return Vocabulary(
        tuple(facts["pieces"]), frozenset(facts["added"]), frozenset(facts["fallback"]), dict(facts["roles"])
    )


def _as_text(piece: str | bytes | None) -> str:
    """The tokenizer's own name of a token; those of the first Qwen models are bytes."""
    return piece.decode("utf-8", "surrogateescape") if isinstance(piece, bytes) else piece or ""


def align_tokens(student_pieces: Sequence[str], teacher_pieces: Sequence[str]) -> list[int]:
    """Align two tokenizations of one text by dynamic programming on normalized edit distance.

    The alignment is the order-keeping set of pairs (i, j), each token in at most one, that minimizes::

        sum over pairs of d(student_i, teacher_j) / max(len(student_i), len(teacher_j)) + (tokens left alone) / 2

    with d the Levenshtein distance: a pair that shares nothing costs as much as leaving both alone, and is left alone.
    Of equally good alignments the one with the earliest pairs is taken.

    Note:
        Wan et al. (2024, arXiv 2401.10491) warp time instead, so that a token may pair with several. Where one teacher
        token covers several student tokens, its prediction then serves all of them, also those it contradicts. Here it
        serves the most similar one; the others get no teacher.

    Args:
        student_pieces: Plain text of the student's T_s tokens (:meth:`Vocabulary.texts`).
        teacher_pieces: Plain text of the teacher's T_t tokens.

    Returns:
        For each student token the index of its teacher token, or -1. Time and memory are O(T_s T_t).

    Example:
        >>> align_tokens([" the", " C", "openhagen"], [" the", " Copenhagen"])
        [0, -1, 1]
    """
    rows, columns = len(student_pieces), len(teacher_pieces)
    if rows == 0 or columns == 0:
        return [-1] * rows
    if list(student_pieces) == list(teacher_pieces):
        return list(range(rows))
    distances = cdist(student_pieces, teacher_pieces, scorer=Levenshtein.normalized_distance, dtype=np.float64)
    return _trace(np.rint(distances * _SCALE).astype(np.int64))


def _trace(pair_cost: NDArray[np.int64]) -> list[int]:
    """Walk the cheapest path from the front; ``totals[i, j]`` is the cost of aligning what follows i and j."""
    rows, columns = pair_cost.shape
    totals = _suffix_costs(pair_cost)
    alignment = [-1] * rows
    i = j = 0
    while i < rows and j < columns:
        cost = int(pair_cost[i, j])
        if cost < _SCALE and totals[i, j] == totals[i + 1, j + 1] + cost:
            alignment[i] = j
            i, j = i + 1, j + 1
        elif totals[i, j] == totals[i + 1, j] + _ALONE:
            i += 1
        else:
            j += 1
    return alignment


def _suffix_costs(pair_cost: NDArray[np.int64]) -> NDArray[np.int64]:
    """Least cost of every pair of suffixes; each row at once, its gaps by a running minimum."""
    rows, columns = pair_cost.shape
    left_alone = np.arange(columns, -1, -1, dtype=np.int64) * _ALONE
    totals = np.empty((rows + 1, columns + 1), dtype=np.int64)
    totals[rows] = left_alone
    for i in range(rows - 1, -1, -1):
        best = totals[i + 1] + _ALONE
        np.minimum(best[:-1], totals[i + 1, 1:] + pair_cost[i], out=best[:-1])
        # best[j] may also leave teacher tokens j..l-1 alone: min over l >= j of best[l] + (l - j) / 2
        totals[i] = np.minimum.accumulate((best - left_alone)[::-1])[::-1] + left_alone
    return totals


def _byte_alphabet() -> dict[str, int]:
    """Byte of each character of byte-level BPE: printable Latin-1 is itself, the other bytes follow from U+0100 on."""
    own = [byte for byte in range(256) if 33 <= byte <= 126 or (161 <= byte <= 255 and byte != 173)]
    table = {chr(byte): byte for byte in own}
    others = (byte for byte in range(256) if byte not in own)
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


def _from_bytes(piece: str, table: Mapping[str, int]) -> str:
    """Decode a byte-level piece; one with a character outside the alphabet is no such piece and stays as it is."""
    try:
        return bytes(table[character] for character in piece).decode("utf-8", "surrogateescape")
    except KeyError:
        return piece


def _from_sentencepiece(piece: str) -> str:
    if byte := _BYTE_FALLBACK.fullmatch(piece):
        return bytes([int(byte[1], 16)]).decode("utf-8", "surrogateescape")
    return piece.replace("▁", " ")
