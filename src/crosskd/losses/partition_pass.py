"""The student's distribution over chosen entries and "anything else", precise even where anything else is tiny.

``1 - sum`` of the chosen probabilities loses a small remainder to rounding, and with it the gradient that MinED needs
exactly where the student is surer than its teacher. So the remainder gets its own log-sum, in the same pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from crosskd.kernels import use_triton
from crosskd.losses.base import IGNORED_LABEL
from crosskd.transport.hidden_logits import HiddenLogits
from crosskd.transport.softmax_statistics import answer_chunks, compute_dtype


@dataclass(frozen=True)
class PartitionPass:
    """Differentiable outputs of ``partition_pass``.

    Attributes:
        cross_entropy: Sum over the labels; zero, with a graph, where there are none.
        log_probabilities: (B, T, n) of the kept entries; 0 in slots that are not kept.
        log_rest: (B, T), log of the probability of all other entries; minus infinity where there are none.
    """

    cross_entropy: Float[Tensor, ""]
    log_probabilities: Float[Tensor, "B T n"]
    log_rest: Float[Tensor, "B T"]


def partition_pass(
    logits: Float[Tensor, "B T V"],
    ids: Int[Tensor, "B T n"],
    keep: Bool[Tensor, "B T n"],
    labels: Int[Tensor, "B T"],
    *,
    chunk_size: int | None = None,
) -> PartitionPass:
    """Cross-entropy, log-probabilities of some entries of each token, and of the rest as one.

    Equivalent to:
        >>> log_softmax = logits.log_softmax(-1)
        >>> cross_entropy = F.nll_loss(log_softmax.flatten(0, 1), labels.flatten(), reduction="sum")
        >>> log_probabilities = log_softmax.gather(-1, ids).masked_fill(~keep, 0)
        >>> log_rest = log_softmax.scatter(-1, ids, -torch.inf).logsumexp(-1)

    Args:
        logits: (B, T, V), any floating dtype.
        ids: (B, T, n) int64 in [0, V).
        keep: (B, T, n), at least one of each token. An id is kept in one slot only, and each slot that is not kept
            repeats an id that is.
        labels: (B, T) int64 in [0, V), or -100.
        chunk_size: Tokens of the batch whose exponentials exist at once; None chooses.

    Returns:
        Everything in float32 (float64 for float64 logits).

    Cost: O(B T V) with one exponential an element each way; memory beside the gradient: chunk_size * V.
    """
    if isinstance(logits, HiddenLogits):
        from crosskd.losses.hidden_pass import hidden_partition_pass

        return hidden_partition_pass(logits, ids, keep, labels, chunk_size)
    labelled = labels != IGNORED_LABEL
    label_ids = labels.masked_fill(~labelled, 0).unsqueeze(-1)
    log_probabilities, log_rest, label_log_probabilities = cast(
        "tuple[Tensor, Tensor, Tensor]",
        _PartitionPass.apply(logits, ids, keep, label_ids, chunk_size),  # pyright: ignore[reportUnknownMemberType]
    )
    cross_entropy = -label_log_probabilities.squeeze(-1).masked_fill(~labelled, 0).sum()
    return PartitionPass(cross_entropy, log_probabilities, log_rest.squeeze(-1))


def _rest_statistics(logits: Tensor, ids: Tensor, chunk_size: int | None) -> tuple[Tensor, Tensor]:
    """Largest logit outside of ``ids`` and the log-sum of exponentials relative to it, both (B, T, 1)."""
    dtype = compute_dtype(logits.dtype)
    if use_triton(logits):
        from crosskd.kernels.partition import rest_statistics

        maxima, log_sums = rest_statistics(logits, ids, dtype)
        return maxima.unsqueeze(-1), log_sums.unsqueeze(-1)
    maximum = logits.new_zeros((*logits.shape[:2], 1), dtype=dtype)
    log_sum = torch.zeros_like(maximum)
    for chunk in answer_chunks(logits, chunk_size):
        buffer = logits[chunk].to(dtype, copy=True).scatter_(-1, ids[chunk], -torch.inf)
        largest = buffer.amax(-1, keepdim=True)
        largest = largest.masked_fill(largest == -torch.inf, 0)  # no rest: its sum is zero whatever the shift
        maximum[chunk] = largest
        log_sum[chunk] = buffer.sub_(largest).exp_().sum(-1, keepdim=True).log_()
    return maximum, log_sum


class _PartitionPass(torch.autograd.Function):
    """(logits) -> log-probabilities of (kept entries, the rest, labels)."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, ids: Tensor, keep: Tensor, label_ids: Tensor, chunk_size: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        rest_maximum, rest_log_sum = _rest_statistics(logits, ids, chunk_size)
        kept = logits.gather(-1, ids).to(rest_maximum.dtype).masked_fill(~keep, -torch.inf)
        # Everything relative to the largest logit, so that large logits cost no precision.
        shift = torch.maximum(kept.amax(-1, keepdim=True), rest_maximum)
        kept = kept - shift
        rest = rest_maximum - shift + rest_log_sum
        normalizer = torch.logaddexp(kept.logsumexp(-1, keepdim=True), rest)
        log_probabilities = (kept - normalizer).masked_fill_(~keep, 0)
        log_rest = rest - normalizer
        label = logits.gather(-1, label_ids) - shift - normalizer
        ctx.save_for_backward(logits, ids, keep, label_ids, rest_maximum, rest_log_sum, log_probabilities, log_rest)
        ctx.chunk_size = chunk_size
        return log_probabilities, log_rest, label

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        logits, ids, keep, label_ids, rest_maximum, rest_log_sum, log_probabilities, log_rest = ctx.saved_tensors
        kept_gradient, rest_gradient, label_gradient = gradients
        kept_gradient = kept_gradient.masked_fill(~keep, 0)
        total = kept_gradient.sum(-1, keepdim=True) + rest_gradient + label_gradient
        # With s the softmax and r that of the rest alone: d log s_v / dz = onehot_v - s and d log_rest / dz = r - s.
        at_kept = kept_gradient - total * log_probabilities.exp().masked_fill_(~keep, 0)
        of_rest = rest_gradient - total * log_rest.exp()
        if use_triton(logits):
            from crosskd.kernels.answer_gradient import answer_gradient

            result = answer_gradient(
                logits,
                rest_maximum.squeeze(-1),
                rest_log_sum,
                (1.0,),
                labels=label_ids.squeeze(-1).contiguous(),
                loss_gradient=label_gradient.squeeze(-1).contiguous(),
                log_sum_gradient=of_rest.contiguous(),
                partition=True,
                ids=ids,
                id_gradient=at_kept.contiguous(),
            )
            return result, None, None, None, None
        result = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for chunk in answer_chunks(logits, ctx.chunk_size):
            buffer = torch.sub(logits[chunk], rest_maximum[chunk]).sub_(rest_log_sum[chunk]).exp_()
            buffer.mul_(of_rest[chunk])
            # A kept entry may have overflowed just now: it is overwritten before its own gradient is added.
            buffer.scatter_(-1, ids[chunk], 0).scatter_add_(-1, ids[chunk], at_kept[chunk])
            result[chunk] = buffer.scatter_add_(-1, label_ids[chunk], label_gradient[chunk])
        return result, None, None, None, None
