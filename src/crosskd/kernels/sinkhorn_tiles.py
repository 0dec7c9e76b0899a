"""What a round of Sinkhorn does to tiles of a cost matrix, there and back, for `crosskd.kernels.sinkhorn_tiled`."""

# what Triton compiles is not Python to a type checker
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

_ABSENT = tl.constexpr(-1e30)  # the logarithm of an entry that does not exist


@triton.jit
def cost_tiles(teacher, student, cost, rows, columns, kept, TILE: tl.constexpr, DTYPE: tl.constexpr):
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
def potentials(
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
def contract(
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
def cost_gradient(
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
def student_gradient(
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
