"""Matching of columns: choices by hand, masks, errors."""

import pytest
import torch

from crosskd.errors import UsageError
from crosskd.losses import multilevel_ot_loss
from crosskd.transport import match_columns, rank_columns

METHODS = ["fast", "greedy", "exact"]


def ones(tokens):
    return torch.ones(1, tokens, dtype=torch.bool)


def test_three_methods_by_hand():
    student = torch.tensor([[[0.5, 0.3, 0.15, 0.05], [0.1, 0.3, 0.15, 0.45]]], dtype=torch.float64)
    teacher = torch.tensor([[[0.3, 0.45], [0.4, 0.1]]], dtype=torch.float64)
    chosen = {method: match_columns(student.log(), teacher, ones(2), ones(2), method) for method in METHODS}
    # Sums 0.6, 0.6, 0.3, 0.5. Costs: row 0 is 0.5, 0.1, 0.4, 0.3; row 1 is 0.05, 0.35, 0.35, 0.75.
    assert chosen["fast"].tolist() == [[0, 1]]
    assert chosen["greedy"].tolist() == [[1, 0]]
    assert chosen["exact"].tolist() == [[1, 0]]


def test_greedy_takes_in_rank_order_and_exact_looks_ahead():
    student = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64)
    teacher = torch.tensor([[[0.42, 0.5]]], dtype=torch.float64)
    assert match_columns(student.log(), teacher, ones(1), ones(1), "greedy").tolist() == [[0, 1]]  # 0.08 + 0.2
    assert match_columns(student.log(), teacher, ones(1), ones(1), "exact").tolist() == [[1, 0]]  # 0.12 + 0


@pytest.mark.parametrize("method", ["greedy", "exact"])
def test_costs_count_the_first_tokens_that_both_have(method):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 6, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    student_mask = torch.arange(6) < torch.tensor([[4], [6]])
    teacher_mask = torch.arange(6) < torch.tensor([[6], [3]])
    values = teacher.softmax(-1)[..., :5]
    whole = match_columns(student, values, student_mask, teacher_mask, method)
    for sequence, tokens in enumerate((4, 3)):
        part = slice(sequence, sequence + 1), slice(0, tokens)
        alone = match_columns(student[part], values[part], ones(tokens), ones(tokens), method)
        assert torch.equal(whole[sequence : sequence + 1], alone)


def test_fast_is_the_ranking_of_the_student():
    student = torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    teacher_mask = torch.ones(2, 3, dtype=torch.bool)
    chosen = match_columns(student, torch.rand(2, 3, 4), mask, teacher_mask, "fast")
    assert torch.equal(chosen, rank_columns(student, mask, 4))


def test_fast_ranks_each_side_by_all_of_its_own_tokens_when_lengths_differ():
    """By hand, as docs/methods/multilevel_ot.md has it; neither the code nor the oracle is asked.

    Over both tokens the student's sums are 0.6, 0.4, 1.0: columns 2 and 0. Its first token alone, the one that stands
    opposite the teacher's, would give columns 0 and 1, and differences of 0.1 instead of 0.6.
    """
    student = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]], dtype=torch.float64)
    teacher = torch.tensor([[[0.6, 0.3, 0.1]]], dtype=torch.float64)
    assert match_columns(student.log(), teacher[..., :2], ones(2), ones(1), "fast").tolist() == [[2, 0]]
    terms = multilevel_ot_loss(student.log(), teacher.log(), ones(2), ones(1), top_k=2)
    assert terms.absolute_difference.item() == pytest.approx(abs(0.6 - 0.2) + abs(0.3 - 0.5), abs=1e-14)
    # the other way round the teacher's two tokens rank its columns, and the one student token its own
    terms = multilevel_ot_loss(teacher.log(), student.log(), ones(1), ones(2), top_k=2)
    assert terms.absolute_difference.item() == pytest.approx(abs(0.2 - 0.6) + abs(0.5 - 0.3), abs=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("vocabulary", [3, 5000])
def test_extremes_give_distinct_columns(method, vocabulary):
    """More columns than the student has, no answer tokens, ties everywhere."""
    flat = torch.zeros(2, 3, vocabulary)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    values = torch.full((2, 3, 8), 1 / 8)
    chosen = match_columns(flat, values, mask, mask, method)
    assert chosen.shape == (2, min(8, vocabulary))
    assert all(len(set(row)) == len(row) for row in chosen.tolist())


def test_unknown_method():
    with pytest.raises(UsageError, match="did you mean 'greedy'"):
        match_columns(torch.zeros(1, 1, 3), torch.zeros(1, 1, 2), ones(1), ones(1), "gready")
