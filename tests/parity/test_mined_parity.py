"""MinED and its pass over the logits against loops, torch's own KL, and naive torch for gradients and precision."""

import math

import pytest
import torch

from crosskd.losses.base import StudentAnswers
from crosskd.losses.mined import MinED
from crosskd.losses.partition_pass import partition_pass
from crosskd.losses.targets import TeacherTargets, targets_from_logits
from helpers_tolerances import rounding


def softmax(row):
    largest = max(row)
    exponentials = [math.exp(value - largest) for value in row]
    return [value / math.fsum(exponentials) for value in exponentials]


def by_hand(student, teacher, alignment, student_mask, teacher_mask, table, top_entries):
    """Loops over sequences, tokens and entries, in Python floats."""
    total = tail_mass = unmapped_mass = 0.0
    for b in range(student.shape[0]):
        for i in range(student.shape[1]):
            j = int(alignment[b, i])
            if not student_mask[b, i] or j < 0 or not teacher_mask[b, j]:
                continue
            s, p = softmax(student[b, i].tolist()), softmax(teacher[b, j].tolist())
            order = sorted(range(len(p)), key=lambda v: -p[v])
            kept, tail = order[:top_entries], order[len(order) if top_entries is None else top_entries :]
            q = {}
            for v in kept:
                if v < len(table) and table[v] >= 0:
                    q[table[v]] = q.get(table[v], 0.0) + p[v]
            outside = math.fsum(p[v] for v in tail)
            unmapped = math.fsum(p[v] for v in kept) - math.fsum(q.values())
            tail_mass, unmapped_mass = tail_mass + outside, unmapped_mass + unmapped
            if not q:
                continue
            rest_s = math.fsum(s[v] for v in range(len(s)) if v not in q)
            total += math.fsum(mass * math.log(mass / s[v]) for v, mass in q.items())
            rest = outside + unmapped
            if rest > 1e-15 and rest_s > 0:
                total += rest * math.log(rest / rest_s)
    return {"distillation": total, "tail_mass": tail_mass, "unmapped_mass": unmapped_mass}


def problem(seed=0, dtype=torch.float64, v_s=8, v_t=11):
    generator = torch.Generator().manual_seed(seed)
    student = (2 * torch.randn(3, 5, v_s, generator=generator, dtype=torch.float64)).to(dtype)
    teacher = (2 * torch.randn(3, 4, v_t, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(v_s, (3, 5), generator=generator)
    labels[1, 4:], labels[2, 2:] = -100, -100
    student_mask = labels != -100
    student_mask[0, 4] = False  # the end-of-sequence token has a label and no teacher
    teacher_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    alignment = torch.tensor([[0, 1, -1, 3, -1], [0, 0, 2, 3, 1], [-1, 0, 0, -1, -1]])
    table = torch.randint(-1, v_s, (v_t - 1,), generator=generator)  # the teacher's last column only pads
    return student, teacher, labels, student_mask, teacher_mask, alignment, table


@pytest.mark.parametrize("top_entries", [None, 1, 2, 5, 10])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_definition(top_entries, seed):
    student, teacher, labels, student_mask, teacher_mask, alignment, table = problem(seed)
    method = MinED(top_entries).with_vocabulary_map(table)
    targets = targets_from_logits(teacher, teacher_mask, method.request())
    targets = TeacherTargets.from_dict(targets.to_dict())
    terms = method.terms(StudentAnswers(student, labels, student_mask, alignment), targets)
    expected = by_hand(student, teacher, alignment, student_mask, teacher_mask, table.tolist(), top_entries)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, abs=1e-10)
    cross_entropy = torch.nn.functional.cross_entropy(student.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(terms["cross_entropy"], cross_entropy, rtol=0, atol=1e-10)


def test_with_a_bijective_map_and_all_entries_it_is_torchs_kl_divergence():
    student, _, labels, *_ = problem()
    teacher = torch.randn(3, 5, 8, dtype=torch.float64)
    everything, table = torch.ones(3, 5, dtype=torch.bool), torch.randperm(8)
    method = MinED(None).with_vocabulary_map(table)
    answers = StudentAnswers(student, labels, everything, torch.arange(5).expand(3, 5))
    terms = method.terms(answers, targets_from_logits(teacher, everything, method.request()))
    mapped = torch.empty_like(teacher)
    mapped[..., table] = teacher.log_softmax(-1)
    expected = torch.nn.functional.kl_div(student.log_softmax(-1), mapped, reduction="sum", log_target=True)
    torch.testing.assert_close(terms["distillation"], expected, rtol=0, atol=1e-10)
    assert terms["tail_mass"] == 0
    assert terms["unmapped_mass"].abs() < 1e-12


@pytest.mark.parametrize("top_entries", [None, 1, 4])
def test_gradcheck(top_entries):
    student, teacher, labels, student_mask, teacher_mask, alignment, table = problem()
    method = MinED(top_entries).with_vocabulary_map(table)
    targets = targets_from_logits(teacher, teacher_mask, method.request())

    def loss(logits):
        terms = method.terms(StudentAnswers(logits, labels, student_mask, alignment), targets)
        return terms["cross_entropy"] + 0.7 * terms["distillation"]

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


def naive_partition(logits, ids, keep, labels):
    log_softmax = logits.log_softmax(-1)
    cross_entropy = torch.nn.functional.nll_loss(log_softmax.flatten(0, 1), labels.flatten(), reduction="sum")
    return (
        cross_entropy,
        log_softmax.gather(-1, ids).masked_fill(~keep, 0),
        log_softmax.scatter(-1, ids, -torch.inf).logsumexp(-1),
    )


def partition_problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    logits = (3 * torch.randn(2, 3, 9, generator=generator, dtype=torch.float64)).to(dtype)
    ids = torch.tensor([[[0, 3, 3], [1, 2, 8], [5, 5, 5]], [[0, 0, 7], [4, 6, 4], [2, 3, 4]]])
    keep = torch.tensor([[[1, 1, 0], [1, 1, 1], [1, 0, 0]], [[0, 1, 1], [1, 1, 0], [1, 1, 1]]]).bool()
    return logits, ids, keep, torch.tensor([[3, 0, -100], [7, 4, 1]])


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 4])
def test_partition_pass_equals_naive_torch_in_value_and_gradient(chunk_size):
    logits, ids, keep, labels = partition_problem()
    expected_logits, logits = logits.clone().requires_grad_(), logits.requires_grad_()
    expected = naive_partition(expected_logits, ids, keep, labels)
    result = partition_pass(logits, ids, keep, labels, chunk_size=chunk_size)
    actual = (result.cross_entropy, result.log_probabilities, result.log_rest)
    generator = torch.Generator().manual_seed(6)
    weights = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in expected]
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10)
    sum((w * value).sum() for w, value in zip(weights, actual, strict=True)).backward()
    sum((w * value).sum() for w, value in zip(weights, expected, strict=True)).backward()
    torch.testing.assert_close(logits.grad, expected_logits.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_partition_pass_is_no_worse_than_naive_torch_in_low_precision(dtype):
    low, ids, keep, labels = partition_problem(dtype)
    inputs = {name: x.requires_grad_() for name, x in
              {"truth": low.double(), "plain": low.clone(), "ours": low.clone()}.items()}  # fmt: skip
    values, gradients = {}, {}
    for name, logits in inputs.items():
        if name == "ours":
            result = partition_pass(logits, ids, keep, labels)
            parts = (result.cross_entropy, result.log_probabilities, result.log_rest)
        else:
            parts = naive_partition(logits, ids, keep, labels)
        values[name] = torch.cat([part.double().flatten() for part in parts])
        (gradients[name],) = torch.autograd.grad(sum(part.sum() for part in parts), logits)
    for results in (values, gradients):
        truth = results["truth"]
        errors = {name: (results[name].double() - truth).norm() for name in ("plain", "ours")}
        assert errors["ours"] <= errors["plain"] + 1e-6 * truth.norm()


def test_a_student_surer_than_its_teacher_still_gets_the_right_gradient():
    """The remainder of 1e-11 that float32 cannot see in 1 - sum is what the loss and its gradient are about."""
    teacher = torch.tensor([[[9.0, 8.0, 0.0, 0.0, -1.0, -1.0]]])
    student = torch.tensor([[[25.0, 24.0, -1.0, -2.0, 0.0, -1.0]]])
    mask, method = torch.ones(1, 1, dtype=torch.bool), MinED(2).with_vocabulary_map(torch.arange(6))
    results = []
    for dtype in (torch.float64, torch.float32):
        logits = student.to(dtype).requires_grad_()
        answers = StudentAnswers(logits, torch.tensor([[0]]), mask, torch.tensor([[0]]))
        terms = method.terms(answers, targets_from_logits(teacher.to(dtype), mask, method.request()))
        (gradient,) = torch.autograd.grad(terms["distillation"], logits)
        results.append((terms["distillation"].double(), gradient.double()))
    (truth, true_gradient), (value, gradient) = results
    error = rounding(
        torch.float32, 6
    )  # of the probabilities that a gradient adds up; logarithms are as exact as logits
    torch.testing.assert_close(value, truth, rtol=0, atol=error * float(student.detach().max()))
    torch.testing.assert_close(gradient, true_gradient, rtol=0, atol=error)
    assert gradient[0, 0, 4] < -1e-4
