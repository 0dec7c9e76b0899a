"""The student's nearest entry for every entry of the teacher's vocabulary, once per pair of tokenizers."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crosskd.errors import UsageError
from crosskd.hashes import cache_directory
from crosskd.text.alignment import ROLES, Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

NO_MATCH = -1
DEFAULT_CUTOFF = 0.5
_FORMAT = 1  # raise it when the same vocabularies would map differently: older files are then computed again
_BLOCK_BYTES = 1 << 26  # of one distance matrix


def vocabulary_map(
    student_vocabulary: Vocabulary,
    teacher_vocabulary: Vocabulary,
    *,
    cutoff: float = DEFAULT_CUTOFF,
    workers: int = -1,
) -> Tensor:
    """Map each teacher entry to the student's nearest entry by edit distance (MinED; Wan et al. 2024).

    In this order: special tokens by their role (end of sequence to end of sequence, whatever their names); equal text;
    for what is left, of the student's entries whose normalized edit distance ``d / max(lengths)`` is below ``cutoff``
    the one with the least d (ties: the longer piece, then the lower id). The search is exact: lengths that cannot hold
    a better entry are skipped, nothing is sampled. Added tokens and pieces that are no whole characters have no
    nearest entry, only an equal one.

    Note:
        The published rule takes the nearest entry however far it is: ``cutoff=1.0`` (all but entries that share
        nothing). The default drops pairs that differ in half of their characters or more, such as " Copenhagen" and
        " open": the probability of the first says nothing about the second.

    Args:
        student_vocabulary: Of V_s pieces.
        teacher_vocabulary: Of V_t pieces.
        cutoff: Normalized distance in (0, 1] that a match must stay below.
        workers: Threads; -1 for all.

    Returns:
        Long tensor (V_t,) of student ids, -1 for no match. Time grows with V_s V_t in the worst case, memory is
        bounded (64 MB beside the vocabularies).

    Raises:
        UsageError: ``cutoff`` outside (0, 1].

    Example:
        >>> student, teacher = Vocabulary((" a", " colour")), Vocabulary((" color", " a", "中"))
        >>> vocabulary_map(student, teacher).tolist()
        [1, 0, -1]
    """
    if not 0 < cutoff <= 1:
        raise UsageError("cutoff", got=cutoff, expected="a normalized distance in (0, 1]")
    equal = _ids_by_text(student_vocabulary)
    mapped = [equal.get(piece, NO_MATCH) if piece else NO_MATCH for piece in teacher_vocabulary.pieces]
    teacher_texts = _searchable(teacher_vocabulary)
    unmatched = sorted({text for text in teacher_texts.values() if text not in equal})
    choices = sorted(set(_searchable(student_vocabulary).values()))
    near = {text: equal[choice] for text, choice in _nearest(unmatched, choices, equal, cutoff, workers).items()}
    for token, text in teacher_texts.items():
        if text in near:
            mapped[token] = near[text]
    for role in reversed(ROLES):
        if role in teacher_vocabulary.roles and role in student_vocabulary.roles:
            mapped[teacher_vocabulary.roles[role]] = student_vocabulary.roles[role]
    return torch.tensor(mapped, dtype=torch.long)


def load_vocabulary_map(
    student_tokenizer: PreTrainedTokenizerBase | Vocabulary,
    teacher_tokenizer: PreTrainedTokenizerBase | Vocabulary,
    *,
    cutoff: float = DEFAULT_CUTOFF,
    folder: Path | None = None,
    workers: int = -1,
) -> Tensor:
    """Give the vocabulary map of two tokenizers from the user's cache, computing it the first time.

    Args:
        student_tokenizer: A tokenizer of transformers, or what :func:`read_vocabulary` read of one.
        teacher_tokenizer: The same for the teacher.
        cutoff: As in :func:`vocabulary_map`.
        folder: Where maps are kept; default ``vocabulary_maps`` in the user's cache directory. A
            file is named by the contents of both vocabularies, so that a changed tokenizer gets a new map. A folder
            that cannot be written costs the computation each time, with a warning.
        workers: Threads; -1 for all.

    Returns:
        Long tensor (V_t,) of student ids, -1 for no match.
    """
    student, teacher = _vocabulary_of(student_tokenizer), _vocabulary_of(teacher_tokenizer)
    path = (folder or cache_directory() / "vocabulary_maps") / f"{_identity(student, teacher, cutoff)}.safetensors"
    with suppress(OSError, SafetensorError, KeyError):  # absent or damaged: computed again
        kept = load_file(path)["student_ids"].long()
        if kept.shape == (len(teacher.pieces),):
            return kept
    started = time.perf_counter()
    result = vocabulary_map(student, teacher, cutoff=cutoff, workers=workers)
    logger.info(
        "mapped %d teacher entries to %d student entries in %.1f s (%d without a match)",
        len(teacher.pieces),
        len(student.pieces),
        time.perf_counter() - started,
        int((result == NO_MATCH).sum()),
    )
    try:
        _keep(result, path)
    except OSError as error:
        logger.warning("the vocabulary map could not be kept in %s: %s", path.parent, error)
    return result


def _ids_by_text(vocabulary: Vocabulary) -> dict[str, int]:
    """The id that a text means: an ordinary entry before an added one before a spelled byte, then the lowest id."""
    preference = sorted(
        range(len(vocabulary.pieces)),
        key=lambda token: (token in vocabulary.fallback, token in vocabulary.added, token),
    )
    ids: dict[str, int] = {}
    for token in preference:
        ids.setdefault(vocabulary.pieces[token], token)
    return ids


def _searchable(vocabulary: Vocabulary) -> dict[int, str]:
    """Entries that may have a nearest entry: text of whole characters that the model learned as such."""
    return {
        token: piece
        for token, piece in enumerate(vocabulary.pieces)
        if piece and token not in vocabulary.added and not any("\ud800" <= letter <= "\udfff" for letter in piece)
    }


@dataclass(frozen=True)
class _Search:
    """Best choice so far of the queries of one length."""

    queries: list[str]
    distance: NDArray[np.int64]
    choice: NDArray[np.int64]  # index into all choices
    length: NDArray[np.int64]  # of that choice


def _nearest(
    queries: Sequence[str], choices: Sequence[str], ids: Mapping[str, int], cutoff: float, workers: int
) -> dict[str, str]:
    """Nearest choice of each query that has one below the cutoff; both without repetition."""
    by_length = _group_by_length(choices, ids)
    ordered = [choices[index] for group in by_length.values() for index in group]
    starts = dict(zip(by_length, np.cumsum([0, *map(len, by_length.values())]).tolist(), strict=False))
    found: dict[str, str] = {}
    for length, members in _group_by_length(queries, None).items():
        search = _Search(
            [queries[index] for index in members],
            np.full(len(members), np.iinfo(np.int64).max),
            np.full(len(members), NO_MATCH),
            np.zeros(len(members), dtype=np.int64),
        )
        reachable = (other for other in by_length if abs(other - length) < cutoff * max(other, length))
        for other in sorted(reachable, key=lambda other: (abs(other - length), -other)):
            group = ordered[starts[other] : starts[other] + len(by_length[other])]
            _search_length(search, group, starts[other], cutoff, workers)
        for query, choice in zip(search.queries, search.choice.tolist(), strict=True):
            if choice != NO_MATCH:
                found[query] = ordered[choice]
    return found


def _search_length(search: _Search, group: Sequence[str], start: int, cutoff: float, workers: int) -> None:
    """Compare the queries that this group of equally long choices can still improve."""
    length, query_length = len(group[0]), len(search.queries[0])
    least = abs(length - query_length)
    open_ = np.flatnonzero((search.distance > least) | ((search.distance == least) & (search.length < length)))
    limit = np.ceil(cutoff * max(length, query_length)) - 1  # the largest distance below the cutoff
    wide = max(length, query_length) >= 255
    block = max(1, _BLOCK_BYTES // ((2 if wide else 1) * len(group)))
    for first in range(0, len(open_), block):
        rows = open_[first : first + block]
        table = cdist(
            [search.queries[row] for row in rows],
            group,
            scorer=Levenshtein.distance,
            dtype=np.uint16 if wide else np.uint8,
            workers=workers,
        )
        nearest = table.argmin(axis=1)
        distance = table[np.arange(len(rows)), nearest].astype(np.int64)
        better = (distance < search.distance[rows]) | (
            (distance == search.distance[rows]) & (length > search.length[rows])
        )
        rows, nearest, distance = (array[better & (distance <= limit)] for array in (rows, nearest, distance))
        search.distance[rows], search.choice[rows], search.length[rows] = distance, start + nearest, length


def _group_by_length(texts: Sequence[str], ids: Mapping[str, int] | None) -> dict[int, list[int]]:
    """Indices of the texts of each length, in the order of their ids."""
    order = range(len(texts)) if ids is None else sorted(range(len(texts)), key=lambda index: ids[texts[index]])
    groups: dict[int, list[int]] = {}
    for index in order:
        groups.setdefault(len(texts[index]), []).append(index)
    return groups


def _identity(student: Vocabulary, teacher: Vocabulary, cutoff: float) -> str:
    """Hash of all that decides the map."""
    digest = hashlib.sha256(f"{_FORMAT} {cutoff!r}".encode())
    for vocabulary in (student, teacher):
        facts = [
            vocabulary.pieces,
            sorted(vocabulary.added),
            sorted(vocabulary.fallback),
            sorted(vocabulary.roles.items()),
        ]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def _vocabulary_of(tokenizer: PreTrainedTokenizerBase | Vocabulary) -> Vocabulary:
    return tokenizer if isinstance(tokenizer, Vocabulary) else read_vocabulary(tokenizer)


def _keep(student_ids: Tensor, path: Path) -> None:
    """Write beside and move into place: of several processes the last one wins, none reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        save_file({"student_ids": student_ids.int()}, name)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
