"""MultiLevelOT against a loop oracle, and the transport pieces against POT, scipy and brute force."""

import itertools

import ot
import pytest
import torch
from multilevel_ot_oracle import oracle, prefix_masks
from scipy.optimize import linear_sum_assignment

from crosskd.losses import multilevel_ot_loss
from crosskd.transport import match_columns, rank_columns, sinkhorn_plan


def logits(*shape, seed=0, scale=2.0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale


@pytest.mark.parametrize("method", ["fast", "greedy", "exact"])
@pytest.mark.parametrize(
    ("student_lengths", "teacher_lengths", "k"),
    [((3, 2), (3, 2), 3), ((4, 1), (2, 3), 3), ((1, 3), (4, 0), 2), ((3,), (2,), 50)],
)
def test_value_and_gradient_of_the_equations(method, student_lengths, teacher_lengths, k):
    batch = len(student_lengths)
    vocabulary = 6 if k == 50 else 7
    student = logits(batch, 4, vocabulary, seed=1).requires_grad_()
    teacher = logits(batch, 5, 6, seed=2)
    expected = oracle(student, teacher, student_lengths, teacher_lengths, k=k, method=method, beta=0.3, gamma=0.7)
    (expected_gradient,) = torch.autograd.grad(expected[0], student)
    terms = multilevel_ot_loss(
        student,
        teacher,
        prefix_masks(student_lengths, 4),
        prefix_masks(teacher_lengths, 5),
        top_k=k,
        matching=method,
        sequential_log_weight=0.3,
        sinkhorn_weight=0.7,
    )
    torch.testing.assert_close(torch.stack(terms), torch.stack(expected), rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(terms.total, student)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("setting", [{"temperature": 1.5}, {"epsilon": 0.05}, {"iterations": 3}])
def test_sinkhorn_settings_reach_the_term(setting):
    student, teacher = logits(1, 3, 6, seed=3), logits(1, 4, 5, seed=4)
    expected = oracle(student, teacher, (3,), (4,), k=4, **setting)
    named = {f"sinkhorn_{name}": value for name, value in setting.items()}
    terms = multilevel_ot_loss(student, teacher, prefix_masks((3,), 3), prefix_masks((4,), 4), top_k=4, **named)
    torch.testing.assert_close(terms.sinkhorn, expected[3], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(terms.total, expected[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 6), (5, 1)])
def test_plan_equals_pot(rows, columns):
    cost = logits(1, rows, columns, seed=5).abs()
    plan = sinkhorn_plan(cost, epsilon=0.5, iterations=500)[0]
    uniform = (
        torch.full((rows,), 1 / rows, dtype=torch.float64),
        torch.full((columns,), 1 / columns, dtype=torch.float64),
    )
    expected = rows * ot.sinkhorn(*uniform, cost[0], 0.5, numItermax=5000, stopThr=1e-15)
    torch.testing.assert_close(plan, expected, rtol=1e-10, atol=1e-10)


def distances(student, teacher_values):
    """(B, k, V_s) L1 distances between teacher and student columns, equal lengths."""
    probabilities = student.softmax(-1)
    return (teacher_values.unsqueeze(-1) - probabilities.unsqueeze(-2)).abs().sum(1)


def teacher_columns(teacher, mask, k):
    ids = rank_columns(teacher, mask, k)
    return teacher.softmax(-1).gather(-1, ids.unsqueeze(1).expand(-1, teacher.shape[1], -1))


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_large_vocabularies_are_matched_as_scipy_and_a_plain_greedy_do(scale):
    # Above 4,096 columns candidates are pruned, and above 40,000 they come in several parts.
    tokens, vocabulary, k = 6, 45_000, 12
    student, teacher = logits(2, tokens, vocabulary, seed=6, scale=scale), logits(2, tokens, 900, seed=7, scale=scale)
    mask = torch.ones(2, tokens, dtype=torch.bool)
    values = teacher_columns(teacher, mask, k)
    greedy = match_columns(student, values, mask, mask, "greedy")
    exact = match_columns(student, values, mask, mask, "exact")
    for sequence in range(2):
        probabilities = student[sequence].softmax(-1)
        costs = torch.cdist(values[sequence].T.contiguous(), probabilities.T.contiguous(), p=1.0)
        rows, best = linear_sum_assignment(costs.numpy())
        least = costs[rows, best].sum()
        torch.testing.assert_close(costs[rows, exact[sequence]].sum(), least, rtol=1e-10, atol=1e-10)
        free = torch.ones(vocabulary, dtype=torch.bool)
        for row in range(k):
            choice = costs[row].masked_fill(~free, torch.inf).argmin()
            assert greedy[sequence, row] == choice
            free[choice] = False


def test_exact_is_the_best_of_all_permutations():
    student, teacher = logits(1, 3, 6, seed=8), logits(1, 3, 5, seed=9)
    mask = torch.ones(1, 3, dtype=torch.bool)
    values = teacher_columns(teacher, mask, 4)
    costs = distances(student, values)[0]
    chosen = match_columns(student, values, mask, mask, "exact")[0]
    best = min(sum(costs[i, p[i]] for i in range(4)) for p in itertools.permutations(range(6), 4))
    torch.testing.assert_close(costs[range(4), chosen].sum(), best, rtol=1e-12, atol=1e-12)
