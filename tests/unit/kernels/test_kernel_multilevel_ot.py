"""Terms of MultiLevelOT and their gradients by kernels, in Triton's interpreter, against the torch code in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crosskd.kernels import VARIABLE
from crosskd.losses import StudentAnswers, TeacherTargets, create_method, multilevel_ot_loss, targets_from_logits
from crosskd.losses.multilevel_ot_paper import terms_by_kernels

SETTINGS: list[dict[str, Any]] = [
    {},
    {"sinkhorn_temperature": 1.0},
    {"sequential_log_temperature": 1.5},
    {"sequential_log_temperature": 2.0},
    {"sinkhorn_weight": 0.0},
    {"absolute_difference_weight": 0.0, "sequential_log_weight": 0.0},
    {"plan_gradient": "envelope", "sinkhorn_tolerance": 0.05},
    {"matching": "greedy"},
    {"matching": "exact"},
    {"top_k": 250},
]
ABLATIONS: list[dict[str, Any]] = [
    {"ranking": "token"},
    {"sinkhorn_level": "token"},
    {"top_k": 0},
]
STUDENT, TEACHER = 60, 70


def sides(tokens: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[StudentAnswers, Tensor, Tensor]:
    """Three sequences, of which one has no answer token on the student's side."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, tokens[0], STUDENT, generator=generator, dtype=torch.float64) * 3).to(dtype)
    teacher = (torch.randn(3, tokens[1], TEACHER, generator=generator, dtype=torch.float64) * 3).to(dtype)
    labels = torch.randint(STUDENT, (3, tokens[0]), generator=generator)
    labels[0, 2:], labels[2] = -100, -100
    mask = torch.arange(tokens[0]) < torch.tensor([2, tokens[0], 0])[:, None]
    teacher_mask = torch.arange(tokens[1]) < torch.tensor([tokens[1], tokens[1], 3])[:, None]
    return StudentAnswers(logits, labels, mask), teacher, teacher_mask


def stepped(
    settings: dict[str, Any], student: StudentAnswers, targets: TeacherTargets | None
) -> tuple[dict[str, Tensor], Tensor]:
    logits = student.logits.detach().requires_grad_()
    terms = create_method("multilevel_ot", **settings).terms(
        StudentAnswers(logits, student.labels, student.mask), targets
    )
    weights = dict(zip(terms, (1.3, 0.15, 0.7, -0.4, 0.2), strict=True))
    total = sum(weight * terms[name] for name, weight in weights.items())
    assert isinstance(total, Tensor)
    (gradient,) = torch.autograd.grad(total, logits)
    return {name: value.detach() for name, value in terms.items()}, gradient


@pytest.mark.parametrize(
    ("settings", "tokens"), [*((each, (6, 5)) for each in SETTINGS + ABLATIONS), ({}, (4, 7))], ids=str
)
def test_terms_and_gradient(settings: dict[str, Any], tokens: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"top_k": 20, "sinkhorn_iterations": 4, **settings}
    student, teacher, teacher_mask = sides(tokens)
    monkeypatch.setenv(VARIABLE, "torch")
    targets = targets_from_logits(teacher, teacher_mask, create_method("multilevel_ot", **settings).request())
    expected, right = stepped(settings, student, targets)
    monkeypatch.setenv(VARIABLE, "triton")
    found, gradient = stepped(settings, student, targets)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(gradient, right, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_and_stored_targets(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, teacher_mask = sides((6, 5), dtype)
    monkeypatch.setenv(VARIABLE, "torch")
    targets = targets_from_logits(teacher, teacher_mask, create_method("multilevel_ot").request()).to(
        dtype=torch.float16
    )
    exact = StudentAnswers(student.logits.double(), student.labels, student.mask)
    expected, right = stepped({}, exact, targets)
    monkeypatch.setenv(VARIABLE, "triton")
    found, gradient = stepped({}, student, targets)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=2e-6, atol=2e-6)
    assert gradient.dtype == dtype
    allowed = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(gradient.double(), right, rtol=allowed, atol=allowed)


def test_a_single_term_can_be_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each output has a gradient of its own, and none is needed of the others."""
    student, teacher, teacher_mask = sides((6, 5))
    names = ("total", "absolute_difference", "sequential_log", "sinkhorn")
    found: dict[str, list[Tensor]] = {}
    for choice in ("torch", "triton"):
        monkeypatch.setenv(VARIABLE, choice)
        found[choice] = []
        for name in names:
            logits = student.logits.detach().requires_grad_()
            terms = multilevel_ot_loss(logits, teacher, student.mask, teacher_mask, top_k=20, sinkhorn_iterations=5)
            found[choice] += torch.autograd.grad(getattr(terms, name), logits)
    for ours, expected in zip(found["triton"], found["torch"], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


def test_gradients_by_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "triton")
    student, teacher, teacher_mask = sides((3, 2))
    logits = student.logits[:2, :, :12].contiguous().requires_grad_()

    def total(values: Tensor) -> Tensor:
        masks = student.mask[:2], teacher_mask[:2]
        return multilevel_ot_loss(values, teacher[:2], *masks, top_k=5, sinkhorn_iterations=3).total

    assert torch.autograd.gradcheck(total, (logits,), eps=1e-6, atol=1e-6, fast_mode=True)


def test_the_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, teacher_mask = sides((6, 5))

    def terms(**settings: Any) -> object:
        method: Any = create_method("multilevel_ot", **settings)
        return terms_by_kernels(method, student, targets_from_logits(teacher, teacher_mask, method.request()))

    monkeypatch.setenv(VARIABLE, "triton")
    assert terms(top_k=20) is not None
    for settings in ABLATIONS:
        assert terms(**{"top_k": 20, **settings}) is None
    monkeypatch.setenv(VARIABLE, "torch")
    assert terms(top_k=20) is None
