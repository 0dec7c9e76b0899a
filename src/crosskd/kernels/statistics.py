"""One read of the logits for maxima and log-sums, another for column sums: see `crosskd.transport`."""
# what Triton compiles is not Python to a type checker
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosskd.kernels import MOST_TEMPERATURES
from crosskd.kernels import launch as kernels

# Columns that a program reads at once; a row of the vocabulary is one program's.
_BLOCK = 2048
_COLUMN_BLOCK, _TOKEN_BLOCK = 512, 16
# So many programs keep a large GPU busy; sums of long answers are cut into parts to get there.
_ENOUGH_PROGRAMS = 528


@triton.jit
def _log_of_sum(lanes):
    """Logarithm of a sum of exponentials of which one is 1; a row of minus infinities is NaN, as in torch."""
    total = tl.sum(lanes, 0)
    return tl.log(tl.where(total == 0, float("nan"), total))


@triton.jit
def _row_statistics(
    logits,
    labels,
    maxima,
    log_sums,
    losses,
    stride_b,
    stride_t,
    tokens,
    vocabulary,
    HAS_LABELS: tl.constexpr,
    N: tl.constexpr,
    SQUARE: tl.constexpr,
    INV_0: tl.constexpr,
    INV_1: tl.constexpr,
    INV_2: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Program r: token r of the batch. Sums stay one for each lane until the end; only the maximum is shared."""
    row = tl.program_id(0)
    base = logits + (row // tokens).to(tl.int64) * stride_b + (row % tokens).to(tl.int64) * stride_t
    lanes = tl.arange(0, BLOCK)
    maximum = tl.full((), float("-inf"), DTYPE)
    sum_0 = tl.zeros((BLOCK,), DTYPE)
    sum_1 = tl.zeros((BLOCK,), DTYPE)
    sum_2 = tl.zeros((BLOCK,), DTYPE)
    for start in range(0, vocabulary, BLOCK):
        columns = start + lanes
        values = tl.load(base + columns, mask=columns < vocabulary, other=float("-inf")).to(DTYPE)
        larger = tl.maximum(maximum, tl.max(values, 0))
        # a maximum of minus infinity would make NaN of what is merely absent
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        down = tl.where(maximum == larger, 0.0, maximum - shift)
        values -= shift
        if SQUARE:  # exp(z) is the square of exp(z / 2)
            half = tl.exp(values * INV_1)
            sum_0 = sum_0 * tl.exp(down * INV_0) + half * half
            sum_1 = sum_1 * tl.exp(down * INV_1) + half
        else:
            sum_0 = sum_0 * tl.exp(down * INV_0) + tl.exp(values * INV_0)
            if N > 1:
                sum_1 = sum_1 * tl.exp(down * INV_1) + tl.exp(values * INV_1)
        if N > 2:
            sum_2 = sum_2 * tl.exp(down * INV_2) + tl.exp(values * INV_2)
        maximum = larger
    log_sum = _log_of_sum(sum_0)
    tl.store(maxima + row, maximum)
    tl.store(log_sums + row * N, log_sum)
    if N > 1:
        tl.store(log_sums + row * N + 1, _log_of_sum(sum_1))
    if N > 2:
        tl.store(log_sums + row * N + 2, _log_of_sum(sum_2))
    if HAS_LABELS:
        label = tl.load(labels + row)
        labelled = label >= 0
        logit = tl.load(base + tl.where(labelled, label, 0)).to(DTYPE)
        tl.store(losses + row, tl.where(labelled, log_sum - (logit - maximum), 0.0))


@triton.jit
def _column_sums(
    logits,
    maxima,
    log_sums,
    mask,
    sums,
    stride_b,
    stride_t,
    tokens,
    vocabulary,
    tokens_a_part,
    N: tl.constexpr,
    INV: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Program (block of columns, sequence, part of the tokens): probabilities summed over the tokens of the mask."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sequence, part = tl.program_id(1), tl.program_id(2)
    base = logits + sequence.to(tl.int64) * stride_b
    inside = columns < vocabulary
    total = tl.zeros((TOKENS, BLOCK), DTYPE)
    end = tl.minimum(tokens, (part + 1) * tokens_a_part)
    for start in range(part * tokens_a_part, end, TOKENS):
        token = start + tl.arange(0, TOKENS)
        rows = sequence * tokens + token
        # not masked by the tokens that count: the logits would wait for the mask to arrive
        places = token.to(tl.int64)[:, None] * stride_t + columns[None, :]
        there = (token < end)[:, None] & inside[None, :]
        values = tl.load(base + places, mask=there, other=float("-inf")).to(DTYPE)
        counted = tl.load(mask + rows, mask=token < end, other=0) != 0
        maximum = tl.load(maxima + rows, mask=token < end, other=0.0)
        log_sum = tl.load(log_sums + rows * N, mask=token < end, other=0.0)
        probabilities = tl.exp((values - maximum[:, None]) * INV - log_sum[:, None])
        total += tl.where(counted[:, None], probabilities, 0.0)
    place = (part * tl.num_programs(1) + sequence).to(tl.int64) * vocabulary
    tl.store(sums + place + columns, tl.sum(total, 0), mask=inside)


def with_contiguous_rows(logits: Tensor) -> Tensor:
    """``logits`` (B, T, V), copied if the entries of a token are not side by side."""
    return logits if logits.stride(-1) == 1 or logits.shape[-1] < 2 else logits.contiguous()


def square(temperatures: tuple[float, ...]) -> bool:
    """Whether the second temperature is twice the first: then one exponential serves both."""
    return len(temperatures) > 1 and temperatures[1] == 2 * temperatures[0]


@lru_cache(maxsize=64)
def inverses(temperatures: tuple[float, ...]) -> dict[str, float]:
    """One over each temperature, as the kernels take them."""
    padded = (*temperatures, *(1.0,) * (MOST_TEMPERATURES - len(temperatures)))
    return {f"INV_{index}": 1 / temperature for index, temperature in enumerate(padded)}


def row_statistics(
    logits: Float[Tensor, "B T V"],
    temperatures: tuple[float, ...],
    dtype: torch.dtype,
    labels: Int[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T n"], Float[Tensor, "B T"] | None]:
    """Maximum and log-sums of each token, and its cross-entropy where it has a label of at least 0; one launch.

    Args:
        logits: (B, T, V), any floating dtype, entries of a token side by side.
        temperatures: At most three; cross-entropy is at the first.
        dtype: What is computed in, float32 or float64.
        labels: (B, T) int64, contiguous; negative for none.
    """
    batch, tokens, vocabulary = logits.shape
    maxima = logits.new_empty((batch, tokens), dtype=dtype)
    log_sums = logits.new_empty((batch, tokens, len(temperatures)), dtype=dtype)
    losses = None if labels is None else torch.empty_like(maxima)
    kernels.launch(
        _row_statistics,
        (batch * tokens,),
        logits,
        labels,
        maxima,
        log_sums,
        losses,
        logits.stride(0),
        logits.stride(1),
        tokens,
        vocabulary,
        HAS_LABELS=labels is not None,
        N=len(temperatures),
        SQUARE=square(temperatures),
        **inverses(temperatures),
        BLOCK=min(_BLOCK, kernels.power_of_two(vocabulary)),
        DTYPE=kernels.TRITON_DTYPES[dtype],
        num_warps=4,
    )
    return maxima, log_sums, losses


def column_sums(
    logits: Float[Tensor, "B T V"],
    maxima: Float[Tensor, "B T"],
    log_sums: Float[Tensor, "B T n"],
    mask: Bool[Tensor, "B T"],
    temperature: float,
) -> Float[Tensor, "B V"]:
    """Probabilities at ``temperature``, the first of ``log_sums``, summed over the tokens of ``mask``."""
    batch, tokens, vocabulary = logits.shape
    blocks = kernels.ceiling_division(vocabulary, _COLUMN_BLOCK)
    parts = max(1, min(_ENOUGH_PROGRAMS // max(1, blocks * batch), tokens // (4 * _TOKEN_BLOCK)))
    tokens_a_part = kernels.ceiling_division(max(1, tokens), parts)
    sums = maxima.new_empty((parts, batch, vocabulary))
    kernels.launch(
        _column_sums,
        (blocks, batch, parts),
        logits,
        maxima,
        log_sums,
        mask.contiguous(),
        sums,
        logits.stride(0),
        logits.stride(1),
        tokens,
        vocabulary,
        tokens_a_part,
        N=log_sums.shape[-1],
        INV=1 / temperature,
        BLOCK=_COLUMN_BLOCK,
        TOKENS=_TOKEN_BLOCK,
        DTYPE=kernels.TRITON_DTYPES[maxima.dtype],
        num_warps=8,
    )
    return sums[0] if parts == 1 else sums.sum(0)
