"""What MinED needs of the two tokenizers of a run: which tokens correspond, and which vocabulary entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from crosskd.losses.mined import MinED
from crosskd.text.alignment import align_tokens, read_vocabulary
from crosskd.text.vocabulary_map import load_vocabulary_map

TokenAligner = Callable[[Sequence[int], Sequence[int]], list[int]]


def for_tokenizers(
    method: MinED, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> tuple[MinED, TokenAligner]:
    """The method with its vocabulary map, and what aligns the tokens of two answers.

    The map is computed once per pair of tokenizers and kept in the user's cache directory.
    """
    student_vocabulary, teacher_vocabulary = read_vocabulary(student), read_vocabulary(teacher)

    def align(student_ids: Sequence[int], teacher_ids: Sequence[int]) -> list[int]:
        return align_tokens(student_vocabulary.texts(student_ids), teacher_vocabulary.texts(teacher_ids))

    table = load_vocabulary_map(student, teacher, cutoff=method.edit_distance_cutoff)
    return method.with_vocabulary_map(table), align
