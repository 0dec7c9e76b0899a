"""What must hold for warped alignments of any two token sequences, and for the loss that follows from them."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from crosskd.losses.base import StudentAnswers
from crosskd.losses.mined import MinED
from crosskd.losses.targets import targets_from_logits
from crosskd.text.alignment import align_by_warping, warp_tokens

pieces = st.lists(st.text("ab €\udce2", max_size=4), min_size=1, max_size=7)


def cost(student: str, teacher: str) -> int:
    return Levenshtein.distance(student.replace(" ", ""), teacher.replace(" ", ""))


def least_cost(student: list[str], teacher: list[str]) -> int:
    """Of all warping paths, by trying every step."""

    @cache
    def from_(i: int, j: int) -> int:
        here = cost(student[i], teacher[j])
        steps = [(i + 1, j + 1), (i, j + 1), (i + 1, j)]
        open_ = [step for step in steps if step[0] < len(student) and step[1] < len(teacher)]
        return here + min((from_(*step) for step in open_), default=0)

    return from_(0, 0)


@settings(max_examples=150, deadline=None)
@given(pieces, pieces)
def test_a_path_is_monotone_covers_both_sides_and_costs_least(student: list[str], teacher: list[str]) -> None:
    found = warp_tokens(student, teacher)
    assert len(found) == len(student)
    assert all(len(partners) >= 1 for partners in found)
    assert (found[0].start, found[-1].stop) == (0, len(teacher))
    for before, after in pairwise(found):
        assert after.start - (before.stop - 1) in (0, 1)  # the same teacher token once more, or the next
    total = sum(cost(student[i], teacher[j]) for i, partners in enumerate(found) for j in partners)
    assert total == least_cost(student, teacher)


@settings(max_examples=60, deadline=None)
@given(pieces)
def test_equal_tokens_are_paired_one_by_one(texts: list[str]) -> None:
    assert warp_tokens(texts, texts) == [range(i, i + 1) for i in range(len(texts))]
    assert align_by_warping(texts, texts, lambda i, j: i == j) == list(range(len(texts)))


@settings(max_examples=100, deadline=None)
@given(pieces, pieces)
def test_predictions_are_chosen_in_order_and_after_equal_tokens(student: list[str], teacher: list[str]) -> None:
    alignment = align_by_warping(student, teacher, lambda i, j: student[i] == teacher[j])
    chosen = [index for index in alignment if index >= 0]
    assert len(alignment) == len(student)
    assert chosen == sorted(chosen)
    assert all(index < len(teacher) for index in chosen)
    assert all(student[i - 1] == teacher[j - 1] for i, j in enumerate(alignment) if i and j >= 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.integers(1, 9))
def test_the_published_loss_is_a_divergence(seed: int, t_s: int, t_t: int, vocabulary: int, top_entries: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student = 3 * torch.randn(2, t_s, vocabulary, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(2, t_t, vocabulary, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocabulary, (2, t_s), generator=generator)
    alignment = torch.randint(-1, t_t, (2, t_s), generator=generator)
    table = torch.randint(-1, vocabulary, (vocabulary,), generator=generator)
    method = MinED(top_entries, 1.0, "dtw", "dropped").with_vocabulary_map(table)
    mask = torch.ones(2, t_s, dtype=torch.bool)
    targets = targets_from_logits(teacher, torch.ones(2, t_t, dtype=torch.bool), method.request())
    found = method.terms(StudentAnswers(student, labels, mask, alignment), targets)
    assert found["distillation"] >= -1e-12
    assert found["label_targets"] >= (alignment < 0).sum()
    # a constant added to all logits of a model changes nothing
    shifted = targets_from_logits(teacher + 5, torch.ones(2, t_t, dtype=torch.bool), method.request())
    again = method.terms(StudentAnswers(student - 7, labels, mask, alignment), shifted)
    torch.testing.assert_close(again["distillation"], found["distillation"], rtol=0, atol=1e-9)
