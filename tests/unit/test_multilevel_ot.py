"""MultiLevelOT: gradients, switches, ablations, targets alone, precision, extremes."""

import ot
import pytest
import torch
import torch.nn.functional as F

from crosskd.errors import UsageError
from crosskd.losses import StudentAnswers, create_method, multilevel_ot_loss, targets_from_logits, uld_loss


def logits(*shape, seed=0, scale=2.0, dtype=torch.float64):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def masks(student_lengths, teacher_lengths, student_tokens=None, teacher_tokens=None):
    pairs = ((student_lengths, student_tokens), (teacher_lengths, teacher_tokens))
    return [torch.arange(width or max(n)) < torch.tensor(n).unsqueeze(1) for n, width in pairs]


def terms_of(student, teacher, student_mask, teacher_mask, labels=None, **settings):
    method = create_method("multilevel_ot", **settings)
    labels = torch.zeros_like(student_mask, dtype=torch.int64) if labels is None else labels
    targets = targets_from_logits(teacher, teacher_mask, method.request())
    return method.terms(StudentAnswers(student, labels, student_mask), targets)


@pytest.mark.parametrize(
    "settings",
    [
        {"formulation": formulation, "matching": matching}
        for formulation, matching in [("paper", "fast"), ("paper", "greedy"), ("paper", "exact")]
    ]
    + [{"formulation": "authors", "matching": matching} for matching in ("fast", "greedy")]
    + [
        {"ranking": "token"},
        {"sinkhorn_level": "token"},
        {"top_k": None},
        {"top_k": 0, "ranking": "token", "sequential_log_weight": 0.0},
        {"sequential_log_temperature": 1.5, "sinkhorn_temperature": 3.0},
    ],
    ids=str,
)
def test_gradcheck(settings):
    student, teacher = logits(2, 4, 7).requires_grad_(), logits(2, 3, 9, seed=1)
    # Two tokens at least: on one, assignments of the same cost abound, and a step of gradcheck changes the choice.
    pair = masks((4, 2), (3, 3))

    def total(values):
        terms = terms_of(values, teacher, *pair, **{"top_k": 5, "sinkhorn_iterations": 10} | settings)
        return terms["cross_entropy"] + terms["distillation"]

    assert torch.autograd.gradcheck(total, student)


@pytest.mark.parametrize("settings", [{}, {"matching": "exact"}, {"formulation": "authors"}, {"ranking": "token"}])
def test_targets_alone_give_what_logits_give(settings):
    """Stored one example at a time and stacked again, where the formulation allows it."""
    student, teacher = logits(3, 5, 60), logits(3, 6, 70, seed=1)
    student_mask, teacher_mask = masks((5, 3, 1), (6, 2, 4))
    method = create_method("multilevel_ot", **settings)
    targets = targets_from_logits(teacher, teacher_mask, method.request())
    examples = [targets.example(index).to_dict() for index in range(3)]
    stacked = type(targets).stack(examples)
    answers = StudentAnswers(student, torch.zeros(3, 5, dtype=torch.int64), student_mask)
    expected = terms_of(student, teacher, student_mask, teacher_mask, **settings)
    for name, value in method.terms(answers, stacked).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)


def test_distillation_is_the_weighted_sum_and_terms_switch_off_alone():
    student, teacher = logits(2, 4, 30), logits(2, 4, 40, seed=1)
    pair = masks((4, 3), (4, 4))
    weights = {"absolute_difference": 0.7, "sequential_log": 0.2, "sinkhorn": 0.4}
    everything = terms_of(student, teacher, *pair, **{f"{name}_weight": value for name, value in weights.items()})
    expected = sum(value * everything[name] for name, value in weights.items())
    torch.testing.assert_close(everything["distillation"], expected, rtol=1e-12, atol=1e-12)
    for kept in weights:
        settings = {f"{name}_weight": 1.0 if name == kept else 0.0 for name in weights}
        alone = terms_of(student, teacher, *pair, **settings)
        torch.testing.assert_close(alone["distillation"], everything[kept], rtol=1e-12, atol=1e-12)
        assert [name for name in weights if alone[name] != 0] == [kept]
    nothing = terms_of(student.requires_grad_(), teacher, *pair, **{f"{name}_weight": 0.0 for name in weights})
    assert nothing["distillation"].item() == 0
    assert nothing["distillation"].requires_grad


def test_cross_entropy_counts_labels_that_distillation_does_not():
    """The end of the sequence is a label, and no token of the distillation."""
    student, teacher = logits(1, 4, 12), logits(1, 3, 15, seed=1)
    labels = torch.tensor([[4, 2, 7, 1]])
    student_mask, teacher_mask = masks((3,), (3,), 4)
    terms = terms_of(student, teacher, student_mask, teacher_mask, labels)
    expected = F.cross_entropy(student[0], labels[0], reduction="sum")
    torch.testing.assert_close(terms["cross_entropy"], expected, rtol=1e-12, atol=1e-12)
    direct = multilevel_ot_loss(student[:, :3], teacher, student_mask[:, :3], teacher_mask)
    torch.testing.assert_close(terms["distillation"], direct.total, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("vocabularies", [(30, 40), (40, 30), (30, 30)])
def test_token_ranking_without_truncation_is_uld(vocabularies):
    student, teacher = logits(2, 5, vocabularies[0]), logits(2, 4, vocabularies[1], seed=1)
    pair = masks((5, 2), (4, 3))
    settings = {"ranking": "token", "top_k": None, "sequential_log_weight": 0.0, "sinkhorn_weight": 0.0}
    terms = terms_of(student, teacher, *pair, **settings)
    torch.testing.assert_close(terms["distillation"], uld_loss(student, teacher, *pair), rtol=1e-10, atol=1e-10)


def test_no_truncation_compares_the_rest_with_zeros():
    student, teacher = logits(1, 3, 8), logits(1, 3, 6, seed=1)
    s, t = student[0].softmax(-1), teacher[0].softmax(-1)
    s, t = (p[:, p.sum(0).argsort(descending=True)] for p in (s, t))
    terms = multilevel_ot_loss(student, teacher, *masks((3,), (3,)), top_k=None)
    torch.testing.assert_close(terms.absolute_difference, (F.pad(t, (0, 2)) - s).abs().sum(), rtol=1e-10, atol=1e-10)
    s, t = ((p / 2).softmax(-1) for p in (student[0], teacher[0]))
    order = [(p[0].softmax(-1)).sum(0).argsort(descending=True) for p in (student, teacher)]
    cost = torch.cdist(F.pad(t[:, order[1]], (0, 2)), s[:, order[0]], p=1.0)
    kernel = (-cost / 0.1).exp()
    for _ in range(20):
        kernel = kernel / kernel.sum(1, keepdim=True)
        kernel = kernel / kernel.sum(0, keepdim=True)
    torch.testing.assert_close(terms.sinkhorn, (kernel * cost).sum(), rtol=1e-10, atol=1e-10)


def test_token_level_sinkhorn_is_transport_between_columns():
    student, teacher = logits(1, 3, 20), logits(1, 2, 25, seed=1)
    settings = {"top_k": 6, "sinkhorn_level": "token", "sinkhorn_iterations": 2000, "sinkhorn_epsilon": 0.5}
    terms = terms_of(student, teacher, *masks((3,), (2,)), **settings)
    s, t = ((p[0] / 2).softmax(-1) for p in (student, teacher))
    order = [(p[0].softmax(-1)).sum(0).argsort(descending=True)[:6] for p in (student, teacher)]
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    expected = 0.0
    for token in range(2):
        cost = (t[token, order[1]].unsqueeze(1) - s[token, order[0]]).abs()
        expected += 6 * (ot.sinkhorn(uniform, uniform, cost, 0.5, stopThr=1e-15, numItermax=5000) * cost).sum()
    torch.testing.assert_close(terms["sinkhorn"], expected, rtol=1e-10, atol=1e-10)


def test_envelope_holds_the_plan_and_gives_the_same_value():
    student, teacher = logits(1, 4, 20).requires_grad_(), logits(1, 4, 25, seed=1)
    pair = masks((4,), (4,))
    results = {}
    for plan_gradient in ("unrolled", "envelope"):
        settings = {"absolute_difference_weight": 0.0, "sequential_log_weight": 0.0, "plan_gradient": plan_gradient}
        value = terms_of(student, teacher, *pair, **settings)["distillation"]
        results[plan_gradient] = value, torch.autograd.grad(value, student)[0]
    torch.testing.assert_close(results["unrolled"][0], results["envelope"][0], rtol=1e-12, atol=1e-12)
    assert (results["unrolled"][1] - results["envelope"][1]).norm() > 1e-3 * results["unrolled"][1].norm()


def test_fewer_columns_than_k_and_one_of_everything():
    terms = multilevel_ot_loss(logits(1, 1, 3), logits(1, 200, 2, seed=1), *masks((1,), (200,)))
    assert all(term.isfinite() and term > 0 for term in terms)
    wide = multilevel_ot_loss(logits(1, 1, 3), logits(1, 200, 2, seed=1), *masks((1,), (200,)), top_k=2)
    torch.testing.assert_close(torch.stack(terms), torch.stack(wide), rtol=0, atol=0)


@pytest.mark.parametrize("formulation", ["paper", "authors"])
@pytest.mark.parametrize("lengths", [((0, 0), (0, 0)), ((2, 0), (0, 3)), ((2, 3), (0, 0))])
def test_no_answer_tokens_give_zero_with_a_graph(formulation, lengths):
    student, teacher = logits(2, 3, 9).requires_grad_(), logits(2, 3, 9, seed=1)
    terms = multilevel_ot_loss(student, teacher, *masks(*lengths, 3, 3), formulation=formulation)
    terms.total.backward()
    assert terms.total.shape == ()
    assert student.grad.isfinite().all()
    if formulation == "paper" or lengths == ((0, 0), (0, 0)):
        assert terms.total.item() == 0
        assert (student.grad == 0).all()


@pytest.mark.parametrize("matching", ["fast", "greedy", "exact"])
def test_logits_of_ten_thousand_and_ties(matching):
    values = (logits(2, 3, 12, scale=1e4, dtype=torch.float32), torch.zeros(2, 3, 12))
    for student in values:
        student = student.clone().requires_grad_()
        teacher = logits(2, 3, 15, seed=1, scale=1e4, dtype=torch.float32)
        pair = masks((3, 3), (3, 3))
        terms = multilevel_ot_loss(student, teacher, *pair, matching=matching)
        terms.total.backward()
        exact = multilevel_ot_loss(student.detach().double(), teacher.double(), *pair, matching=matching)
        torch.testing.assert_close(torch.stack(terms).double(), torch.stack(exact), rtol=1e-5, atol=1e-5)
        assert student.grad.isfinite().all()


def test_impossible_columns_of_the_teacher_cost_nothing():
    student, teacher = logits(1, 2, 5), logits(1, 2, 5, seed=1)
    teacher[..., 3] = -torch.inf
    student[..., 0] = -torch.inf
    terms = multilevel_ot_loss(student, teacher, *masks((2,), (2,)))
    assert all(term.isfinite() for term in terms)


def naive(student, teacher, k=10):
    """Plain torch in the dtype of the logits, sequences of full length, fast matching."""
    total = student.new_zeros(())
    for s_logits, t_logits in zip(student, teacher, strict=True):
        order = [values.softmax(-1).sum(0).argsort(descending=True)[:k] for values in (s_logits, t_logits)]
        s, t = s_logits.softmax(-1)[:, order[0]], t_logits.softmax(-1)[:, order[1]]
        total = total + (t - s).abs().sum() - 0.1 * (t * s_logits.log_softmax(-1)[:, order[0]]).sum()
        s, t = (s_logits / 2).softmax(-1)[:, order[0]], (t_logits / 2).softmax(-1)[:, order[1]]
        cost = (t.unsqueeze(1) - s).abs().sum(-1)
        kernel = (-cost / 0.1).exp()
        for _ in range(20):
            kernel = kernel / kernel.sum(1, keepdim=True)
            kernel = kernel / kernel.sum(0, keepdim=True)
        total = total + 0.1 * (kernel * cost).sum()
    return total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_worse_than_plain_torch_in_low_precision(dtype):
    student, teacher = logits(2, 6, 80, dtype=dtype).requires_grad_(), logits(2, 6, 90, seed=1, dtype=dtype)
    pair = masks((6, 6), (6, 6))
    ours, plain = multilevel_ot_loss(student, teacher, *pair, top_k=10).total, naive(student, teacher)
    exact = student.detach().double().requires_grad_()
    truth = naive(exact, teacher.double())
    assert ours.dtype == torch.float32
    assert abs(ours - truth) <= abs(plain - truth) + 1e-5 * abs(truth)
    gradient, plain_gradient = (torch.autograd.grad(value, student)[0].double() for value in (ours, plain))
    (truth_gradient,) = torch.autograd.grad(truth, exact)
    assert (gradient - truth_gradient).norm() <= (plain_gradient - truth_gradient).norm() + 1e-6


def test_autocast_does_not_lower_the_precision():
    student, teacher = logits(2, 4, 30, dtype=torch.float32), logits(2, 4, 30, seed=1, dtype=torch.float32)
    pair = masks((4, 4), (4, 4))
    expected = multilevel_ot_loss(student, teacher, *pair, matching="exact")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = multilevel_ot_loss(student, teacher, *pair, matching="exact")
    torch.testing.assert_close(torch.stack(result), torch.stack(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"matching": "greedi"}, "did you mean 'greedy'"),
        ({"formulation": "author"}, "did you mean 'authors'"),
        ({"top_k": -1}, "top_k: got -1"),
        ({"sinkhorn_epsilon": 0.0}, "sinkhorn_epsilon"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations"),
        ({"sinkhorn_weight": -0.1}, "sinkhorn_weight"),
        ({"ranking": "token", "matching": "exact"}, "'fast' with ranking='token'"),
        ({"sinkhorn_level": "token", "top_k": None}, "truncation"),
        ({"formulation": "authors", "sinkhorn_iterations": 50}, "published code"),
        ({"formulation": "authors", "matching": "exact"}, "published code"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UsageError, match=message):
        create_method("multilevel_ot", **settings)


def test_targets_that_do_not_fit():
    student, teacher = logits(1, 2, 30), logits(1, 2, 30, seed=1)
    mask = torch.ones(1, 2, dtype=torch.bool)
    answers = StudentAnswers(student, torch.zeros(1, 2, dtype=torch.int64), mask)
    small = create_method("multilevel_ot", top_k=5)
    targets = targets_from_logits(teacher, mask, small.request())
    for settings, message in [
        ({"top_k": 6}, "at most the 5 columns"),
        ({"top_k": 5, "sinkhorn_temperature": 3.0}, "temperature: got 3.0"),
        ({"top_k": 5, "ranking": "token"}, "entry_log_probabilities"),
        ({"top_k": 5, "formulation": "authors"}, "ranked_with"),
    ]:
        with pytest.raises(UsageError, match=message):
            create_method("multilevel_ot", **settings).terms(answers, targets)
    with pytest.raises(UsageError, match="got 'none'"):
        small.terms(answers, None)
    authors = create_method("multilevel_ot", formulation="authors")
    with pytest.raises(UsageError, match="made for 'authors'"):
        small.terms(answers, targets_from_logits(teacher, mask, authors.request()))
