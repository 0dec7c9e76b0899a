"""The fused output layer on a GPU: the numbers of logits, no wait for the device, and little memory.

Run with ``TRITON_INTERPRET=0 pytest -m gpu tests/gpu``.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from crosskd.losses.base import StudentAnswers
from crosskd.losses.multilevel_ot import MultiLevelOT
from crosskd.losses.targets import TeacherTargets, targets_from_logits
from crosskd.models.answer_logits import answer_logits
from crosskd.models.output_layer import FusedOutputLayer
from crosskd.transport import hidden_logits, hidden_statistics
from crosskd.transport.hidden_logits import HiddenLogits
from helpers_gpu import GPU, no_waits
from helpers_models import tiny_model
from helpers_steps import METHODS, Step

pytestmark = GPU

DEVICE = "cuda"
WIDTH, VOCABULARY = 64, 5_000
NAMES = [name for name in METHODS if not name.startswith("authors")]


class Layer:
    """A step of `helpers_steps` whose logits come of hidden states and an output layer."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.step = Step(name, dtype, DEVICE, vocabulary=VOCABULARY)
        draw = torch.Generator(DEVICE).manual_seed(1)
        shapes = (3, 7, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)
        self.operands = [
            (torch.randn(shape, generator=draw, device=DEVICE) * scale).to(dtype).requires_grad_()
            for shape, scale in zip(shapes, (1.0, WIDTH**-0.5, 0.1), strict=True)
        ]

    def gradients(self, targets: TeacherTargets | None, fused: bool) -> tuple[Tensor, ...]:
        logits = HiddenLogits(*self.operands) if fused else F.linear(*self.operands)
        terms = self.step.method.terms(replace(self.step.student, logits=logits), targets)
        return torch.autograd.grad(terms["cross_entropy"] + terms["distillation"], self.operands)


def small_chunks(patch: pytest.MonkeyPatch) -> None:
    """Eight rows of logits at a time; sequences are searched in blocks."""
    patch.setattr(hidden_logits, "_BYTES", 1)
    patch.setattr(hidden_logits, "_LEAST_ROWS", 8)
    patch.setattr(hidden_statistics, "_MATCHING_BYTES", 1)
    patch.setattr(hidden_statistics, "_BLOCK_ELEMENTS", 2**18)


@pytest.mark.parametrize("chunks", ["one", "several"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_logits(name: str, chunks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: no number of it is close enough to another to be ranked otherwise."""
    if chunks == "several":
        small_chunks(monkeypatch)
    layer = Layer(name, torch.float64)
    targets = layer.step.targets()
    for ours, usual in zip(layer.gradients(targets, True), layer.gradients(targets, False), strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["sft", "mined", "fast"])
def test_bfloat16_is_no_worse_than_logits(name: str) -> None:
    """Against float64 with the same operands; which columns are matched may depend on rounding, hence norms."""
    layer, exact = Layer(name, torch.bfloat16), Layer(name, torch.float64)
    exact.operands = [operand.detach().double().requires_grad_() for operand in layer.operands]
    targets = exact.step.targets()
    truths = exact.gradients(targets, False)
    both = zip(layer.gradients(targets, True), layer.gradients(targets, False), truths, strict=True)
    for ours, usual, truth in both:
        assert ours.dtype == torch.bfloat16
        error = (ours.double() - truth).norm()
        assert error <= 1.5 * (usual.double() - truth).norm() + 0.01 * truth.norm()


@pytest.mark.parametrize("chunks", ["one", "several"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "exact"])
def test_a_loss_and_its_gradients_never_wait(name: str, chunks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if chunks == "several":
        small_chunks(monkeypatch)
    layer = Layer(name, torch.bfloat16)
    targets = layer.step.targets()
    layer.gradients(targets, True)  # kernels are compiled
    with no_waits():
        layer.gradients(targets, True)


def test_a_model_under_autocast() -> None:
    """The head's product is in bfloat16, weights and their gradients in float32."""
    model: Any = tiny_model("llama").to(DEVICE)
    ids = torch.randint(5, 500, (2, 16), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    places = torch.arange(16, device=DEVICE).expand(2, 16)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": places}
    labels = torch.randint(5, 500, (2, 6), generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def compute(logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert logits.dtype == torch.bfloat16
        step = Step("sft", torch.bfloat16, DEVICE)
        terms = step.method.terms(StudentAnswers(logits, labels, labels >= 0), None)
        return terms["cross_entropy"], terms

    found = []
    fused = FusedOutputLayer(model)
    for way in ("logits", "fused"):
        model.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16):
            if way == "fused":
                loss, _ = fused.loss(model, batch, 6, compute)
            else:
                loss, _ = compute(answer_logits(model, batch, 6))
        loss.backward()
        found.append((loss.detach(), model.lm_head.weight.grad.clone()))
    (usual, gradient), (ours, own) = found
    torch.testing.assert_close(ours, usual, rtol=1e-2, atol=0)
    assert own.dtype == torch.float32
    assert (own - gradient).norm() <= 0.02 * gradient.norm()


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_memory_of_long_answers(frozen: bool) -> None:
    """Four answers of 1,024 tokens over 151,936 entries: the logits alone would be 1,187 MiB."""
    batch, tokens, width, vocabulary = 4, 1024, 896, 151_936
    draw = torch.Generator(DEVICE).manual_seed(0)
    teacher = torch.randn(batch, tokens, 1000, generator=draw, device=DEVICE)
    mask = torch.ones(batch, tokens, dtype=torch.bool, device=DEVICE)
    method = MultiLevelOT()
    targets = targets_from_logits(teacher, mask, method.request())
    labels = torch.randint(vocabulary, (batch, tokens), generator=draw, device=DEVICE)
    hidden = torch.randn(batch, tokens, width, generator=draw, device=DEVICE).bfloat16().requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=draw, device=DEVICE) * 0.1).bfloat16()
    weight.requires_grad_(not frozen)
    for _ in range(2):  # kernels are compiled in the first
        hidden.grad = weight.grad = None
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        terms = method.terms(StudentAnswers(HiddenLogits(hidden, weight), labels, mask), targets)
        (terms["cross_entropy"] + terms["distillation"]).backward()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
    assert peak <= 350 + (0 if frozen else vocabulary * width * 2 / 2**20), peak
