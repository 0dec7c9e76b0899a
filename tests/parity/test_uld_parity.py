"""ULD against Eq. 7 written as loops, and against naive torch for gradients and low precision."""

import math

import pytest
import torch
from torch.nn.functional import pad

from crosskd.losses.base import StudentAnswers
from crosskd.losses.targets import TeacherTargets, targets_from_logits
from crosskd.losses.uld import ULD, uld_loss


def softmax(row):
    largest = max(row)
    exponentials = [math.exp(value - largest) for value in row]
    return [value / math.fsum(exponentials) for value in exponentials]


def equation_7(student, teacher, student_mask, teacher_mask):
    """Loops over sequences, tokens and ranks, in Python floats."""
    total = 0.0
    for b in range(student.shape[0]):
        for t in range(min(student.shape[1], teacher.shape[1])):
            if not (student_mask[b, t] and teacher_mask[b, t]):
                continue
            s = sorted(softmax(student[b, t].tolist()), reverse=True)
            p = sorted(softmax(teacher[b, t].tolist()), reverse=True)
            size = max(len(s), len(p))
            s, p = s + [0.0] * (size - len(s)), p + [0.0] * (size - len(p))
            total += math.fsum(abs(left - right) for left, right in zip(s, p, strict=True))
    return total


def naive(student, teacher, mask):
    """Plain torch in the inputs' own dtype; equal lengths."""
    s, p = (x.softmax(-1).sort(-1, descending=True).values for x in (student, teacher))
    size = max(s.shape[-1], p.shape[-1])
    s, p = pad(s, (0, size - s.shape[-1])), pad(p, (0, size - p.shape[-1]))
    return ((s - p).abs().sum(-1) * mask).sum()


def problem(v_s, v_t, t_s=4, t_t=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student = 3 * torch.randn(2, t_s, v_s, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(2, t_t, v_t, generator=generator, dtype=torch.float64)
    lengths_s, lengths_t = torch.tensor([[t_s], [max(1, t_s - 2)]]), torch.tensor([[max(1, t_t - 1)], [t_t]])
    masks = torch.arange(t_s) < lengths_s, torch.arange(t_t) < lengths_t
    return student.to(dtype), teacher.to(dtype), *masks


SIZES = [(7, 7, 4, 4), (5, 9, 4, 4), (9, 5, 3, 6), (6, 8, 5, 2), (1, 4, 1, 3)]


@pytest.mark.parametrize(("v_s", "v_t", "t_s", "t_t"), SIZES)
def test_equals_equation_7(v_s, v_t, t_s, t_t):
    student, teacher, student_mask, teacher_mask = problem(v_s, v_t, t_s, t_t)
    expected = equation_7(student, teacher, student_mask, teacher_mask)
    assert expected > 0
    assert uld_loss(student, teacher, student_mask, teacher_mask).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("v_s", "v_t", "t_s", "t_t"), SIZES)
@pytest.mark.parametrize("top_entries", [None, 1, 2, 4, 5, 8])
def test_targets_give_what_logits_give_and_the_tail_mass_bounds_the_error(v_s, v_t, t_s, t_t, top_entries):
    student, teacher, student_mask, teacher_mask = problem(v_s, v_t, t_s, t_t, seed=1)
    method = ULD(top_entries)
    targets = TeacherTargets.from_dict(targets_from_logits(teacher, teacher_mask, method.request()).to_dict())
    assert targets.entry_log_probabilities is not None
    assert targets.entry_log_probabilities.shape[-1] == min(top_entries or v_t, v_t)
    labels = torch.full((2, t_s), -100)
    terms = method.terms(StudentAnswers(student, labels, student_mask), targets)
    from_logits = uld_loss(student, teacher, student_mask, teacher_mask, top_entries=top_entries)
    assert terms["distillation"].item() == pytest.approx(from_logits.item(), abs=1e-10)
    missing = equation_7(student, teacher, student_mask, teacher_mask) - terms["distillation"].item()
    exact = top_entries is None or top_entries >= min(v_s, v_t)
    assert -1e-10 <= missing <= (1e-10 if exact else 2 * terms["tail_mass"].item() + 1e-10)
    if top_entries is None or top_entries >= v_t:
        assert terms["tail_mass"].item() == 0


def test_truncated_value_is_entries_plus_difference_of_the_rests():
    student, teacher, _, _ = problem(7, 9)
    mask = torch.ones(2, 4, dtype=torch.bool)
    s, p = (x.softmax(-1).sort(-1, descending=True).values for x in (student, teacher))
    expected = (s[..., :3] - p[..., :3]).abs().sum() + (s[..., 3:].sum(-1) - p[..., 3:].sum(-1)).abs().sum()
    assert uld_loss(student, teacher, mask, mask, top_entries=3).item() == pytest.approx(expected.item(), abs=1e-10)


@pytest.mark.parametrize("top_entries", [None, 3])
@pytest.mark.parametrize(("v_s", "v_t"), [(7, 5), (5, 7)])
def test_gradcheck(v_s, v_t, top_entries):
    student, teacher, student_mask, teacher_mask = problem(v_s, v_t, 3, 2)
    labels = torch.tensor([[1, 4, -100], [0, -100, -100]])
    targets = targets_from_logits(teacher, teacher_mask, ULD(top_entries).request())

    def loss(logits):
        terms = ULD(top_entries).terms(StudentAnswers(logits, labels, student_mask), targets)
        return terms["cross_entropy"] + 0.7 * terms["distillation"]

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_worse_than_naive_torch_in_low_precision(dtype):
    generator = torch.Generator().manual_seed(2)
    # No two equal logits in a row: which of them the larger teacher entry meets would be a matter of taste.
    values_of = (3 * torch.randn(100_000, generator=generator)).to(dtype).unique()
    student, teacher = (
        torch.stack([values_of[torch.randperm(len(values_of), generator=generator)[:size]] for _ in range(24)])
        for size in (400, 300)
    )
    student, teacher = student.view(3, 8, 400), teacher.view(3, 8, 300)
    mask = torch.ones(3, 8, dtype=torch.bool)
    inputs = {"truth": student.double(), "plain": student.clone(), "ours": student.clone()}
    teachers = {"truth": teacher.double(), "plain": teacher, "ours": teacher}
    values, gradients = {}, {}
    for name, logits in inputs.items():
        logits.requires_grad_()
        function = naive if name != "ours" else lambda s, p, m: uld_loss(s, p, m, m)
        value = function(logits, teachers[name], mask)
        (gradients[name],) = torch.autograd.grad(value, logits)
        values[name] = value.double()
    tolerance = 1e-5 * values["truth"]
    assert gradients["ours"].dtype == dtype
    assert (values["ours"] - values["truth"]).abs() <= (values["plain"] - values["truth"]).abs() + tolerance
    errors = {name: (gradients[name].double() - gradients["truth"]).norm() for name in ("plain", "ours")}
    assert errors["ours"] <= errors["plain"] + 1e-5 * gradients["truth"].norm()
