"""The Sinkhorn distance of a sequence pair and its gradient in one kernel, for plans that fit on a multiprocessor.

A round of Eq. 18-19 (arXiv 2412.14528) divides K = exp(-cost / epsilon) by its row sums, then by its column sums.
Going back through a round needs its row-normalized plan r and its column-normalized plan c, with which, from the
gradients of the potentials f (minus the logarithms of what rows were divided by) and g (likewise, of columns)::

    d f -= c d g,    d g_before = -r^T d f,    d log K -= d g c + d f r

Neither r nor c is kept: the sums are, and multiplying by them takes the plan back a step. A cost is a distance of
probabilities, so log K is between -2 / epsilon and 0. Where that is too much for float32, the rounds run on logarithms
instead::

    f_i = -log sum_j exp(log K_ij + g_j),    g_j = -log sum_i exp(log K_ij + f_i),    log plan = log K + f + g

The gradient is computed together with the value, since the plan is at hand then.
"""
# what Triton compiles is not Python to a type checker
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from crosskd.kernels import launch as kernels

_ABSENT = tl.constexpr(-1e30)  # the logarithm of an entry that does not exist
# Log K down to minus this is computed with as exponentials.
_LARGEST_EXPONENT = 60
# Entries of a plan, padded to powers of two, that one program holds.
MOST_ENTRIES = 128 * 128


@triton.jit
def _negative_log_sum(values, exists, AXIS: tl.constexpr):
    """``-log sum exp`` over an axis; zero where ``exists`` is false."""
    largest = tl.max(values, AXIS)
    total = tl.sum(tl.exp(values - tl.expand_dims(largest, AXIS)), AXIS)
    return tl.where(exists, -(largest + tl.log(total)), 0.0)


@triton.jit
def _sinkhorn(
    teacher,
    student,
    row_mask,
    column_mask,
    distances,
    gradient,
    row_potentials,
    column_potentials,
    costs,
    rows,
    columns,
    kept,
    iterations,
    tolerance,
    INV_EPSILON: tl.constexpr,
    LINEAR: tl.constexpr,
    STOPS: tl.constexpr,
    UNROLLED: tl.constexpr,
    GRADIENT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Program b: sequence pair b, from probabilities to distance and gradient of the student's probabilities.

    Sums (or potentials) of each round go to memory and come back on the way back.
    """
    pair = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    row_exists = tl.load(row_mask + pair * rows + i, mask=i < rows, other=0) != 0
    column_exists = tl.load(column_mask + pair * columns + j, mask=j < columns, other=0) != 0
    exists = row_exists[:, None] & column_exists[None, :]
    teacher_row = teacher + pair * rows * kept + i
    student_row = student + pair * columns * kept + j
    cost = tl.zeros((ROWS, COLUMNS), DTYPE)
    for column in range(0, kept):
        t = tl.load(teacher_row + column * rows, mask=row_exists, other=0.0)
        s = tl.load(student_row + column * columns, mask=column_exists, other=0.0)
        cost += tl.abs(t[:, None] - s[None, :])
    kernel = tl.where(exists, cost * -INV_EPSILON, _ABSENT)
    plan = tl.exp(kernel)
    cost_place = costs + pair * ROWS * COLUMNS + i[:, None] * COLUMNS + j[None, :]
    if LINEAR:  # out of the registers until it is needed again
        tl.store(cost_place, cost)
    f = tl.zeros((ROWS,), DTYPE)
    g = tl.zeros((COLUMNS,), DTYPE)
    f_place = row_potentials + pair * iterations * ROWS + i
    g_place = column_potentials + pair * iterations * COLUMNS + j
    count_rows = tl.maximum(1, tl.sum(row_exists.to(tl.int32), 0))
    count_columns = tl.maximum(1, tl.sum(column_exists.to(tl.int32), 0))
    mass = count_rows.to(DTYPE) / count_columns.to(DTYPE)
    rounds = 0
    met = 0
    for index in range(0, iterations):
        if met == 0:
            if LINEAR:
                f = tl.sum(plan, 1)
                plan *= tl.where(f > 0, 1.0 / tl.where(f > 0, f, 1.0), 0.0)[:, None]
                g = tl.sum(plan, 0)
                plan *= tl.where(g > 0, 1.0 / tl.where(g > 0, g, 1.0), 0.0)[None, :]
            else:
                f = _negative_log_sum(kernel + g[None, :], row_exists, 1)
                g = _negative_log_sum(kernel + f[:, None], column_exists, 0)
            if GRADIENT and UNROLLED:
                tl.store(f_place + index * ROWS, f)
                tl.store(g_place + index * COLUMNS, g)
            rounds = index + 1
            if STOPS:
                if not LINEAR:
                    plan = tl.where(exists, tl.exp(kernel + f[:, None] + g[None, :]), 0.0)
                missing = tl.where(row_exists, tl.abs(tl.sum(plan, 1) * mass - 1), 0.0)
                met = (tl.max(missing, 0) <= tolerance).to(tl.int32)
    if not LINEAR:
        plan = tl.where(exists, tl.exp(kernel + f[:, None] + g[None, :]), 0.0)
    if LINEAR:
        tl.debug_barrier()
        cost = tl.load(cost_place)
    moved = plan * cost * mass
    tl.store(distances + pair, tl.sum(tl.sum(moved, 1), 0))
    if GRADIENT:
        of_cost = plan * mass
        if UNROLLED:
            of_f = tl.sum(moved, 1)
            of_g = tl.sum(moved, 0)
            tl.debug_barrier()  # what other threads stored is read back
            for back in range(0, rounds):
                index = rounds - 1 - back
                f = tl.load(f_place + index * ROWS)
                g = tl.load(g_place + index * COLUMNS)
                if not LINEAR:
                    plan = tl.where(exists, tl.exp(kernel + f[:, None] + g[None, :]), 0.0)
                normalized = plan * of_g[None, :]
                moved -= normalized
                of_f -= tl.sum(normalized, 1)
                if LINEAR:
                    plan *= g[None, :]
                else:
                    place = (index - 1) * COLUMNS  # before the first round: zero
                    before = tl.load(g_place + place, mask=j + place >= 0, other=0.0)
                    plan = tl.where(exists, tl.exp(kernel + f[:, None] + before[None, :]), 0.0)
                normalized = plan * of_f[:, None]
                moved -= normalized
                of_g = -tl.sum(normalized, 0)
                of_f = tl.zeros((ROWS,), DTYPE)
                if LINEAR:
                    plan *= f[:, None]
            of_cost -= moved * INV_EPSILON
        of_student = gradient + pair * columns * kept + j
        for column in range(0, kept):
            t = tl.load(teacher_row + column * rows, mask=row_exists, other=0.0)
            s = tl.load(student_row + column * columns, mask=column_exists, other=0.0)
            slope = tl.where(s[None, :] > t[:, None], of_cost, tl.where(s[None, :] < t[:, None], -of_cost, 0.0))
            tl.store(of_student + column * columns, tl.sum(slope, 0), mask=j < columns)


@dataclass(frozen=True)
class Rounds:
    """How a plan is made.

    Attributes:
        epsilon: Regularization, positive.
        iterations: Rounds at most.
        tolerance: Largest deviation of a row's mass from 1 at which a pair stops; 0 runs all rounds.
        unrolled: Whether the gradient goes through the rounds, or holds the plan constant.
    """

    epsilon: float
    iterations: int
    tolerance: float = 0.0
    unrolled: bool = True


def fits(rows: int, columns: int) -> bool:
    """Whether a plan of this size is one program's."""
    return kernels.power_of_two(max(16, rows)) * kernels.power_of_two(max(16, columns)) <= MOST_ENTRIES


def sinkhorn_on_chip(
    teacher: Float[Tensor, "B k M"],
    student: Float[Tensor, "B k N"],
    teacher_mask: Bool[Tensor, "B M"],
    student_mask: Bool[Tensor, "B N"],
    settings: Rounds,
    gradient: bool = True,
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B k N"] | None]:
    """``<K_N, C>`` of each pair, and its gradient with respect to the student's probabilities; one launch.

    Args:
        teacher: (B, k, M) probabilities, contiguous: the tokens of a column side by side.
        student: (B, k, N), likewise, in the dtype that is computed in.
        teacher_mask: (B, M), tokens that exist, contiguous.
        student_mask: (B, N), likewise.
        settings: How the plan is made.
        gradient: Whether it is wanted.
    """
    batch, kept, rows = teacher.shape
    columns = student.shape[2]
    padded_rows, padded_columns = (kernels.power_of_two(max(16, number)) for number in (rows, columns))
    distances = student.new_empty(batch)
    of_student = torch.empty_like(student) if gradient else None
    scratch = student.new_empty((2, batch * settings.iterations * max(padded_rows, padded_columns)))
    kernels.launch(
        _sinkhorn,
        (batch,),
        teacher,
        student,
        teacher_mask,
        student_mask,
        distances,
        of_student,
        scratch[0],
        scratch[1],
        student.new_empty((batch, padded_rows, padded_columns)),
        rows,
        columns,
        kept,
        settings.iterations,
        settings.tolerance,
        INV_EPSILON=1 / settings.epsilon,
        LINEAR=2 / settings.epsilon <= _LARGEST_EXPONENT,
        STOPS=settings.tolerance > 0,
        UNROLLED=settings.unrolled,
        GRADIENT=gradient,
        ROWS=padded_rows,
        COLUMNS=padded_columns,
        DTYPE=kernels.TRITON_DTYPES[student.dtype],
        num_warps=max(1, min(8, padded_rows * padded_columns // 1024)),
    )
    return distances, of_student
