"""What MinED needs of the two tokenizers of a run: which tokens correspond, and which vocabulary entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from crosskd.losses.mined import MinED
from crosskd.text.alignment import Vocabulary, align_tokens, read_vocabulary
from crosskd.text.vocabulary_map import load_vocabulary_map

TokenAligner = Callable[[Sequence[int], Sequence[int]], list[int]]


def for_tokenizers(method: MinED, student: PreTrainedTokenizerBase, teacher: Vocabulary) -> tuple[MinED, TokenAligner]:
    """The method with its vocabulary map, and what aligns the tokens of two answers.

    The map is computed once per pair of tokenizers and kept in the user's cache directory.
    """
    vocabulary = read_vocabulary(student)

    def align(student_ids: Sequence[int], teacher_ids: Sequence[int]) -> list[int]:
        return align_tokens(vocabulary.texts(student_ids), teacher.texts(teacher_ids))

    table = load_vocabulary_map(vocabulary, teacher, cutoff=method.edit_distance_cutoff)
    return method.with_vocabulary_map(table), align
