"""One read and one write for the gradient of everything that is made of log-sums, columns and labels.

The gradient of a token's logits z is ``sum_i w_i softmax(z / tau_i)``, with ``w_i = dL/dlog_sum_i / tau_i``, plus the
gradients of the columns and of the label, each at its own place. Columns are computed again from their logits and
written last, so that half precision rounds once and a column may stand in several slots.
"""
# what Triton compiles is not Python to a type checker
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from crosskd.kernels import launch as kernels
from crosskd.kernels.statistics import inverses, square

_BLOCK = 4096
# A row of the vocabulary is cut among programs until there are so many of them.
_ENOUGH_PROGRAMS = 1056


@triton.jit
def softmax_mixture(
    shifted, weight_0, weight_1, weight_2, N: tl.constexpr, SQUARE: tl.constexpr, INV_0: tl.constexpr,
    INV_1: tl.constexpr, INV_2: tl.constexpr,
):  # fmt: skip
    """``sum_i weight_i exp(shifted / tau_i)``: weights hold one over the sum of exponentials already."""
    if SQUARE:
        half = tl.exp(shifted * INV_1)
        result = half * (weight_1 + weight_0 * half)
    else:
        result = weight_0 * tl.exp(shifted * INV_0)
        if N > 1:
            result += weight_1 * tl.exp(shifted * INV_1)
    if N > 2:
        result += weight_2 * tl.exp(shifted * INV_2)
    return result


@triton.jit
def write_mixture(
    logits, result, low, high, maximum, weight_0, weight_1, weight_2, label, label_gradient,
    N: tl.constexpr, SQUARE: tl.constexpr, INV_0: tl.constexpr, INV_1: tl.constexpr, INV_2: tl.constexpr,
    BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Columns low to high of one token: the mixture of softmaxes, and the gradient of the label."""
    lanes = tl.arange(0, BLOCK)
    for start in range(low, high, BLOCK):
        columns = start + lanes
        inside = columns < high
        shifted = tl.load(logits + columns, mask=inside, other=float("-inf")).to(DTYPE) - maximum
        values = softmax_mixture(shifted, weight_0, weight_1, weight_2, N, SQUARE, INV_0, INV_1, INV_2)
        values += tl.where(columns == label, label_gradient, 0.0)
        tl.store(result + columns, values.to(result.dtype.element_ty), mask=inside)


@triton.jit
def _answer_gradient(
    logits,
    result,
    maxima,
    log_sums,
    labels,
    loss_gradient,
    log_sum_gradient,
    ids,
    id_gradient,
    stride_b,
    stride_t,
    id_stride_b,
    id_stride_t,
    tokens,
    vocabulary,
    slots,
    columns_a_part,
    HAS_LABELS: tl.constexpr,
    HAS_LOG_SUMS: tl.constexpr,
    DIVIDED: tl.constexpr,
    PARTITION: tl.constexpr,
    SLOTS: tl.constexpr,
    N: tl.constexpr,
    SQUARE: tl.constexpr,
    INV_0: tl.constexpr,
    INV_1: tl.constexpr,
    INV_2: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Program (token, part of the vocabulary)."""
    row = tl.program_id(0)
    sequence, token = row // tokens, row % tokens
    base = logits + sequence.to(tl.int64) * stride_b + token.to(tl.int64) * stride_t
    into = result + row.to(tl.int64) * vocabulary
    maximum = tl.load(maxima + row)
    weight_0 = tl.zeros((), DTYPE)
    weight_1 = tl.zeros((), DTYPE)
    weight_2 = tl.zeros((), DTYPE)
    if HAS_LOG_SUMS:
        weight_0 += tl.load(log_sum_gradient + row * N).to(DTYPE)
        if N > 1:
            weight_1 += tl.load(log_sum_gradient + row * N + 1).to(DTYPE)
        if N > 2:
            weight_2 += tl.load(log_sum_gradient + row * N + 2).to(DTYPE)
    label = -1
    label_gradient = tl.zeros((), DTYPE)
    if HAS_LABELS:
        label = tl.load(labels + row)
        if PARTITION:
            label_gradient += tl.load(loss_gradient + row).to(DTYPE)
        else:
            of_loss = tl.where(label >= 0, tl.load(loss_gradient).to(DTYPE), 0.0)
            weight_0 += of_loss  # at temperature 1, which is the first where there are labels
            label_gradient -= of_loss
    if not DIVIDED:
        weight_0 *= INV_0
        weight_1 *= INV_1
        weight_2 *= INV_2
    log_sum = tl.load(log_sums + row * N)
    if PARTITION:  # minus infinity where there is no rest: then all entries are among the ids
        log_sum = tl.where(log_sum == float("-inf"), 0.0, log_sum)
    weight_0 *= tl.exp(-log_sum)
    if N > 1:
        weight_1 *= tl.exp(-tl.load(log_sums + row * N + 1))
    if N > 2:
        weight_2 *= tl.exp(-tl.load(log_sums + row * N + 2))
    low = tl.program_id(1) * columns_a_part
    high = tl.minimum(vocabulary, low + columns_a_part)
    if SLOTS > 0:
        slot = tl.arange(0, SLOTS)
        id_base = ids + sequence.to(tl.int64) * id_stride_b + token.to(tl.int64) * id_stride_t
        gradients = id_gradient + row.to(tl.int64) * slots
        column = tl.load(id_base + slot, mask=slot < slots, other=-1)
        here = (column >= low) & (column < high)
        # read before anything is written: the result may take the logits' place
        shifted = tl.load(base + column, mask=here, other=0.0).to(DTYPE) - maximum
        added = tl.where(column == label, label_gradient, tl.zeros((SLOTS,), DTYPE))
        for other in range(0, slots):
            same = column == tl.load(id_base + other)
            added += tl.where(same, tl.load(gradients + other).to(DTYPE), 0.0)
        at_columns = added
        if not PARTITION:
            at_columns += softmax_mixture(shifted, weight_0, weight_1, weight_2, N, SQUARE, INV_0, INV_1, INV_2)
    write_mixture(
        base, into, low, high, maximum, weight_0, weight_1, weight_2, label, label_gradient,
        N, SQUARE, INV_0, INV_1, INV_2, BLOCK, DTYPE,
    )  # fmt: skip
    if SLOTS > 0:
        tl.debug_barrier()  # the columns' own values come after those of the loop
        tl.store(into + column, at_columns.to(result.dtype.element_ty), mask=here)


def parts_of_vocabulary(rows: int, vocabulary: int) -> tuple[int, int]:
    """(programs for a row, columns of each): whole blocks, and enough programs for a large GPU."""
    blocks = max(1, kernels.ceiling_division(vocabulary, _BLOCK))
    parts = max(1, min(blocks, _ENOUGH_PROGRAMS // max(1, rows)))
    each = kernels.ceiling_division(blocks, parts) * _BLOCK
    return kernels.ceiling_division(max(1, vocabulary), each), each


def answer_gradient(
    logits: Float[Tensor, "B T V"],
    maxima: Float[Tensor, "B T"],
    log_sums: Float[Tensor, "B T n"],
    temperatures: tuple[float, ...],
    *,
    labels: Int[Tensor, "B T"] | None = None,
    loss_gradient: Float[Tensor, ""] | None = None,
    log_sum_gradient: Float[Tensor, "B T n"] | None = None,
    divided: bool = False,
    partition: bool = False,
    ids: Int[Tensor, "B T k"] | None = None,
    id_gradient: Float[Tensor, "B T k"] | None = None,
    into: Float[Tensor, "B T V"] | None = None,
) -> Float[Tensor, "B T V"]:
    """Gradient of the logits, in their dtype; one launch.

    Args:
        logits: (B, T, V), entries of a token side by side.
        maxima: (B, T) of `row_statistics`, in the dtype that is computed in.
        log_sums: (B, T, n) of `row_statistics`, contiguous.
        temperatures: Those of ``log_sums``; the first is 1 where there are labels.
        labels: (B, T) int64, contiguous, negative for none; with ``loss_gradient``, that of the summed cross-entropy.
        log_sum_gradient: (B, T, n), contiguous.
        divided: Whether ``log_sum_gradient`` is divided by the temperatures already; then no labels.
        partition: Whether ids have their own gradients alone, no part of the mixture, and ``loss_gradient`` is (B, T),
            contiguous, the gradients of the labels' logits.
        ids: (B, T, k) int64, the slots of a token side by side; an id may stand in several slots. With ``id_gradient``,
            (B, T, k), contiguous.
        into: Where to write, contiguous; it may be ``logits``.
    """
    batch, tokens, vocabulary = logits.shape
    result = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device) if into is None else into
    parts, columns_a_part = parts_of_vocabulary(batch * tokens, vocabulary)
    slots = 0 if ids is None else ids.shape[-1]
    kernels.launch(
        _answer_gradient,
        (batch * tokens, parts),
        logits,
        result,
        maxima,
        log_sums,
        labels,
        loss_gradient,
        log_sum_gradient,
        ids,
        id_gradient,
        logits.stride(0),
        logits.stride(1),
        0 if ids is None else ids.stride(0),
        0 if ids is None else ids.stride(1),
        tokens,
        vocabulary,
        slots,
        columns_a_part,
        HAS_LABELS=labels is not None,
        HAS_LOG_SUMS=log_sum_gradient is not None,
        DIVIDED=divided,
        PARTITION=partition,
        SLOTS=0 if slots == 0 else kernels.power_of_two(slots),
        N=len(temperatures),
        SQUARE=square(temperatures),
        **inverses(temperatures),
        BLOCK=_BLOCK,
        DTYPE=kernels.TRITON_DTYPES[maxima.dtype],
        num_warps=8,
    )
    return result
