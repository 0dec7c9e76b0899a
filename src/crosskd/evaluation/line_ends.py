"""Where the first line of an answer ends, seen in its tokens: nothing is decoded while a model writes.

A row of tokens has its line once the text of them holds a line break after something else than white space. Whether it
does can be followed token by token: a finite automaton reads the bytes of each token, and what a token does to each of
its states is a column of a table over the vocabulary. One look-up a token, on the device where the tokens are::

    state = table[state, token]

Two things make it an automaton and not a list of tokens with line breaks. Characters may be spread over tokens, and so
may white space of several bytes: what a byte means is known only with the bytes after it. And where SentencePiece falls
back to bytes (``<0x0A>``), a run of them that is not UTF-8 becomes replacement characters, its line breaks included.

Tokenizers whose decoder is not known to join its tokens plainly have no table; `crosskd.evaluation.stopping` decodes
their rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

LINE_BREAK = re.compile(r"[\r\n]")
_BREAKS = b"\r\n"
# What Tokenizers takes for a byte: from_str_radix of Rust, which allows a sign.
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
# Decoders that write the text of each token by itself, one after the other; see `_spelling`.
_PLAIN = re.compile(r"((Replace|Metaspace) )*(ByteFallback )?(Fuse (Strip )*)?")

BLANK, TEXT, LINE, _BROKEN = "blank", "text", "line", "broken"
"""States: only white space so far; other text; a line break after it; a run of fallback bytes that is not UTF-8."""
START, DONE = 0, 1
"""Numbers of the states in which a row begins (`BLANK`) and has its line (`LINE`)."""
# Further states: the first bytes of a white space character after white space only (bytes), and what is still to come
# of another character in a run of fallback bytes: range of the next byte and how many follow it.
_State = str | bytes | tuple[int, int, int]

_SPACES = frozenset(character.encode() for character in map(chr, range(0x3001)) if character.isspace())
_BEGUN = frozenset(space[:length] for space in _SPACES for length in range(1, len(space)))


class LineTable:
    """The automaton's table for one tokenizer.

    Args:
        table: uint8 (S, V): the state after each of V tokens, from each of S states.
    """

    def __init__(self, table: Tensor) -> None:
        self._table = table
        self._copies: dict[tuple[torch.device, tuple[int, ...]], Tensor] = {}

    def on(self, device: torch.device, ends: Sequence[int] = ()) -> Tensor:
        """The table on a device, uint8 (S, W + 1), in which each of the tokens ``ends`` leads to `DONE`.

        W is at least V. The last column changes nothing: it serves all ids from W on, that no tokenizer knows. Copied
        once for each device.
        """
        key = (device, tuple(ends))
        if key not in self._copies:
            states, tokens = self._table.shape
            table = torch.arange(states, dtype=torch.uint8)[:, None].repeat(1, max(tokens, *ends, 0) + 2)
            table[:, :tokens] = self._table
            table[:, list(ends)] = DONE
            self._copies[key] = table.to(device)
        return self._copies[key]


_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, LineTable | None]] = WeakKeyDictionary()


def line_table(tokenizer: PreTrainedTokenizerBase) -> LineTable | None:
    """The table of a tokenizer, or None where its decoder is not known to join tokens plainly.

    Known are the decoders of byte-level BPE (GPT-2, OPT, Pythia, Bloom, Llama 3, Qwen, SmolLM), of SentencePiece with
    and without fallback to bytes (Llama 2, Mistral, Gemma, T5), and none at all. Computed once for each tokenizer and
    again when tokens are added to it: about three microseconds a token.

    Args:
        tokenizer: A tokenizer of transformers; it is only read.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    steps = _decoder_steps(tokenizer, backend)
    facts = (json.dumps(steps), len(tokenizer), tuple(tokenizer.all_special_ids))
    known = _KNOWN.get(tokenizer)
    if known is None or known[0] != facts:
        spell = None if steps is None else _spelling(steps)
        table = None if spell is None else LineTable(torch.from_numpy(_table(_spelled(backend, spell))))
        known = _KNOWN[tokenizer] = (facts, table)
    return known[1]


def decode_answer(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of an answer's tokens, without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


# --- from a tokenizer to the bytes of its tokens

# Whole characters that end a run of fallback bytes; bytes that go on where those of the token before ended; one byte of
# such a run; or nothing, for tokens that are left out.
_Spelled = str | bytes | int | None


def _decoder_steps(tokenizer: PreTrainedTokenizerBase, backend: Any) -> list[dict[str, Any]] | None:
    """The decoder of a fast tokenizer as a list of its steps; None where there may be more to it than that."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    own, plain = type(tokenizer), PreTrainedTokenizerFast
    if any(getattr(own, method) is not getattr(plain, method) for method in ("decode", "_decode")):
        return None
    if backend.decoder is None:
        return []
    try:
        decoder = json.loads(backend.decoder.__getstate__())
    except Exception:  # one that is written in Python has no state, and Tokenizers raises nothing more specific
        return None
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _spelling(steps: Sequence[dict[str, Any]]) -> Callable[[str], _Spelled] | None:
    """What a decoder makes of each token; None if that is not all it does.

    White space that it drops or adds before, or between, tokens makes no difference: a blank text stays blank.
    """
    if [step["type"] for step in steps] == ["ByteLevel"]:
        table = {character: byte for byte, character in bytes_to_unicode().items()}
        return lambda name: _byte_level(name, table)
    harmless = all(step["stop"] == 0 and step["content"].isspace() for step in steps if step["type"] == "Strip")
    if not harmless or not _PLAIN.fullmatch("".join(f"{step['type']} " for step in steps)):
        return None
    replaced: list[tuple[str, str]] = []
    for step in steps:
        if step["type"] == "Metaspace":
            replaced.append((step["replacement"], " "))
        elif step["type"] == "Replace":
            replaced.append((step["pattern"].get("String", ""), step["content"]))
    if not all(pattern for pattern, _ in replaced):  # a regular expression
        return None
    falls_back = any(step["type"] == "ByteFallback" for step in steps)
    return lambda name: _replaced(name, replaced, falls_back)


def _byte_level(name: str, table: dict[str, int]) -> bytes:
    try:
        return bytes([table[character] for character in name])
    except KeyError:  # an added token: the decoder leaves it as it is
        return name.encode()


def _replaced(name: str, replaced: Sequence[tuple[str, str]], falls_back: bool) -> str | int:
    for pattern, content in replaced:
        name = name.replace(pattern, content)
    byte = _FALLBACK.fullmatch(name) if falls_back else None
    return int(byte[1], 16) if byte else name


def _spelled(backend: Any, spell: Callable[[str], _Spelled]) -> list[_Spelled]:
    added = backend.get_added_tokens_decoder()
    names = {token: name for name, token in backend.get_vocab(with_added_tokens=False).items()}
    names |= {token: entry.content for token, entry in added.items()}
    special = {entry.content for entry in added.values() if entry.special}
    spelled: list[_Spelled] = [None] * (max(names, default=-1) + 1)
    for token, name in names.items():
        if name not in special:
            spelled[token] = spell(name)
    return spelled


# --- the automaton


class _Automaton(NamedTuple):
    """Tables (S, 256) of the state after a byte, and (S,) of the state when a run of fallback bytes ends."""

    joined: NDArray[np.uint8]
    fallback: NDArray[np.uint8]
    closed: NDArray[np.uint8]


@cache
def _automaton() -> _Automaton:
    states: list[_State] = [BLANK, LINE]
    for state in states:  # grows while it is read
        reached = dict.fromkeys(step(state, byte) for byte in range(256) for step in (_joined, _fallback))
        states += [other for other in reached if other not in states]
    numbers = {state: number for number, state in enumerate(states)}

    def table(step: Callable[[_State, int], _State]) -> NDArray[np.uint8]:
        rows = [[numbers[step(state, byte)] for byte in range(256)] for state in states]
        return np.array(rows, dtype=np.uint8)

    closed = [numbers[state if state in (BLANK, LINE) else TEXT] for state in states]
    return _Automaton(table(_joined), table(_fallback), np.array(closed, dtype=np.uint8))


def _joined(state: _State, byte: int) -> _State:
    """The state after one more byte of a text in which what is not UTF-8 becomes a replacement character."""
    if state == LINE:
        return LINE
    if (blank := _still_blank(state, byte)) is not None:
        return blank
    return LINE if byte in _BREAKS else TEXT


def _fallback(state: _State, byte: int) -> _State:
    """The state after one more byte of a run that counts as a whole: it is UTF-8, or no character of it is left."""
    if state in (LINE, _BROKEN):
        return state
    if (blank := _still_blank(state, byte)) is not None:
        return blank
    if isinstance(state, bytes):
        low, high, more = _to_come(state[0]) or (0, 0, 0)
        state = (low, high, more) if len(state) == 1 else (0x80, 0xBF, more - 1)
    if isinstance(state, tuple):
        low, high, more = state
        if not low <= byte <= high:
            return _BROKEN
        return (0x80, 0xBF, more - 1) if more else TEXT
    if byte in _BREAKS:
        return LINE
    return TEXT if byte < 0x80 else _to_come(byte) or _BROKEN


def _still_blank(state: _State, byte: int) -> _State | None:
    """The state after a byte if there may be nothing but white space yet; None if there is something else."""
    if state != BLANK and not isinstance(state, bytes):
        return None
    read = (state if isinstance(state, bytes) else b"") + bytes([byte])
    return BLANK if read in _SPACES else read if read in _BEGUN else None


def _to_come(first: int) -> tuple[int, int, int] | None:
    """What follows the first byte of a character of several bytes: Unicode 16, table 3-7. None: nothing may."""
    more = 0 if 0xC2 <= first <= 0xDF else 1 if 0xE0 <= first <= 0xEF else 2 if 0xF0 <= first <= 0xF4 else None
    if more is None:
        return None
    low = {0xE0: 0xA0, 0xF0: 0x90}.get(first, 0x80)
    high = {0xED: 0x9F, 0xF4: 0x8F}.get(first, 0xBF)
    return low, high, more


def _table(tokens: Sequence[_Spelled]) -> NDArray[np.uint8]:
    """The state after each token, uint8 (S, V)."""
    joined, fallback, closed = _automaton()
    unchanged = np.arange(len(closed), dtype=np.uint8)
    table = np.repeat(joined[:, ord("x"), None], len(tokens), axis=1)
    others: dict[int, bytes] = {}
    for token, spelled in enumerate(tokens):
        if spelled is None:
            table[:, token] = unchanged
        elif isinstance(spelled, int):
            table[:, token] = fallback[:, spelled]
        elif not _like_x(spelled):
            table[:, token] = closed if isinstance(spelled, str) else unchanged
            others[token] = spelled.encode() if isinstance(spelled, str) else spelled
    _read(table, others, joined)
    return table


def _like_x(spelled: str | bytes) -> bool:
    """Whether it is whole characters, a visible one among them and no line break, as nearly all tokens are."""
    try:
        text = spelled if isinstance(spelled, str) else spelled.decode()
    except UnicodeDecodeError:
        return False
    return bool(text.strip()) and LINE_BREAK.search(text) is None


def _read(table: NDArray[np.uint8], texts: Mapping[int, bytes], joined: NDArray[np.uint8]) -> None:
    """Let some columns of ``table`` read their tokens' bytes, in place: the n-th bytes of all at once."""
    by_length = sorted(texts, key=lambda token: -len(texts[token]))
    for place in range(len(texts[by_length[0]]) if by_length else 0):
        while len(texts[by_length[-1]]) <= place:
            by_length.pop()
        content = np.frombuffer(bytes(texts[token][place] for token in by_length), dtype=np.uint8)
        table[:, by_length] = joined[table[:, by_length], content]
