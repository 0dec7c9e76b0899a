"""Entropy-regularized transport plans by Sinkhorn iterations in the log domain (Eq. 17-20)."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from crosskd.errors import UsageError
from crosskd.transport.softmax_statistics import compute_dtype

# The logarithm of an entry that does not exist: finite, so that nothing becomes NaN, and zero as a probability.
_ABSENT = -1e30
# Logarithms of all rounds together that are kept for the backward pass.
_KEPT_ELEMENTS = 2**22
# Differences that `token_cost` lets one kernel hold: what some devices allocate for its gradient.
_COST_ELEMENTS = 2**27


def sinkhorn_plan(
    cost: Float[Tensor, "B M N"],
    epsilon: float = 0.1,
    iterations: int = 20,
    row_mask: Bool[Tensor, "B M"] | None = None,
    column_mask: Bool[Tensor, "B N"] | None = None,
    tolerance: float = 0.0,
) -> Float[Tensor, "B M N"]:
    """Transport plan ``K_N`` of ``K_0 = exp(-cost / epsilon)`` after N rounds of row and column normalization.

    A round divides by the row sums, then by the column sums (Eq. 18-19, arXiv 2412.14528). Rows are given mass 1 and
    columns mass M / N, so that the total mass is M and M = N is the paper's plan. After the last round columns are
    exact, and rows nearly so.

    Equivalent to, as iterations grow:
        >>> M * ot.sinkhorn(torch.ones(M) / M, torch.ones(N) / N, cost[0], epsilon)

    Args:
        cost: (B, M, N), any floating dtype; entries of masked rows and columns are ignored.
        epsilon: Regularization lambda, positive, in units of the cost.
        iterations: Rounds, at least 1.
        row_mask: (B, M), rows that exist; None for all.
        column_mask: (B, N), columns that exist; None for all. M and N above count what exists.
        tolerance: A problem whose row masses are all within this of 1 after a round takes no further one; 0 runs all.

    Returns:
        The plan, (B, M, N), float32 (float64 for float64 costs); zero in masked rows and columns, and everywhere in
        a problem without rows or without columns. Gradients flow to ``cost`` through all iterations.

    Raises:
        UsageError: ``epsilon``, ``iterations`` or ``tolerance`` out of range.

    Cost: O(B M N) operations a round each way; memory O(B M N) times
        the number of rounds for small plans, times its root for large ones.
    """
    if not epsilon > 0:
        raise UsageError("sinkhorn_epsilon", got=epsilon, expected="a positive number")
    if iterations < 1:
        raise UsageError("sinkhorn_iterations", got=iterations, expected="an integer of at least 1")
    if not tolerance >= 0:
        raise UsageError("sinkhorn_tolerance", got=tolerance, expected="a number of at least 0")
    kernel = cost.to(compute_dtype(cost.dtype)) / -epsilon
    log_mass: float | Tensor = math.log(max(1, cost.shape[1]) / max(1, cost.shape[2]))
    penalty: Tensor | None = None
    if row_mask is not None or column_mask is not None:
        row_mask = cost.new_ones(cost.shape[:2], dtype=torch.bool) if row_mask is None else row_mask
        column_mask = cost.new_ones(cost.shape[::2], dtype=torch.bool) if column_mask is None else column_mask
        absent = ~(row_mask.unsqueeze(2) & column_mask.unsqueeze(1))
        counts = [mask.sum(1).clamp(min=1).to(kernel.dtype) for mask in (row_mask, column_mask)]
        log_mass = (counts[0] / counts[1]).log()[:, None, None]
        penalty = torch.zeros_like(kernel).masked_fill_(absent, _ABSENT)
        kernel = kernel.masked_fill(absent, _ABSENT)
    if tolerance > 0:
        log_plan = _until_met(kernel, penalty, iterations, log_mass, row_mask, tolerance)
    else:
        log_plan = cast(Tensor, _LogPlan.apply(kernel, penalty, iterations))  # pyright: ignore[reportUnknownMemberType]
    return (log_plan + log_mass).exp()


def _until_met(
    kernel: Tensor,
    penalty: Tensor | None,
    iterations: int,
    log_mass: float | Tensor,
    row_mask: Tensor | None,
    tolerance: float,
) -> Float[Tensor, "B M N"]:
    """Log plan with columns of mass 1; a problem keeps what it has once its rows are within the tolerance."""
    absent: float | Tensor = 0.0 if penalty is None else penalty
    values, goes_on = kernel, kernel.new_ones((len(kernel), 1, 1), dtype=torch.bool)
    for _ in range(iterations):
        further = ((values.log_softmax(2) + absent).log_softmax(1)) + absent
        values = torch.where(goes_on, further, values)
        missing = ((values.detach() + log_mass).exp().sum(2) - 1).abs()
        missing = missing if row_mask is None else missing.masked_fill(~row_mask, 0)
        goes_on = goes_on & (missing.amax(1) > tolerance)[:, None, None] if missing.numel() else goes_on
        if kernel.device.type == "cpu" and not goes_on.any():  # elsewhere looking would wait for the device
            break
    return values


def _round(values: Tensor, penalty: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logarithms after dividing by the row sums, and after dividing that by the column sums."""
    rows = values.log_softmax(2)
    rows = rows if penalty is None else rows.add_(penalty)  # a row without entries had become uniform
    columns = rows.log_softmax(1)
    return rows, columns if penalty is None else columns.add_(penalty)


class _LogPlan(torch.autograd.Function):
    """(log kernel) -> log plan with columns of mass 1.

    The backward pass needs every round's two matrices. Many of them are not kept but made again, a segment of rounds at
    a time, so that memory grows with the root of the number of rounds.
    """

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, penalty: Tensor | None, iterations: int) -> Tensor:
        few = 2 * iterations * kernel.numel() <= _KEPT_ELEMENTS
        ctx.segment = iterations if few else math.isqrt(max(1, iterations // 2))
        ctx.iterations = iterations
        starts: list[Tensor] = []
        steps: list[Tensor] = []
        values = kernel
        for index in range(iterations):
            if index % ctx.segment == 0:
                starts.append(values)
            rows, values = _round(values, penalty)
            if few:
                steps += [rows, values]
        ctx.penalty = penalty
        ctx.few = few
        ctx.save_for_backward(*(steps if few else starts))
        return values

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, output_gradient: Tensor
    ) -> tuple[Tensor, None, None]:
        saved = list(cast("tuple[Tensor, ...]", ctx.saved_tensors))
        gradient = output_gradient.clone()
        if ctx.few:
            _through_steps(gradient, saved)
            return gradient, None, None
        for index in range(len(saved) - 1, -1, -1):
            steps: list[Tensor] = []
            values = saved.pop()
            for _ in range(min(ctx.segment, ctx.iterations - index * ctx.segment)):
                steps += _round(values, ctx.penalty)
                values = steps[-1]
            _through_steps(gradient, steps)
        return gradient, None, None


def _through_steps(gradient: Tensor, steps: list[Tensor]) -> None:
    """Take ``gradient``, in place, back through alternating row and column normalizations, the last one first."""
    for index in range(len(steps) - 1, -1, -1):
        total = gradient.sum(1 if index % 2 else 2, keepdim=True)
        gradient.addcmul_(steps[index].exp(), total, value=-1)


def token_cost(teacher: Float[Tensor, "B T_t k"], student: Float[Tensor, "B T_s k"]) -> Float[Tensor, "B T_t T_s"]:
    """Cost of moving teacher token i to student token j, ``C_ij = sum_l |t_l(i) - s_l(j)|`` (Eq. 17).

    Args:
        teacher: (B, T_t, k) probabilities.
        student: (B, T_s, k) probabilities, which gradients flow to.

    Cost: O(B T_t T_s k) operations; memory O(B T_t T_s), the differences are never all held at once.
    """
    elements = student.shape[0] * student.shape[1] * student.shape[2]
    step = max(1, _COST_ELEMENTS // max(1, elements))
    if step >= teacher.shape[1]:
        return torch.cdist(teacher, student, p=1.0)
    starts = range(0, teacher.shape[1], step)
    return torch.cat([torch.cdist(teacher[:, start : start + step], student, p=1.0) for start in starts], dim=1)
