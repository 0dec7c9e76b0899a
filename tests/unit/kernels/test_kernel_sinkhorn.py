"""The Sinkhorn kernels, in Triton's interpreter, against `sinkhorn_plan` and its gradient by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crosskd.kernels.sinkhorn import Rounds, fits, sinkhorn_on_chip
from crosskd.kernels.sinkhorn_tiled import sinkhorn_tiled
from crosskd.transport.sinkhorn import sinkhorn_plan, token_cost

KERNELS = [sinkhorn_on_chip, sinkhorn_tiled]
SIZES = [(2, 5, 7, 6), (1, 12, 12, 20), (2, 1, 1, 3), (3, 17, 9, 4)]


def problem(size: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities (B, M, k) and (B, N, k), and masks; of three pairs one has no row and one no column."""
    batch, rows, columns, kept = size
    generator = torch.Generator().manual_seed(sum(size))
    teacher, student = (
        (torch.randn(batch, tokens, kept, generator=generator, dtype=torch.float64) * 2).softmax(-1).to(dtype)
        for tokens in (rows, columns)
    )
    masks = [torch.rand(batch, tokens, generator=generator) > 0.2 for tokens in (rows, columns)]
    if batch == 3:
        masks[0][1], masks[1][2] = False, False
    return teacher, student, masks[0], masks[1]


def by_kernel(
    kernel: Any, given: tuple[Tensor, ...], gradient: bool = True, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    teacher, student, *masks = given
    sides = teacher.mT.contiguous(), student.mT.contiguous()
    distances, of_student = kernel(*sides, *masks, Rounds(**settings), gradient)
    return distances, None if of_student is None else of_student.mT


def by_torch(
    given: tuple[Tensor, ...], epsilon: float, iterations: int, unrolled: bool = True, tolerance: float = 0.0
) -> tuple[Tensor, Tensor]:
    teacher, student, row_mask, column_mask = given
    student = student.detach().requires_grad_()
    cost = token_cost(teacher, student)
    plan = sinkhorn_plan(cost if unrolled else cost.detach(), epsilon, iterations, row_mask, column_mask, tolerance)
    distances = (plan * cost).sum((1, 2))
    return distances.detach(), torch.autograd.grad(distances.sum(), student)[0]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("unrolled", [True, False])
@pytest.mark.parametrize("epsilon", [0.1, 0.01])
def test_value_and_gradient(kernel: Any, size: tuple[int, int, int, int], unrolled: bool, epsilon: float) -> None:
    """A small epsilon is beyond what exponentials hold: then the rounds are of logarithms."""
    given = problem(size, torch.float64)
    found, gradient = by_kernel(kernel, given, epsilon=epsilon, iterations=5, unrolled=unrolled)
    distances, expected = by_torch(given, epsilon, 5, unrolled)
    torch.testing.assert_close(found, distances, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kernel", KERNELS)
def test_single_precision(kernel: Any) -> None:
    given = problem((1, 20, 20, 50), torch.float32)
    found, gradient = by_kernel(kernel, given, epsilon=0.1, iterations=20)
    distances, expected = by_torch(tuple(t.double() if t.is_floating_point() else t for t in given), 0.1, 20)
    torch.testing.assert_close(found.double(), distances, rtol=1e-5, atol=1e-6)
    assert gradient is not None
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tolerance", [0.3, 0.05, 1e-6])
@pytest.mark.parametrize("epsilon", [0.1])
def test_a_pair_stops_when_its_rows_are_met(kernel: Any, tolerance: float, epsilon: float) -> None:
    given = problem((3, 17, 9, 4), torch.float64)
    found, gradient = by_kernel(kernel, given, epsilon=epsilon, iterations=12, tolerance=tolerance)
    distances, expected = by_torch(given, epsilon, 12, tolerance=tolerance)
    torch.testing.assert_close(found, distances, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)


def test_a_tolerance_saves_rounds_and_not_more() -> None:
    """Each sequence by itself: as many rounds as it needs, counted by hand."""
    teacher, student, row_mask, column_mask = problem((2, 8, 9, 5), torch.float64)
    cost = token_cost(teacher, student)
    stopped = sinkhorn_plan(cost, 0.1, 50, row_mask, column_mask, 0.02)
    needed: list[int] = []
    for pair in range(2):
        one = (row_mask[pair : pair + 1], column_mask[pair : pair + 1])
        for rounds in range(1, 51):
            plan = sinkhorn_plan(cost[pair : pair + 1], 0.1, rounds, *one)
            if ((plan.sum(2) - 1).abs() * one[0]).amax() <= 0.02:
                torch.testing.assert_close(stopped[pair : pair + 1], plan, rtol=1e-10, atol=1e-12)
                needed.append(rounds)
                break
    assert len(needed) == 2
    assert all(1 < rounds < 50 for rounds in needed)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_gradient_where_none_is_wanted(kernel: Any) -> None:
    given = problem((2, 5, 7, 6), torch.float64)
    found, gradient = by_kernel(kernel, given, epsilon=0.1, iterations=5, gradient=False)
    assert gradient is None
    torch.testing.assert_close(found, by_torch(given, 0.1, 5)[0], rtol=1e-10, atol=1e-12)


def test_what_fits_on_a_chip() -> None:
    assert fits(128, 128)
    assert fits(256, 64)
    assert not fits(129, 128)
    assert not fits(1, 2000)  # a side is padded to 16 at least
