"""Properties of MultiLevelOT that hold for every input."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from crosskd.losses import StudentAnswers, TeacherTargets, create_method, multilevel_ot_loss, targets_from_logits
from crosskd.transport import match_columns, rank_columns, sinkhorn_plan

SEEDS = st.integers(0, 10**6)
MATCHINGS = st.sampled_from(["fast", "greedy", "exact"])
LENGTHS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3)


def logits(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def batch(seed, lengths, vocabularies=(11, 9)):
    """Student and teacher logits and masks, as wide as the longest answers."""
    result = []
    for side in (0, 1):
        counts = torch.tensor([pair[side] for pair in lengths])
        result.append(logits(seed + side, len(lengths), int(counts.max()), vocabularies[side]))
        result.append(torch.arange(int(counts.max())) < counts.unsqueeze(1))
    return result[0], result[2], result[1], result[3]


def loss(student, teacher, student_mask, teacher_mask, **named):
    return torch.stack(multilevel_ot_loss(student, teacher, student_mask, teacher_mask, **{"top_k": 6} | named))


def close(first, second):
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-10)


@settings(max_examples=25)
@given(SEEDS, LENGTHS, MATCHINGS)
def test_order_of_either_vocabulary_changes_nothing(seed, lengths, matching):
    student, teacher, *masks = batch(seed, lengths)
    generator = torch.Generator().manual_seed(seed)
    shuffled = [x[..., torch.randperm(x.shape[-1], generator=generator)] for x in (student, teacher)]
    close(loss(*shuffled, *masks, matching=matching), loss(student, teacher, *masks, matching=matching))


@settings(max_examples=25)
@given(SEEDS, LENGTHS, MATCHINGS)
def test_identical_models_have_no_absolute_difference(seed, lengths, matching):
    student, _, mask, _ = batch(seed, lengths)
    assert loss(student, student.clone(), mask, mask, matching=matching)[1] == 0


@settings(max_examples=25)
@given(SEEDS, st.integers(1, 5))
def test_exact_costs_least(seed, tokens):
    student, teacher = logits(seed, 1, tokens, 10), logits(seed + 1, 1, tokens, 8)
    mask = torch.ones(1, tokens, dtype=torch.bool)
    ids = rank_columns(teacher, mask, 5)
    values = teacher.softmax(-1)[..., ids[0]]
    costs = {}
    for method in ("fast", "greedy", "exact"):
        chosen = match_columns(student, values, mask, mask, method)[0]
        costs[method] = (values - student.softmax(-1)[..., chosen]).abs().sum().item()
    assert costs["exact"] <= min(costs["fast"], costs["greedy"]) + 1e-12


@settings(max_examples=25)
@given(SEEDS, st.integers(1, 6), st.integers(1, 6))
def test_plan_has_its_marginals(seed, rows, columns):
    plan = sinkhorn_plan(logits(seed, 2, rows, columns).abs(), epsilon=1.0, iterations=300)
    close(plan.sum(1), torch.full((2, columns), rows / columns, dtype=torch.float64))
    close(plan.sum(2), torch.ones(2, rows, dtype=torch.float64))
    assert (plan >= 0).all()


@settings(max_examples=25)
@given(SEEDS, st.floats(0.01, 100), st.integers(1, 30))
def test_cost_and_epsilon_scale_together(seed, factor, iterations):
    cost = logits(seed, 2, 4, 3).abs()
    close(sinkhorn_plan(cost * factor, 0.3 * factor, iterations), sinkhorn_plan(cost, 0.3, iterations))


@settings(max_examples=25)
@given(SEEDS, LENGTHS, MATCHINGS, st.integers(0, 4), st.integers(0, 4))
def test_padding_changes_nothing(seed, lengths, matching, student_more, teacher_more):
    student, teacher, student_mask, teacher_mask = batch(seed, lengths)
    expected = loss(student, teacher, student_mask, teacher_mask, matching=matching)
    padded = []
    for values, mask, more in ((student, student_mask, student_more), (teacher, teacher_mask, teacher_more)):
        garbage = values.masked_fill(~mask.unsqueeze(-1), 50.0)
        padded.append(torch.nn.functional.pad(garbage, (0, 0, 0, more), value=-30.0))
        padded.append(torch.nn.functional.pad(mask, (0, more)))
    close(loss(padded[0], padded[2], padded[1], padded[3], matching=matching), expected)


@settings(max_examples=25)
@given(SEEDS, LENGTHS, MATCHINGS)
def test_a_batch_is_its_sequences_one_by_one(seed, lengths, matching):
    student, teacher, *masks = batch(seed, lengths)
    inputs = [student.requires_grad_(), teacher, *masks]
    whole = loss(*inputs, matching=matching)
    alone = [loss(*(x[i : i + 1] for x in inputs), matching=matching) for i in range(len(lengths))]
    close(whole, torch.stack(alone).sum(0))
    gradients = [torch.autograd.grad(value[0], student)[0] for value in (whole, torch.stack(alone).sum(0))]
    close(*gradients)


@settings(max_examples=25)
@given(SEEDS, LENGTHS, MATCHINGS, st.integers(1, 9))
def test_chunks_change_nothing(seed, lengths, matching, chunk_size):
    student, teacher, student_mask, teacher_mask = batch(seed, lengths)
    results = []
    for size in (None, chunk_size):
        method = create_method("multilevel_ot", top_k=6, matching=matching, chunk_size=size)
        values = student.clone().requires_grad_()
        labels = torch.where(student_mask, 3, -100)
        targets = targets_from_logits(teacher, teacher_mask, method.request(), chunk_size=size)
        terms = method.terms(StudentAnswers(values, labels, student_mask), targets)
        total = terms["cross_entropy"] + terms["distillation"]
        results.append((total, torch.autograd.grad(total, values)[0]))
    close(results[0][0], results[1][0])
    close(results[0][1], results[1][1])


@settings(max_examples=25)
@given(SEEDS, LENGTHS, st.permutations(range(3)))
def test_targets_of_examples_in_any_order_make_a_batch(seed, lengths, order):
    _, teacher, _, mask = batch(seed, lengths)
    request = create_method("multilevel_ot", top_k=6).request()
    whole = targets_from_logits(teacher, mask, request)
    order = [index for index in order if index < len(lengths)]
    stacked = TeacherTargets.stack([whole.example(index) for index in order])
    for place, index in enumerate(order):
        for name, value in stacked.example(place).tensors().items():
            torch.testing.assert_close(value, whole.example(index).tensors()[name], rtol=0, atol=0)
