"""Log-sum of all entries of a token but some; see `crosskd.losses.partition_pass`."""
# what Triton compiles is not Python to a type checker
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from crosskd.kernels import launch as kernels

_BLOCK = 2048


@triton.jit
def _rest_statistics(
    logits,
    ids,
    maxima,
    log_sums,
    stride_b,
    stride_t,
    tokens,
    vocabulary,
    slots,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Program r: token r of the batch. Its ids are in order, so each block looks at its own alone."""
    row = tl.program_id(0).to(tl.int64)
    base = logits + (row // tokens) * stride_b + (row % tokens) * stride_t
    own_ids = ids + row * slots
    position = 0
    following = tl.load(own_ids)
    maximum = tl.full((), float("-inf"), DTYPE)
    total = tl.zeros((BLOCK,), DTYPE)
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(base + columns, mask=columns < vocabulary, other=float("-inf")).to(DTYPE)
        while following < start + BLOCK:
            values = tl.where(columns == following, float("-inf"), values)
            position += 1
            following = tl.load(own_ids + tl.minimum(position, slots - 1))
            following = tl.where(position < slots, following, vocabulary + BLOCK)
        larger = tl.maximum(maximum, tl.max(values, 0))
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp(tl.where(maximum == larger, 0.0, maximum - shift)) + tl.exp(values - shift)
        maximum = larger
    tl.store(maxima + row, tl.where(maximum == float("-inf"), 0.0, maximum))
    rest = tl.sum(total, 0)
    tl.store(log_sums + row, tl.where(rest > 0, tl.log(tl.where(rest > 0, rest, 1.0)), float("-inf")))


def rest_statistics(
    logits: Float[Tensor, "B T V"], ids: Int[Tensor, "B T n"], dtype: torch.dtype
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Largest logit outside of ``ids``, and the log-sum of the exponentials relative to it.

    Args:
        logits: (B, T, V), entries of a token side by side.
        ids: (B, T, n) int64 in [0, V), n at least 1, in any order; an id may be repeated.
        dtype: What is computed in, float32 or float64.

    Returns:
        (B, T) each; 0 and minus infinity where nothing is left.
    """
    batch, tokens, vocabulary = logits.shape
    maxima = logits.new_empty((batch, tokens), dtype=dtype)
    log_sums = torch.empty_like(maxima)
    kernels.launch(
        _rest_statistics,
        (batch * tokens,),
        logits,
        ids.sort(dim=-1).values.contiguous(),
        maxima,
        log_sums,
        logits.stride(0),
        logits.stride(1),
        tokens,
        vocabulary,
        ids.shape[-1],
        BLOCK=min(_BLOCK, kernels.power_of_two(vocabulary)),
        DTYPE=kernels.TRITON_DTYPES[dtype],
        num_warps=8,
    )
    return maxima, log_sums
