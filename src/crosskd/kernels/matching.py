"""Greedy and exact matching of a whole batch: distances to every student column, the nearest of them, a choice.

Nothing depends on the data in its size, so the host waits for nothing; only the assignments of ``exact`` are solved on
it, with one transfer there and one back. See `crosskd.transport.matching` for what is computed.
"""
# what Triton compiles is not Python to a type checker
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosskd.kernels import launch as kernels
from crosskd.kernels.selection import MOST_ENTRIES, select_largest

# Columns that can be matched; of exact matching's, k costs for each of k^2 candidates go to the host.
_MOST_COLUMNS = {"greedy": MOST_ENTRIES, "exact": 128}
# Bytes of costs that are held at once; sequences beyond them wait for their turn.
_COST_BYTES = 2**28
# A program compares twice so many student columns (half of them in float64) with so many teacher columns.
_BLOCK, _ROWS = 128, 16


@triton.jit
def _probabilities(places, offset, shift, log_sum, counted, inside, DTYPE: tl.constexpr, SUM_DTYPE: tl.constexpr):
    """The student's probabilities of a few columns at one token, zero where that is not compared."""
    values = tl.load(places + offset, mask=inside, other=0.0).to(DTYPE)
    return tl.where(counted, tl.exp(values - shift - log_sum), 0.0).to(SUM_DTYPE)


@triton.jit
def _distances(teacher, student, TIE_WEIGHT: tl.constexpr):
    """What one token adds to the costs of (teacher column, student column)."""
    distance = tl.abs(teacher[:, None] - student[None, :])
    if TIE_WEIGHT > 0:
        distance += TIE_WEIGHT * distance * distance
    return distance


@triton.jit(do_not_specialize=["tokens", "student_tokens", "k"])
def _costs(
    logits,
    maximum,
    log_sums,
    teacher,
    compared,
    candidates,
    costs,
    stride_b,
    stride_t,
    stride_v,
    tokens,
    student_tokens,
    columns,
    k,
    N: tl.constexpr,
    CANDIDATES: tl.constexpr,
    TIE_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
):
    """Program (teacher columns, student columns, sequence): their distances, token by token.

    A thread holds two student columns, so that it has twice as much to do with each teacher value that it loads.
    """
    sequence = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * 2 * BLOCK + tl.arange(0, BLOCK)
    second = first + BLOCK
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    loaded_rows = tl.minimum(rows, k - 1)  # what is beyond k is not stored
    first_ids, second_ids = first, second
    if CANDIDATES:
        wanted = candidates + sequence * columns
        first_ids = tl.load(wanted + first, mask=first < columns, other=0)
        second_ids = tl.load(wanted + second, mask=second < columns, other=0)
    first_places = logits + first_ids.to(tl.int64) * stride_v
    second_places = logits + second_ids.to(tl.int64) * stride_v
    first_total = tl.zeros((ROWS, BLOCK), SUM_DTYPE)
    second_total = tl.zeros((ROWS, BLOCK), SUM_DTYPE)
    offset = sequence * stride_b
    for token in tl.range(0, tokens, loop_unroll_factor=2):  # pyright: ignore
        place = sequence * student_tokens + token
        compared_place = sequence * tokens + token
        counted = tl.load(compared + compared_place) != 0
        shift = tl.load(maximum + place)
        log_sum = tl.load(log_sums + place * N)
        values = tl.load(teacher + compared_place * k + loaded_rows).to(SUM_DTYPE)
        one = _probabilities(first_places, offset, shift, log_sum, counted, first < columns, DTYPE, SUM_DTYPE)
        two = _probabilities(second_places, offset, shift, log_sum, counted, second < columns, DTYPE, SUM_DTYPE)
        first_total += _distances(values, one, TIE_WEIGHT)
        second_total += _distances(values, two, TIE_WEIGHT)
        offset += stride_t
    places = (sequence * k + rows)[:, None] * columns
    tl.store(costs + (places + first[None, :]), first_total, mask=(rows < k)[:, None] & (first < columns)[None, :])
    tl.store(costs + (places + second[None, :]), second_total, mask=(rows < k)[:, None] & (second < columns)[None, :])


@triton.jit(do_not_specialize=["k"])
def _greedy(near, matched, k, K: tl.constexpr):
    """Program b: each row of a sequence in turn takes the first of its nearest that no earlier row took."""
    sequence = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, K)
    taken = tl.full((K,), -1, tl.int32)
    for row in range(0, k):
        ids = tl.load(near + (sequence * k + row) * k + places, mask=places < k, other=-1).to(tl.int32)
        is_taken = tl.max((ids[:, None] == taken[None, :]).to(tl.int32), 1)
        first = tl.min(tl.where((is_taken == 0) & (places < k), places, K), 0)
        choice = tl.sum(tl.where(places == first, ids, 0), 0)
        taken = tl.where(places == row, choice, taken)
    tl.store(matched + sequence * k + places, taken, mask=places < k)


@dataclass(frozen=True)
class Columns:
    """What the columns of a batch are compared by, on one device.

    Attributes:
        logits: (B, T_s, V) of the student, any floating dtype and strides.
        maximum: (B, T_s, 1), largest logit of each token, float32 or float64.
        log_sums: (B, T_s, n), log-sums at temperature 1 first, of the same dtype.
        teacher: (B, T, k), probabilities of the teacher's columns, of the same dtype, zero where not compared.
        compared: (B, T), T at most T_s: tokens that count.
    """

    logits: Float[Tensor, "B T_s V"]
    maximum: Float[Tensor, "B T_s 1"]
    log_sums: Float[Tensor, "B T_s n"]
    teacher: Float[Tensor, "B T k"]
    compared: Bool[Tensor, "B T"]

    def part(self, start: int, end: int) -> Columns:
        """The sequences from ``start`` to before ``end``."""
        tensors = (self.logits, self.maximum, self.log_sums, self.teacher, self.compared)
        return Columns(*(tensor[start:end] for tensor in tensors))


def columns_of(
    logits: Float[Tensor, "B T_s V"],
    maximum: Float[Tensor, "B T_s 1"],
    log_sums: Float[Tensor, "B T_s n"],
    teacher_values: Float[Tensor, "B T_t m"],
    compared: Bool[Tensor, "B T"],
) -> Columns:
    """Columns of a batch; of the teacher's the first min(m, V), whatever dtype they have and tokens beyond T."""
    k = min(teacher_values.shape[-1], logits.shape[-1])
    teacher = teacher_values[:, : compared.shape[1], :k].masked_fill(~compared.unsqueeze(-1), 0)
    teacher = teacher.to(maximum.dtype).contiguous()
    return Columns(logits, maximum.contiguous(), log_sums.contiguous(), teacher, compared.contiguous())


def can_match(k: int, method: str) -> bool:
    """Whether there are kernels that match so many columns by ``greedy`` or ``exact``."""
    return k <= _MOST_COLUMNS[method]


def match(columns: Columns, method: str, tie_weight: float) -> Int[Tensor, "B k"]:
    """Distinct column ids of each sequence, int64, by ``greedy`` or ``exact``; at least one sequence and column."""
    return match_greedily(columns) if method == "greedy" else match_exactly(columns, tie_weight)


def match_greedily(columns: Columns) -> Int[Tensor, "B k"]:
    """Each teacher column in turn takes the nearest student column that is free.

    Returns:
        Distinct column ids of each sequence, int64, on the device of the logits.

    Cost: four launches and no wait; O(B k T V) operations, memory O(B k V), at most about 256 MiB.
    """
    near = nearest_columns(columns)
    matched = torch.empty(near.shape[:2], dtype=torch.int64, device=near.device)
    k = near.shape[-1]
    padded = kernels.power_of_two(k)
    kernels.launch(_greedy, (len(near),), near, matched, k, K=padded, num_warps=4 if padded <= 64 else 8)
    return matched


def match_exactly(columns: Columns, tie_weight: float) -> Int[Tensor, "B k"]:
    """The assignment of least total cost: L1 distance, and ``tie_weight`` of the squared one.

    Candidates are the k nearest columns of every row: none else can be in a best assignment.

    Returns:
        Distinct column ids of each sequence, int64, on the device of the logits.

    Cost: as ``match_greedily``; then a wait for B k^3 float64 costs on their way to the host (from 256 MiB on
    batches are cut into parts, with a wait for each), and O(k^2 n) there for each sequence, with n at most k^2, several
    at a time.
    """
    near = nearest_columns(columns)
    batch, k, _ = near.shape
    sequences = max(1, _COST_BYTES // (8 * k**3))
    matched: list[Any] = []
    for start in range(0, batch, sequences):
        candidates = near[start : start + sequences].flatten(1)
        costs = column_costs(columns.part(start, start + sequences), candidates, tie_weight)
        matched += _assignments(*_to_host(candidates, costs))
    result = torch.from_numpy(np.stack(matched))
    return result.pin_memory().to(near.device, non_blocking=True) if near.is_cuda else result


def nearest_columns(columns: Columns) -> Int[Tensor, "B k k"]:
    """The k nearest student columns of each teacher column by L1 distance, nearest first, equal ones by id."""
    batch, _, vocabulary = columns.logits.shape
    k = columns.teacher.shape[-1]
    sequences = max(1, _COST_BYTES // (columns.maximum.element_size() * k * vocabulary))
    parts: list[Tensor] = []
    for start in range(0, batch, sequences):
        costs = column_costs(columns.part(start, start + sequences))
        parts.append(select_largest(costs, k, largest=False))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def column_costs(
    columns: Columns, candidates: Int[Tensor, "B n"] | None = None, tie_weight: float = 0.0
) -> Float[Tensor, "B k n"]:
    """L1 distances between the teacher's columns and the student's, over the tokens that count.

    Equivalent to:
        >>> probabilities = (logits - maximum - log_sums[..., :1]).exp()[:, : compared.shape[1]]
        >>> difference = (teacher.unsqueeze(-1) - probabilities.unsqueeze(-2)) * compared[..., None, None]
        >>> difference.abs().sum(1)

    Args:
        columns: Both sides.
        candidates: (B, n) int64, contiguous: the student's columns that are wanted, and added up in float64; None for
            all, in the dtype of the statistics.
        tie_weight: What squared distances count beside the L1 distance.
    """
    batch, student_tokens, vocabulary = columns.logits.shape
    _, tokens, k = columns.teacher.shape
    dtype = columns.maximum.dtype
    sum_dtype = dtype if candidates is None else torch.float64
    wanted = vocabulary if candidates is None else candidates.shape[1]
    costs = columns.maximum.new_empty((batch, k, wanted), dtype=sum_dtype)
    block = min(_BLOCK if sum_dtype == torch.float32 else _BLOCK // 2, kernels.power_of_two(wanted))
    rows = min(_ROWS, kernels.power_of_two(k))
    kernels.launch(
        _costs,
        (kernels.ceiling_division(k, rows), kernels.ceiling_division(wanted, 2 * block), batch),
        columns.logits,
        columns.maximum,
        columns.log_sums,
        columns.teacher,
        columns.compared,
        candidates,
        costs,
        *columns.logits.stride(),
        tokens,
        student_tokens,
        wanted,
        k,
        N=columns.log_sums.shape[-1],
        CANDIDATES=candidates is not None,
        TIE_WEIGHT=tie_weight,
        ROWS=rows,
        BLOCK=block,
        DTYPE=kernels.TRITON_DTYPES[dtype],
        SUM_DTYPE=kernels.TRITON_DTYPES[sum_dtype],
        num_warps=4,
    )
    return costs


def _to_host(*tensors: Tensor) -> list[Any]:
    """Arrays of the tensors; the host waits once for all of them."""
    if not tensors[0].is_cuda:
        return [tensor.numpy() for tensor in tensors]
    copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [copy.numpy() for copy in copies]


def _assignments(candidates: Any, costs: Any) -> list[Any]:
    """The assignment of each sequence, as many at a time as there are processors."""
    if len(candidates) == 1:
        return [_assignment(candidates[0], costs[0])]
    return list(_threads(os.getpid()).map(_assignment, candidates, costs))


@lru_cache(maxsize=1)
def _threads(_process: int) -> ThreadPoolExecutor:
    """Kept from step to step, since starting threads takes longer than an assignment; a fork needs its own."""
    return ThreadPoolExecutor(min(32, os.cpu_count() or 1), thread_name_prefix="crosskd-assignment")


def _assignment(ids: Any, costs: Any) -> Any:
    """Ids (k,) of least total cost among candidates (n,), which may repeat, with costs (k, n)."""
    from scipy.optimize import linear_sum_assignment  # it lets other threads run

    distinct, first = np.unique(ids, return_index=True)
    costs = np.nan_to_num(costs[:, first], copy=False, nan=0, posinf=0, neginf=0)  # scipy refuses NaN
    return distinct[linear_sum_assignment(costs)[1]]
