"""Standardized logits and columns shared by a batch: what the authors' published code ranks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosskd.losses.target_types import TargetRequest, TeacherTargets
from crosskd.transport.ranking import largest_columns
from crosskd.transport.softmax_statistics import compute_dtype, softmax_statistics

_DEVIATION_FLOOR = 1e-4  # added to the standard deviation of a token's logits


def standardized(logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T V"]:
    """Logits over their standard deviation across the vocabulary (n - 1 in the variance), no mean subtracted.

    A new float32 (float64) tensor of the logits' size: this formulation does not save memory as the paper's does.
    """
    logits = logits.to(compute_dtype(logits.dtype))
    return logits / (logits.std(-1, keepdim=True) + _DEVIATION_FLOOR)


@torch.no_grad()
def standardized_targets(
    teacher_logits: Float[Tensor, "B T V"], teacher_mask: Bool[Tensor, "B T"], request: TargetRequest
) -> TeacherTargets:
    """Log-probabilities of standardized logits in columns that the whole batch shares.

    The columns depend on every sequence of the batch, which ``ranked_with`` records: such targets give the published
    numbers only in the batch that they were made in.
    """
    logits = standardized(teacher_logits)
    statistics = softmax_statistics(logits, (1.0,), teacher_mask)
    ids = shared_columns(statistics.column_sums, request.top_k or logits.shape[-1])
    values = logits[..., ids] - statistics.maximum - statistics.log_sums
    batch = len(logits)
    return TeacherTargets(
        mask=teacher_mask,
        vocabulary_size=logits.shape[-1],
        column_ids=ids.to(torch.int32).expand(batch, -1).contiguous(),
        column_log_probabilities=values,
        ranked_with=batch,
    )


def shared_columns(column_sums: Tensor | None, k: int) -> Int[Tensor, " k"]:
    """One ranking for the whole batch."""
    assert column_sums is not None  # callers gave a mask
    return largest_columns(column_sums.sum(0, keepdim=True), k)[0]
