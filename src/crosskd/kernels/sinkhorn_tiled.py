"""The Sinkhorn distance of long answers: two tiled launches a round, over a cost matrix in memory.

The same potentials and the same way back as in `crosskd.kernels.sinkhorn`. A round reads the cost twice and writes two
vectors; the way back does the same, and the gradient of the cost is put together at the end from the vectors of all
rounds. Memory: one matrix, and four vectors a round.

With a tolerance, a pair stops after the first round whose rows are within it. That is known one launch later, since the
mass of row i after round n is ``mass * exp(f_n - f_(n+1))``; from then on its programs have nothing to do.
"""
# what Triton compiles is not Python to a type checker
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosskd.kernels import launch as kernels

_ABSENT = tl.constexpr(-1e30)
_TILE = 64  # tokens of either side in a tile of the cost and of its gradient
_FEW, _MANY = 16, 256  # rows and columns of a tile that is read along rows
_SHARE = 8  # student tokens of a program that goes over all of the teacher's
_DOWN, _STRIPE = 128, 32  # rows and columns of a tile that is read along columns


@triton.jit
def _cost_tiles(teacher, student, cost, rows, columns, kept, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """Program (block of columns, block of rows, pair): L1 distances of tokens."""
    pair = tl.program_id(2).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    j = tl.program_id(0) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), DTYPE)
    for column in range(0, kept):
        t = tl.load(teacher + (pair * kept + column) * rows + i, mask=i < rows, other=0.0)
        s = tl.load(student + (pair * kept + column) * columns + j, mask=j < columns, other=0.0)
        total += tl.abs(t[:, None] - s[None, :])
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    tl.store(cost + (pair * rows + i)[:, None] * columns + j[None, :], total, mask=inside)


@triton.jit(do_not_specialize=["index"])
def _potentials(
    cost,
    own_potentials,
    other_potentials,
    exists,
    other_exists,
    masses,
    missing,
    length,
    other_length,
    stride,
    other_stride,
    tolerance,
    index,
    INV_EPSILON: tl.constexpr,
    ROWS: tl.constexpr,
    STOPS: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Program (block of lines, pair): ``-log sum exp(log K + other potential)`` of each line in round ``index``.

    Rows see the columns' potentials of the round before (zero before the first), columns the rows' of their own round.
    """
    pair, pairs = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    own = tl.program_id(0) * OWN + tl.arange(0, OWN)
    there = tl.load(exists + pair * length + own, mask=own < length, other=0) != 0
    end = other_length
    last = index - 1  # the last round of which marginals are known
    if ROWS:
        last -= 1
    if STOPS:  # noqa: SIM102 - decided when the kernel is compiled
        if last >= 0:
            end = tl.where(tl.load(missing + last * pairs + pair) <= tolerance, 0, other_length)
    other_place = other_potentials + (index * pairs + pair) * other_length
    known = other_length
    if ROWS:
        other_place -= pairs * other_length
        known = tl.where(index > 0, other_length, 0)
    base = cost + pair * length * other_length
    largest = tl.full((OWN,), -1e30, DTYPE)
    total = tl.zeros((OWN,), DTYPE)
    for start in range(0, end, OTHER):
        other = start + tl.arange(0, OTHER)
        inside = other < other_length
        other_there = tl.load(other_exists + pair * other_length + other, mask=inside, other=0) != 0
        potential = tl.load(other_place + other, mask=other < known, other=0.0)
        both = there[:, None] & other_there[None, :]
        place = own.to(tl.int64)[:, None] * stride + other.to(tl.int64)[None, :] * other_stride
        values = tl.load(base + place, mask=both, other=0.0) * -INV_EPSILON + potential[None, :]
        values = tl.where(both, values, _ABSENT)
        larger = tl.maximum(largest, tl.max(values, 1))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(values - larger[:, None]), 1)
        largest = larger
    filled = there & (largest > _ABSENT)
    found = tl.where(filled, -(largest + tl.log(tl.where(filled, total, 1.0))), 0.0)
    own_place = own_potentials + (index * pairs + pair) * length + own
    tl.store(own_place, found, mask=own < length)
    if ROWS and STOPS:  # noqa: SIM102 - the rows' masses after the round before
        if index > 0:
            was = tl.load(own_place - pairs * length, mask=own < length, other=0.0)
            off = tl.abs(tl.load(masses + pair) * tl.exp(was - found) - 1)
            # a pair that has stopped stays so
            off = tl.where(own < tl.where(end > 0, length, 0), tl.where(there, off, 0.0), 0.0)
            tl.atomic_max(missing + (index - 1) * pairs + pair, tl.max(off, 0))


@triton.jit(do_not_specialize=["index"])
def _contract(
    cost,
    own_potentials,
    other_potentials,
    weights,
    last_gradient,
    result,
    exists,
    other_exists,
    masses,
    rounds,
    length,
    other_length,
    stride,
    other_stride,
    index,
    INV_EPSILON: tl.constexpr,
    OF_THE_PLAN: tl.constexpr,
    BEFORE: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Program (block of lines, pair): a line of the plan times cost, or the gradient of a potential.

    The gradient of the potentials of round ``index`` (with BEFORE, of the round before it) is minus the plan between
    them and the other side's of ``index``, times the gradient of those. In a pair's last round its own gradient comes
    on top.
    """
    pair, pairs = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    own = tl.program_id(0) * OWN + tl.arange(0, OWN)
    there = tl.load(exists + pair * length + own, mask=own < length, other=0) != 0
    run = tl.load(rounds + pair)
    base = cost + pair * length * other_length
    own_index = index - BEFORE
    end = tl.where(index < run, other_length, 0)
    if OF_THE_PLAN:  # the potentials of the pair's last round
        index = run - 1
        own_index = run - 1
        end = other_length
    own_place = (own_index * pairs + pair) * length + own
    other_place = (index * pairs + pair) * other_length
    mine = tl.load(own_potentials + own_place, mask=own < length, other=0.0)
    total = tl.zeros((OWN,), DTYPE)
    for start in range(0, end, OTHER):
        other = start + tl.arange(0, OTHER)
        inside = other < other_length
        other_there = tl.load(other_exists + pair * other_length + other, mask=inside, other=0) != 0
        potential = tl.load(other_potentials + other_place + other, mask=inside, other=0.0)
        both = there[:, None] & other_there[None, :]
        place = own.to(tl.int64)[:, None] * stride + other.to(tl.int64)[None, :] * other_stride
        price = tl.load(base + place, mask=both, other=0.0)
        values = tl.where(both, tl.exp(price * -INV_EPSILON + mine[:, None] + potential[None, :]), 0.0)
        if OF_THE_PLAN:
            total += tl.sum(values * price, 1)
        else:
            weight = tl.load(weights + other_place + other, mask=inside, other=0.0)
            total -= tl.sum(values * weight[None, :], 1)
    if OF_THE_PLAN:
        tl.store(result + pair * length + own, total * tl.load(masses + pair), mask=own < length)
    else:
        entering = tl.where(own_index == run - 1, length, 0)
        total += tl.load(last_gradient + pair * length + own, mask=own < entering, other=0.0)
        tl.store(result + own_place, total, mask=own < length)


@triton.jit
def _cost_gradient(
    cost,
    f,
    g,
    of_f,
    of_g,
    row_mask,
    column_mask,
    masses,
    rounds,
    rows,
    columns,
    INV_EPSILON: tl.constexpr,
    UNROLLED: tl.constexpr,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Program (block of columns, block of rows, pair): the gradient of the cost in the cost's place.

    ``f`` and ``g`` hold the potentials of all rounds, ``of_f`` and ``of_g`` the gradients with which each was used.
    """
    pair, pairs = tl.program_id(2).to(tl.int64), tl.num_programs(2).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    j = tl.program_id(0) * TILE + tl.arange(0, TILE)
    at_i, at_j = pair * rows + i, pair * columns + j
    row_there = tl.load(row_mask + at_i, mask=i < rows, other=0) != 0
    column_there = tl.load(column_mask + at_j, mask=j < columns, other=0) != 0
    both = row_there[:, None] & column_there[None, :]
    place = cost + at_i[:, None] * columns + j[None, :]
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    price = tl.load(place, mask=both, other=0.0)
    kernel = tl.where(both, price * -INV_EPSILON, _ABSENT)
    run = tl.load(rounds + pair)
    mass = tl.load(masses + pair)
    last_f = tl.load(f + (run - 1) * pairs * rows + at_i, mask=i < rows, other=0.0)
    last_g = tl.load(g + (run - 1) * pairs * columns + at_j, mask=j < columns, other=0.0)
    plan = tl.exp(kernel + last_f[:, None] + last_g[None, :]) * mass
    result = plan
    if UNROLLED:
        of_kernel = plan * price
        before = tl.zeros((TILE,), DTYPE)
        for index in range(0, run):
            row_place, column_place = index * pairs * rows + at_i, index * pairs * columns + at_j
            now_f = tl.load(f + row_place, mask=i < rows, other=0.0)
            now_g = tl.load(g + column_place, mask=j < columns, other=0.0)
            df = tl.load(of_f + row_place, mask=i < rows, other=0.0)
            dg = tl.load(of_g + column_place, mask=j < columns, other=0.0)
            half = kernel + now_f[:, None]
            of_kernel -= tl.exp(half + before[None, :]) * df[:, None] + tl.exp(half + now_g[None, :]) * dg[None, :]
            before = now_g
        result -= of_kernel * INV_EPSILON
    tl.store(place, tl.where(both, result, 0.0), mask=inside)


@triton.jit
def _student_gradient(
    cost_gradient, teacher, student, result, rows, columns, kept,
    STRIPE: tl.constexpr, KEPT: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Program (block of student tokens, pair): each cost's gradient by the sign of its differences.

    ``teacher`` is (B, M, k) here: the columns of a token side by side.
    """
    pair = tl.program_id(1).to(tl.int64)
    j = tl.program_id(0) * STRIPE + tl.arange(0, STRIPE)
    kept_column = tl.arange(0, KEPT)
    inside = (j < columns)[:, None] & (kept_column < kept)[None, :]
    place = (pair * kept + kept_column)[None, :] * columns + j[:, None]
    mine = tl.load(student + place, mask=inside, other=0.0)
    total = tl.zeros((STRIPE, KEPT), DTYPE)
    taught = teacher + pair * rows * kept + kept_column
    slopes = cost_gradient + pair * rows * columns + j
    for i in tl.range(0, rows, loop_unroll_factor=8):
        other = tl.load(taught + i * kept, mask=kept_column < kept, other=0.0)[None, :]
        slope = tl.load(slopes + i * columns, mask=j < columns, other=0.0)[:, None]
        total += tl.where(mine > other, slope, tl.where(mine < other, -slope, 0.0))
    tl.store(result + place, total, mask=inside)


@dataclass(frozen=True)
class _Problem:
    """The cost of all pairs and what is known of them; launches that go over it by rows or by columns.

    Attributes:
        cost: (B, M, N).
        masks: (B, M) and (B, N).
        masses: (B,), mass of the plan's columns.
        epsilon: Regularization.
    """

    cost: Float[Tensor, "B M N"]
    masks: tuple[Bool[Tensor, "B M"], Bool[Tensor, "B N"]]
    masses: Float[Tensor, " B"]
    epsilon: float

    def pass_over(
        self, kernel: Any, by_rows: bool, first: tuple[Tensor | None, ...], last: tuple[Any, ...], **switches: bool
    ) -> Callable[[int], None]:
        """What starts ``kernel`` in the round that it is given: on the cost, ``first``, masks, ``last`` and sizes."""
        batch, rows, columns = self.cost.shape
        masks, sizes, tile = self.masks, (rows, columns, columns, 1), {"OWN": _FEW, "OTHER": _MANY}
        if not by_rows:
            masks, sizes, tile = masks[::-1], (columns, rows, 1, columns), {"OWN": _STRIPE, "OTHER": _DOWN}
        sizes = (*sizes, *(number for number in last if not isinstance(number, Tensor) and number is not None))
        tensors = (*masks, self.masses, *(tensor for tensor in last if isinstance(tensor, Tensor) or tensor is None))
        dtype = kernels.TRITON_DTYPES[self.cost.dtype]
        grid = kernels.ceiling_division(sizes[0], tile["OWN"]), batch
        arguments = (self.cost, *first, *tensors, *sizes)
        constants = {**tile, **switches, "INV_EPSILON": 1 / self.epsilon, "DTYPE": dtype, "num_warps": 4}
        return kernels.repeated(kernel, grid, *arguments, **constants)

    def run_rounds(self, iterations: int, tolerance: float) -> tuple[Tensor, Tensor, Int[Tensor, " B"]]:
        """Potentials of all rounds, (n, B, M) and (n, B, N), and how many rounds each pair ran."""
        batch, rows, columns = self.cost.shape
        f = self.cost.new_empty((iterations, batch, rows))
        g = self.cost.new_empty((iterations, batch, columns))
        missing = self.cost.new_zeros((iterations, batch)) if tolerance > 0 else None
        last = (missing, float(tolerance))
        switches = {"STOPS": missing is not None}
        over_rows = self.pass_over(_potentials, True, (f, g), last, ROWS=True, **switches)
        over_columns = self.pass_over(_potentials, False, (g, f), last, ROWS=False, **switches)
        for index in range(iterations):
            over_rows(index)
            over_columns(index)
        if missing is None:
            return f, g, torch.full((batch,), iterations, dtype=torch.int32, device=f.device)
        return f, g, 1 + (missing[:-1] > tolerance).sum(0, dtype=torch.int32)

    def moved(self, by_rows: bool, f: Tensor, g: Tensor, rounds: Tensor) -> Tensor:
        """Plan times cost, summed along rows (B, M) or columns (B, N)."""
        potentials = (f, g) if by_rows else (g, f)
        result = torch.empty_like(potentials[0][0])
        first = (*potentials, None, None, result)
        self.pass_over(_contract, by_rows, first, (rounds,), OF_THE_PLAN=True, BEFORE=False)(0)
        return result

    def turn_into_gradient(self, f: Tensor, g: Tensor, rounds: Tensor, unrolled: bool) -> Float[Tensor, " B"]:
        """Put the gradient of the cost in its place, after reading the distance off it."""
        batch, rows, columns = self.cost.shape
        last_f = self.moved(True, f, g, rounds)
        of_f, of_g = torch.empty_like(f), torch.empty_like(g)
        if unrolled:
            last_g = self.moved(False, f, g, rounds)
            of_g[-1] = last_g
            switches = {"OF_THE_PLAN": False}
            over_rows = self.pass_over(_contract, True, (f, g, of_g, last_f, of_f), (rounds,), BEFORE=False, **switches)
            over_columns = self.pass_over(
                _contract, False, (g, f, of_f, last_g, of_g), (rounds,), BEFORE=True, **switches
            )
            for index in range(len(f) - 1, -1, -1):
                over_rows(index)
                if index > 0:
                    over_columns(index)
        kernels.launch(
            _cost_gradient,
            (kernels.ceiling_division(columns, _TILE), kernels.ceiling_division(rows, _TILE), batch),
            self.cost,
            f,
            g,
            of_f,
            of_g,
            *self.masks,
            self.masses,
            rounds,
            rows,
            columns,
            UNROLLED=unrolled,
            TILE=_TILE,
            INV_EPSILON=1 / self.epsilon,
            DTYPE=kernels.TRITON_DTYPES[self.cost.dtype],
            num_warps=8,
        )
        return last_f.sum(1)


def sinkhorn_tiled(
    teacher: Float[Tensor, "B k M"],
    student: Float[Tensor, "B k N"],
    teacher_mask: Bool[Tensor, "B M"],
    student_mask: Bool[Tensor, "B N"],
    *,
    epsilon: float,
    iterations: int,
    tolerance: float = 0.0,
    unrolled: bool = True,
    gradient: bool = True,
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B k N"] | None]:
    """What `sinkhorn_on_chip` gives, for plans of any size; about four launches a round, and B M N numbers."""
    batch, kept, rows = teacher.shape
    columns = student.shape[2]
    cost = student.new_empty((batch, rows, columns))
    dtype = kernels.TRITON_DTYPES[student.dtype]
    tiles = kernels.ceiling_division(columns, _TILE), kernels.ceiling_division(rows, _TILE), batch
    sizes = rows, columns, kept
    kernels.launch(_cost_tiles, tiles, teacher, student, cost, *sizes, TILE=_TILE, DTYPE=dtype, num_warps=8)
    counts = [mask.sum(1).clamp_(min=1).to(cost.dtype) for mask in (teacher_mask, student_mask)]
    problem = _Problem(cost, (teacher_mask, student_mask), counts[0] / counts[1], epsilon)
    f, g, rounds = problem.run_rounds(iterations, tolerance)
    if not gradient:
        return problem.moved(True, f, g, rounds).sum(1), None
    distances = problem.turn_into_gradient(f, g, rounds, unrolled)
    result = torch.empty_like(student)
    kernels.launch(
        _student_gradient,
        (kernels.ceiling_division(columns, _SHARE), batch),
        cost,
        teacher.mT.contiguous(),
        student,
        result,
        *sizes,
        STRIPE=_SHARE,
        KEPT=kernels.power_of_two(kept),
        DTYPE=dtype,
        num_warps=2,
    )
    return distances, result
