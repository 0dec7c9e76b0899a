"""Tokens of two tokenizers side by side: pieces as plain text, and the alignment of two token sequences."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping, Sequence
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
        Wan et al. (2024, arXiv 2401.10491) warp time instead: :func:`align_by_warping`. Here a token has one partner at
        most: a teacher token that covers several student tokens serves the most similar one, and the others get none.

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


def align_by_warping(
    student_pieces: Sequence[str], teacher_pieces: Sequence[str], same: Callable[[int, int], bool]
) -> list[int]:
    """Choose the teacher's prediction for each student token as the code of Wan et al. does (FuseLLM, MinED).

    A model predicts a token after reading the one before it, so tokens that have just been *read* are warped onto each
    other (:func:`warp_tokens`): the end of the prompt, which is common to both, and then the answer's tokens. The
    student predicts token i from the teacher's prediction of token j where what they have just read

    - is the prompt on both sides (i = j = 0), or
    - is one student token i - 1 on one teacher token j - 1, and ``same(i - 1, j - 1)``.

    A student token that was warped onto several teacher tokens, or onto one that is not the same, leaves the next one
    without a teacher. One teacher token may stand opposite several student tokens: ``same`` decides for each.

    Args:
        student_pieces: Plain text of the student's T_s answer tokens (:meth:`Vocabulary.texts`).
        teacher_pieces: Plain text of the teacher's T_t answer tokens.
        same: Whether a student token and a teacher token, by their positions, are one entry.

    Returns:
        For each student token the index of the teacher token whose prediction it is compared with, or -1. Time and
        memory are O(T_s T_t).

    Example:
        >>> student, teacher = [" the", " C", "openhagen", "."], [" the", " Copenhagen", "."]
        >>> align_by_warping(student, teacher, lambda i, j: student[i] == teacher[j])
        [0, 1, -1, -1]
    """
    partners = warp_tokens(["", *student_pieces], ["", *teacher_pieces])  # "" is the end of the prompt
    alignment = []
    for i, read in enumerate(partners[:-1]):  # nothing is predicted after the last token
        j = read.start
        usable = len(read) == 1 and j < len(teacher_pieces)
        alignment.append(j if usable and (i == 0 or (j > 0 and same(i - 1, j - 1))) else -1)
    return alignment


def warp_tokens(student_pieces: Sequence[str], teacher_pieces: Sequence[str]) -> list[range]:
    """Align two tokenizations by dynamic time warping with edit distance as cost (Wan et al., arXiv 2401.10491).

    The path leads from the two first tokens to the two last, each step moves on by one token on either side or on both,
    and it minimizes ``sum over its pairs of d(student_i, teacher_j)``, with d the Levenshtein distance of the pieces
    without their spaces, not normalized. Of equally good paths, followed from the end, the one that moves back on both
    sides is taken, then the one that moves back on the teacher's (as in the published code).

    Args:
        student_pieces: T_s texts.
        teacher_pieces: T_t texts.

    Returns:
        For each student token the teacher tokens that the path pairs it with, in order: at least one, the first of each
        range the last of the one before or its successor. Empty ranges where the teacher has no tokens.

    Example:
        >>> warp_tokens([" the", " Cop", "enhagen"], [" the", " Copenhagen"])
        [range(0, 1), range(0, 1), range(1, 2)]
    """
    if not student_pieces or not teacher_pieces:
        return [range(0)] * len(student_pieces)
    student, teacher = ([piece.replace(" ", "") for piece in pieces] for pieces in (student_pieces, teacher_pieces))
    return _follow_back(_path_costs(cdist(student, teacher, scorer=Levenshtein.distance, dtype=np.int64)))


def _path_costs(pair_cost: NDArray[np.int64]) -> NDArray[np.int64]:
    """Least cost of a path from the first pair to each pair; each row at once, its steps along by a running minimum."""
    totals = np.empty_like(pair_cost)
    totals[0] = pair_cost[0].cumsum()
    for i in range(1, len(pair_cost)):
        entry = totals[i - 1].copy()  # entering row i at column l, straight or diagonally
        np.minimum(entry[1:], totals[i - 1, :-1], out=entry[1:])
        sums = pair_cost[i].cumsum()
        # total[j] = min over l <= j of entry[l] + (cost[l] + ... + cost[j])
        totals[i] = sums + np.minimum.accumulate(entry - sums + pair_cost[i])
    return totals


def _follow_back(totals: NDArray[np.int64]) -> list[range]:
    """Walk the cheapest path from the end; the columns that it visits in each row."""
    i, j = totals.shape[0] - 1, totals.shape[1] - 1
    first, last = [0] * (i + 1), [j] * (i + 1)
    while i > 0 or j > 0:
        steps = [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
        row, column = min((step for step in steps if min(step) >= 0), key=lambda step: totals[step])
        if row < i:
            first[i], last[row] = j, column
        i, j = row, column
    return [range(start, end + 1) for start, end in zip(first, last, strict=True)]


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
