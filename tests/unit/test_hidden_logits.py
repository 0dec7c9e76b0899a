"""Losses of hidden states and an output layer: the numbers of logits that are there, without the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crosskd.errors import UsageError
from crosskd.losses import hidden_gradient
from crosskd.losses.answer_pass import answer_pass
from crosskd.losses.base import DistillationMethod, StudentAnswers
from crosskd.losses.cross_entropy import CrossEntropy
from crosskd.losses.mined import MinED
from crosskd.losses.registry import create_method
from crosskd.losses.targets import TeacherTargets, targets_from_logits
from crosskd.transport import hidden_logits, hidden_statistics
from crosskd.transport.hidden_logits import HiddenLogits
from crosskd.transport.matching import match_with_statistics
from crosskd.transport.softmax_statistics import softmax_statistics

BATCH, TOKENS, WIDTH, VOCABULARY = 3, 7, 16, 301
METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "seqkd": {},
    "uld": {"top_entries": 20},
    "uld of all entries": {"top_entries": None},
    "mined": {"top_entries": 20},
    "mined as published": {"top_entries": 20, "alignment": "dtw", "remainder": "dropped", "edit_distance_cutoff": 1.0},
    "multilevel_ot fast": {"top_k": 8},
    "multilevel_ot greedy": {"top_k": 8, "matching": "greedy"},
    "multilevel_ot exact": {"top_k": 8, "matching": "exact"},
    "multilevel_ot of tokens": {"top_k": 8, "ranking": "token", "sinkhorn_level": "token", "chunk_size": 5},
    "multilevel_ot without truncation": {"top_k": 0},
    "multilevel_ot warm": {"top_k": 8, "sinkhorn_temperature": 3.0, "sequential_log_temperature": 1.5},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows of logits at a time, so that sequences are cut; on the way back 32 columns."""
    monkeypatch.setattr(hidden_logits, "_CPU_BYTES", 1)
    monkeypatch.setattr(hidden_logits, "_LEAST_ROWS", 4)
    monkeypatch.setattr(hidden_gradient, "_CPU_ELEMENTS", 1)
    monkeypatch.setattr(hidden_gradient, "_LEAST_COLUMNS", 32)


@dataclass
class Case:
    """Operands of an output layer, labels, and a method with the teacher's targets."""

    method: DistillationMethod
    targets: TeacherTargets | None
    operands: list[Tensor]
    labels: Tensor

    def student(self, logits: Tensor) -> StudentAnswers:
        alignment = torch.arange(TOKENS).expand(BATCH, TOKENS).contiguous()
        return StudentAnswers(logits, self.labels, self.labels != -100, alignment)

    def terms(self, logits: Tensor) -> dict[str, Tensor]:
        return self.method.terms(self.student(logits), self.targets)

    def dense(self, bias: bool = True) -> Tensor:
        hidden, weight, offset = self.operands
        return torch.nn.functional.linear(hidden, weight, offset if bias else None)

    def hidden(self, bias: bool = True) -> HiddenLogits:
        return HiddenLogits(*self.operands[: 3 if bias else 2])


def case(name: str, dtype: torch.dtype = torch.float64) -> Case:
    draw = torch.Generator().manual_seed(0)
    shapes = (BATCH, TOKENS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)
    operands = [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    labels = torch.randint(VOCABULARY, (BATCH, TOKENS), generator=draw)
    labels[0, 5:] = labels[1, 3:] = -100
    method = create_method(name.split()[0], **METHODS[name])
    if isinstance(method, MinED):
        method = method.with_vocabulary_map(torch.randint(-1, VOCABULARY, (260,), generator=draw))
    request = method.request()
    if request is None:
        return Case(method, None, operands, labels)
    mask = torch.ones(BATCH, 9, dtype=torch.bool)
    mask[2, 4:] = False
    teacher = 3 * torch.randn(BATCH, 9, 260, dtype=torch.float64, generator=draw)
    return Case(method, targets_from_logits(teacher, mask, request), operands, labels)


def loss_of(terms: dict[str, Tensor]) -> Tensor:
    return terms["cross_entropy"] + 0.3 * terms["distillation"]


IN_KERNELS = ("sft", "mined", "multilevel_ot fast", "multilevel_ot greedy")  # few: the interpreter is slow


@pytest.mark.parametrize(
    ("name", "bias", "kernels"),
    [*((name, bias, "torch") for name in METHODS for bias in (True, False))]
    + [(name, True, "triton") for name in IN_KERNELS],
)
def test_terms_and_gradients_are_those_of_logits(
    name: str, bias: bool, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = case(name)
    wanted = found.operands[: 3 if bias else 2]
    expected = found.terms(found.dense(bias))
    gradients = torch.autograd.grad(loss_of(expected), wanted)
    monkeypatch.setenv("CROSSKD_KERNELS", kernels)
    terms = found.terms(found.hidden(bias))
    loss = loss_of(terms)
    assert terms.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(terms[term], value, rtol=1e-10, atol=1e-10, msg=term)
    for _ in range(2):  # the graph can be gone through again
        for ours, gradient in zip(torch.autograd.grad(loss, wanted, retain_graph=True), gradients, strict=True):
            torch.testing.assert_close(ours, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["greedy", "exact"])
@pytest.mark.parametrize("limits", [(BATCH * TOKENS * VOCABULARY * 4, 2**24), (1000, 1000), (1000, 3000)])
def test_long_answers_are_matched_in_blocks_of_the_vocabulary(
    method: str, limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All sequences in two parts; each by itself in blocks of 64 or more columns."""
    monkeypatch.setattr(hidden_statistics, "_MATCHING_BYTES", limits[0])
    monkeypatch.setattr(hidden_statistics, "_BLOCK_ELEMENTS", limits[1])
    found = case(f"multilevel_ot {method}")
    assert found.targets is not None
    assert found.targets.column_log_probabilities is not None
    mask = found.labels != -100
    values = found.targets.column_log_probabilities.exp()
    matched = [
        match_with_statistics(
            logits, softmax_statistics(logits, (1.0,), mask), values, mask, found.targets.mask, method
        )
        for logits in (found.dense().detach(), found.hidden().detach())
    ]
    assert torch.equal(*matched)


class Largest(TorchDispatchMode):
    """The most elements of a tensor that any operator gave, views apart."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and not isinstance(value, HiddenLogits):
                self.elements = max(self.elements, value.untyped_storage().nbytes() // value.element_size())
        return result


WHOLE = ("uld of all entries", "multilevel_ot without truncation")  # they compare all columns of all tokens


@pytest.mark.parametrize("name", [name for name in METHODS if name not in WHOLE])
def test_logits_are_never_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_statistics, "_MATCHING_BYTES", TOKENS * VOCABULARY * 8)  # a sequence at a time
    found = case(name)
    with Largest() as whole:
        torch.autograd.grad(loss_of(found.terms(found.dense())), found.operands)
    with Largest() as ours:
        torch.autograd.grad(loss_of(found.terms(found.hidden())), found.operands)
    assert whole.elements >= BATCH * TOKENS * VOCABULARY
    assert ours.elements <= VOCABULARY * WIDTH  # the weight's gradient; a chunk and a sequence are smaller


class Products(TorchDispatchMode):
    """Shapes of the matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        if "mm" in str(function):
            self.shapes.add(tuple(result.shape))
        return result


def test_a_frozen_weight_gets_no_gradient_and_costs_none() -> None:
    found = case("multilevel_ot fast")
    with Products() as products:
        (expected, *_) = torch.autograd.grad(loss_of(found.terms(found.hidden())), found.operands)
    of_weight = (32, WIDTH)  # of the weight's rows in a block of the vocabulary
    assert of_weight in products.shapes
    found.operands[1].requires_grad_(False)
    found.operands[2].requires_grad_(False)
    loss = loss_of(found.terms(found.hidden()))
    with Products() as products:
        loss.backward()
    torch.testing.assert_close(found.operands[0].grad, expected, rtol=1e-10, atol=1e-10)
    assert found.operands[1].grad is None
    assert of_weight not in products.shapes
    assert products.shapes


def test_a_layer_alone_can_be_trained() -> None:
    found = case("sft")
    expected = torch.autograd.grad(loss_of(found.terms(found.dense())), found.operands[1:])
    found.operands[0].requires_grad_(False)
    ours = torch.autograd.grad(loss_of(found.terms(found.hidden())), found.operands[1:])
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_no_worse_than_logits_in_low_precision(dtype: torch.dtype) -> None:
    """The gradient of the hidden states is summed over the vocabulary in float32; the weight's needs no sum."""
    found = case("multilevel_ot fast", dtype)
    doubles = [operand.detach().double().requires_grad_() for operand in found.operands]
    exact = Case(found.method, found.targets, doubles, found.labels)
    truth = torch.autograd.grad(loss_of(exact.terms(exact.dense())), exact.operands)
    plain = torch.autograd.grad(loss_of(found.terms(found.dense())), found.operands)
    ours = torch.autograd.grad(loss_of(found.terms(found.hidden())), found.operands)
    for operand, right, usual, own in zip(found.operands, truth, plain, ours, strict=True):
        assert own.dtype == operand.dtype
        allowed = (usual.double() - right).norm() + 4 * torch.finfo(dtype).eps * right.norm()
        assert (own.double() - right).norm() <= allowed


def test_a_product_in_half_precision_of_weights_in_float32() -> None:
    """As under autocast: operands are rounded, gradients are those of the float32 weights."""
    found = case("multilevel_ot fast", torch.float32)
    logits = HiddenLogits(*found.operands, dtype=torch.bfloat16)
    assert logits.dtype == torch.bfloat16
    ours = torch.autograd.grad(loss_of(found.terms(logits)), found.operands)
    rounded = [o.detach().bfloat16().float().requires_grad_() for o in found.operands]
    near = Case(found.method, found.targets, rounded, found.labels)
    expected = torch.autograd.grad(loss_of(near.terms(near.dense())), rounded)
    for own, other in zip(ours, expected, strict=True):
        assert own.dtype == torch.float32
        assert (own - other).norm() <= 0.03 * other.norm()  # logits of ten units are rounded to 1/32


def test_no_probability_is_above_one_where_few_logits_are_made_by_themselves() -> None:
    found = case("multilevel_ot fast", torch.bfloat16)
    logits = found.hidden()
    statistics = softmax_statistics(logits, (1.0,))
    top = found.dense().detach()[:, 0].topk(4).indices
    columns = answer_pass(logits, columns=top, statistics=statistics).columns
    assert columns.max() <= 0


@pytest.mark.parametrize("shape", [(2, 0), (0, 4)])
def test_no_tokens_give_zero_with_a_graph(shape: tuple[int, int]) -> None:
    hidden = torch.randn(*shape, WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    labels = torch.full(shape, -100)
    terms = CrossEntropy().terms(StudentAnswers(HiddenLogits(hidden, weight), labels, labels != -100), None)
    terms["cross_entropy"].backward()
    assert terms["cross_entropy"].item() == 0
    assert hidden.grad is not None
    assert weight.grad is not None
    assert not weight.grad.any()


def test_it_looks_like_logits_and_refuses_what_needs_them() -> None:
    found = case("sft")
    logits, dense = found.hidden(), found.dense()
    assert (logits.shape, logits.dtype, logits.device) == (dense.shape, dense.dtype, dense.device)
    assert logits.requires_grad
    assert not logits.detach().requires_grad
    assert logits[1:, 2:4].shape == dense[1:, 2:4].shape
    assert "HiddenLogits(shape=(3, 7, 301)" in repr(logits)
    torch.testing.assert_close(logits[1:, 2:4].part((slice(0, 2), slice(0, 2))), dense.detach()[1:, 2:4])
    for needs_them in (lambda: logits.softmax(-1), lambda: logits + 1, lambda: logits[0], lambda: torch.exp(logits)):
        with pytest.raises(UsageError, match=r"logits of --fused_output_layer: got .*leave the flag off"):
            needs_them()


@pytest.mark.parametrize(("batch", "tokens", "size"), [(3, 7, 4), (3, 7, 7), (3, 7, 15), (2, 1, 1), (1, 10, 4)])
def test_chunks_cover_every_row_once_and_none_is_too_large(batch: int, tokens: int, size: int) -> None:
    logits = HiddenLogits(torch.zeros(batch, tokens, 2), torch.zeros(5, 2))
    seen = torch.zeros(batch, tokens)
    for rows in logits.chunks(size):
        seen[rows] += 1
        assert 0 < seen[rows].numel() <= size
    assert (seen == 1).all()


def test_weights_changed_before_the_backward_pass_are_noticed() -> None:
    found = case("sft")
    loss = loss_of(found.terms(found.hidden()))
    with torch.no_grad():
        found.operands[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
