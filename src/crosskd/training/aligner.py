"""What MinED needs of the two tokenizers of a run: which tokens correspond, and which vocabulary entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from crosskd.losses.mined import MinED
from crosskd.text.alignment import Vocabulary, align_by_warping, align_tokens, read_vocabulary
from crosskd.text.vocabulary_map import load_vocabulary_map

TokenAligner = Callable[[Sequence[int], Sequence[int]], list[int]]


def for_tokenizers(method: MinED, student: PreTrainedTokenizerBase, teacher: Vocabulary) -> tuple[MinED, TokenAligner]:
    """The method with its vocabulary map, and what aligns the tokens of two answers.

    The map is computed once per pair of tokenizers and kept in the user's cache directory.
    """
    vocabulary = read_vocabulary(student)
    table = load_vocabulary_map(vocabulary, teacher, cutoff=method.edit_distance_cutoff)
    nearest = table.tolist()

    def align(student_ids: Sequence[int], teacher_ids: Sequence[int]) -> list[int]:
        student_texts, teacher_texts = vocabulary.texts(student_ids), teacher.texts(teacher_ids)
        if method.alignment == "strict":
            return align_tokens(student_texts, teacher_texts)

        def same(i: int, j: int) -> bool:
            return student_texts[i] == teacher_texts[j] or nearest[teacher_ids[j]] == student_ids[i]

        return align_by_warping(student_texts, teacher_texts, same)

    return method.with_vocabulary_map(table), align
