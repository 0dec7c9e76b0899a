"""Passes over logits by kernels, in Triton's interpreter, against float64 computations with torch's own functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from crosskd.kernels import VARIABLE, launch, use_triton
from crosskd.losses.answer_pass import answer_gradient, answer_pass
from crosskd.losses.cross_entropy import answer_cross_entropy
from crosskd.losses.mined import merge_entries
from crosskd.losses.partition_pass import partition_pass
from crosskd.transport.softmax_statistics import softmax_statistics

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SIZES = [(2, 3, 300), (1, 2, 5000), (2, 1, 7), (1, 1, 1), (1, 70, 40)]
CASES = [(dtype, (1.0, 2.0), size) for dtype in (torch.float64, torch.bfloat16) for size in SIZES]
CASES += [(dtype, (1.0, 2.0), SIZES[0]) for dtype in (torch.float32, torch.float16)]
CASES += [(torch.float64, temperatures, SIZES[1]) for temperatures in [(1.0,), (1.0, 1.7), (1.0, 1.5, 2.0)]]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "triton")


def logits_of(size: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return (torch.randn(*size, generator=generator, dtype=torch.float64) * 4).to(dtype)


def labels_of(size: tuple[int, int, int]) -> Tensor:
    labels = torch.randint(size[2], size[:2], generator=torch.Generator().manual_seed(1))
    labels[0, 0] = -100
    return labels


def near(ours: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Up to rounding of what is computed in float32; for gradients in half precision, up to that of one rounding."""
    narrow = dtype if ours.dtype == dtype else torch.float32
    allowed = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[
        torch.float64 if dtype == torch.float64 else narrow
    ]
    torch.testing.assert_close(
        ours.double(), expected, rtol=allowed, atol=allowed * max(1.0, float(expected.abs().max()))
    )


@pytest.mark.parametrize(("dtype", "temperatures", "size"), CASES)
def test_statistics(dtype: torch.dtype, temperatures: tuple[float, ...], size: tuple[int, int, int]) -> None:
    logits = logits_of(size, dtype)
    mask = torch.rand(size[:2], generator=torch.Generator().manual_seed(2)) > 0.3
    found = softmax_statistics(logits, temperatures, mask)
    exact = logits.double()
    maximum = exact.amax(-1, keepdim=True)
    assert found.maximum.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert torch.equal(found.maximum.double(), maximum)
    near(found.log_sums, torch.stack([((exact - maximum) / tau).logsumexp(-1) for tau in temperatures], -1), dtype)
    assert found.column_sums is not None
    near(found.column_sums, ((exact / temperatures[0]).softmax(-1) * mask[..., None]).sum(1), dtype)


@pytest.mark.parametrize(("dtype", "temperatures", "size"), CASES)
def test_answer_pass(dtype: torch.dtype, temperatures: tuple[float, ...], size: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    columns = torch.randint(size[2], (*size[:2], 6), generator=generator)  # some stand in several slots
    weights = torch.randn(*size[:2], 6, generator=generator, dtype=torch.float64)
    labels = labels_of(size)

    def loss(cross_entropy: Tensor, log_probabilities: list[Tensor]) -> Tensor:
        return 0.7 * cross_entropy + sum((values * weights.to(values.dtype)).sum() for values in log_probabilities)

    logits = logits_of(size, dtype).requires_grad_()
    found = answer_pass(logits, labels=labels, columns=columns, temperatures=temperatures)
    ours = [found.log_probabilities(tau) for tau in temperatures]
    loss(found.cross_entropy, ours).backward()
    exact = logits.detach().double().requires_grad_()
    expected = [(exact / tau).log_softmax(-1).gather(-1, columns) for tau in temperatures]
    total = F.cross_entropy(exact.flatten(0, 1), labels.flatten(), reduction="sum")
    loss(total, expected).backward()
    near(found.cross_entropy.detach(), total.detach(), dtype)
    for own, other in zip(ours, expected, strict=True):
        near(own.detach(), other.detach(), dtype)
    assert logits.grad is not None
    assert exact.grad is not None
    assert logits.grad.dtype == dtype
    near(logits.grad, exact.grad, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_alone(dtype: torch.dtype) -> None:
    size = (2, 3, 5000)
    logits = logits_of(size, dtype).requires_grad_()
    loss = answer_cross_entropy(logits, labels_of(size))
    (gradient,) = torch.autograd.grad(loss * 3, logits)
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact.flatten(0, 1), labels_of(size).flatten(), reduction="sum")
    near(loss.detach(), expected.detach(), dtype)
    near(gradient, torch.autograd.grad(expected * 3, exact)[0], dtype)


def test_logits_that_are_a_slice_or_a_transpose() -> None:
    whole = logits_of((2, 9, 40), torch.float32)
    for view in (whole[:, 3:], whole[..., ::2], whole.transpose(1, 2)):
        ours = softmax_statistics(view, (1.0, 2.0))
        near(ours.log_sums[..., 0:1] + ours.maximum, view.double().logsumexp(-1, keepdim=True), torch.float32)
        leaf = view.detach().requires_grad_()
        labels = torch.zeros(view.shape[:2], dtype=torch.int64)
        (gradient,) = torch.autograd.grad(answer_cross_entropy(leaf, labels), leaf)
        exact = view.double().detach().requires_grad_()
        total = F.cross_entropy(exact.flatten(0, 1), labels.flatten(), reduction="sum")
        near(gradient, torch.autograd.grad(total, exact)[0], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_gradient_may_take_the_place_of_its_logits(in_place: bool, dtype: torch.dtype) -> None:
    size = (2, 3, 5000)
    generator = torch.Generator().manual_seed(4)
    logits = logits_of(size, dtype)
    exact = logits.double().clone()
    ids = torch.randint(size[2], (*size[:2], 5), generator=generator)
    weights = torch.randn(*size[:2], 2, generator=generator, dtype=torch.promote_types(dtype, torch.float32))
    gathered = torch.randn(*size[:2], 5, generator=generator, dtype=weights.dtype)
    found = answer_gradient(logits, (1.0, 2.0), weights, ids, gathered, into=logits if in_place else None)
    assert (found is logits) == in_place
    expected = weights[..., :1] * exact.softmax(-1) + weights[..., 1:] * (exact / 2).softmax(-1)
    near(found, expected.double().scatter_add(-1, ids, gathered.double()), dtype)


@pytest.mark.parametrize("size", [(2, 3, 300), (1, 2, 5000), (2, 2, 6)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_partition_pass(dtype: torch.dtype, size: tuple[int, int, int]) -> None:
    """Of six entries all may be kept, and nothing is left."""
    generator = torch.Generator().manual_seed(5)
    mapped = torch.randint(-1, size[2], (*size[:2], 12), generator=generator)
    if size[2] == 6:
        mapped[0, 0] = torch.arange(12) % 6
    _, ids, keep = merge_entries(torch.rand(mapped.shape, generator=generator), mapped)
    weights = torch.randn(ids.shape, generator=generator, dtype=torch.float64)
    of_rest = torch.randn(size[:2], generator=generator, dtype=torch.float64)
    labels = labels_of(size)
    logits = logits_of(size, dtype).requires_grad_()
    found = partition_pass(logits, ids, keep, labels)
    there = found.log_rest != -torch.inf
    rest = found.log_rest.masked_fill(~there, 0)
    loss = found.cross_entropy + (found.log_probabilities.double() * weights).sum() + (rest.double() * of_rest).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    exact = logits.detach().double().requires_grad_()
    log_softmax = exact.log_softmax(-1)
    kept = log_softmax.gather(-1, ids).masked_fill(~keep, 0)
    left = log_softmax.scatter(-1, ids, -torch.inf)
    assert torch.equal(there, (left > -torch.inf).any(-1))
    left = left.masked_fill(~there.unsqueeze(-1), 0).logsumexp(-1).masked_fill(~there, 0)
    total = F.cross_entropy(exact.flatten(0, 1), labels.flatten(), reduction="sum")
    (right,) = torch.autograd.grad(total + (kept * weights).sum() + (left * of_rest).sum(), exact)
    near(found.log_probabilities.detach(), kept.detach(), dtype)
    near(rest.detach(), left.detach(), dtype)
    near(gradient, right, dtype)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, which interprets the kernels
def test_absent_and_wrong_logits() -> None:
    """Minus infinity is an entry that is not there; NaN and a row of nothing are NaN, as in torch."""
    logits = logits_of((1, 4, 5000), torch.float32)
    logits[0, 0, :4500] = -torch.inf
    logits[0, 1, 77] = torch.nan
    logits[0, 2] = -torch.inf
    found = softmax_statistics(logits, (1.0, 2.0))
    near(found.log_sums[0, 0, 0] + found.maximum[0, 0, 0], logits[0, 0].double().logsumexp(-1), torch.float32)
    assert found.log_sums[0, 1].isnan().all()
    leaf = logits.requires_grad_()
    losses = [answer_cross_entropy(leaf[:, t : t + 1], torch.tensor([[4999]])) for t in range(4)]
    assert [bool(loss.isfinite()) for loss in losses] == [True, False, False, True]


def test_the_variable_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.zeros(1)
    assert use_triton(tensor)
    monkeypatch.setenv(VARIABLE, "torch")
    assert not use_triton(tensor)
    monkeypatch.delenv(VARIABLE)
    assert not use_triton(tensor)
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(ValueError, match=r"CROSSKD_KERNELS: got 'cuda'; expected torch or triton"):
        use_triton(tensor)


def test_nothing_is_started_for_nothing() -> None:
    launch.launch(None, (0, 3), torch.zeros(0))
    logits = torch.zeros(2, 0, 30, requires_grad=True)
    loss = answer_cross_entropy(logits, torch.zeros(2, 0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 31, 32, 33, 1000])
def test_sizes_of_blocks(number: int) -> None:
    power = launch.power_of_two(number)
    assert power >= max(1, number)
    assert power < 2 * max(1, number)
    assert power & (power - 1) == 0
    assert launch.ceiling_division(number, 32) * 32 - number in range(32)
