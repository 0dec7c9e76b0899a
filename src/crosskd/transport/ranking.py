"""Sequence-level ranking: one order of the vocabulary for a whole answer (Eq. 10)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosskd.kernels import use_triton
from crosskd.transport.softmax_statistics import softmax_statistics


def rank_columns(
    logits: Float[Tensor, "B T V"], mask: Bool[Tensor, "B T"], k: int, temperature: float = 1.0
) -> Int[Tensor, "B k"]:
    """The ``k`` columns with the largest summed probability over a sequence, largest first.

    Each sequence gets its own order, ``argsort_j sum_t p_j(t)`` descending (Eq. 10, arXiv 2412.14528), cut to its first
    ``k`` columns (Eq. 12).

    Equivalent to:
        >>> probabilities = (logits / temperature).softmax(-1) * mask[..., None]
        >>> probabilities.sum(1).sort(descending=True, stable=True).indices[:, :k]

    Args:
        logits: (B, T, V), any floating dtype.
        mask: (B, T), true on answer tokens.
        k: Columns to keep; values above V keep all V.
        temperature: Positive.

    Returns:
        Column ids, (B, min(k, V)), int64. Equal sums are ordered by id, the smaller first.

    Cost: one pass over (B, T, V), one over (B, V); memory O(B V).
    """
    column_sums = softmax_statistics(logits, (temperature,), mask).column_sums
    assert column_sums is not None  # a mask was given
    return largest_columns(column_sums, k)


def largest_columns(column_sums: Float[Tensor, "B V"], k: int) -> Int[Tensor, "B k"]:
    """Ids of the ``k`` largest of the nonnegative sums, (B, min(k, V)), largest first; ties go to the smaller id."""
    vocabulary = column_sums.shape[-1]
    k = min(k, vocabulary)
    if use_triton(column_sums):
        from crosskd.kernels.selection import select_largest

        return select_largest(column_sums, k)
    if column_sums.dtype != torch.float32 or k * 8 > vocabulary:
        return column_sums.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    # The bits of a nonnegative float32 order like the number itself, so (bits, -id) in one int64 gives topk, which
    # is not stable, the ties of a stable sort at a fraction of its cost.
    ids = torch.arange(vocabulary - 1, -1, -1, device=column_sums.device)
    keys = column_sums.view(torch.int32).to(torch.int64).bitwise_left_shift_(32).bitwise_or_(ids)
    return keys.topk(k, dim=-1).indices
