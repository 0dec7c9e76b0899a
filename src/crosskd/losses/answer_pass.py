"""All that a loss needs of the student's logits, in one pass forward and one back, with one gradient tensor.

Written with plain autograd, cross-entropy and each temperature's softmax would save or create a float32 copy of
(B, T, V). Here the forward pass reads the logits once and keeps a few numbers a token, and the backward pass writes the
summed gradient of all uses once, in the logits' own dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from crosskd.losses.base import IGNORED_LABEL
from crosskd.transport.softmax_statistics import (
    SoftmaxStatistics,
    answer_chunks,
    descending,
    softmax_statistics,
    softmaxes,
)


@dataclass(frozen=True)
class AnswerPass:
    """Differentiable outputs of ``answer_pass``.

    Attributes:
        cross_entropy: Sum over the labels; zero, with a graph, where there are none.
        columns: Logits of the wanted columns minus the token's largest logit, (B, T, k).
        log_sums: See ``SoftmaxStatistics``, (B, T, n).
        temperatures: Those of ``log_sums``.
    """

    cross_entropy: Float[Tensor, ""]
    columns: Float[Tensor, "B T k"]
    log_sums: Float[Tensor, "B T n"]
    temperatures: tuple[float, ...]

    def log_probabilities(self, temperature: float = 1.0) -> Float[Tensor, "B T k"]:
        """Log-probabilities of the columns at one of ``temperatures``, normalized over the whole vocabulary."""
        index = self.temperatures.index(temperature)
        return self.columns / temperature - self.log_sums[..., index : index + 1]


def answer_pass(
    logits: Float[Tensor, "B T V"],
    *,
    labels: Int[Tensor, "B T"] | None = None,
    columns: Int[Tensor, "B k"] | Int[Tensor, "B T k"] | None = None,
    temperatures: tuple[float, ...] = (1.0,),
    statistics: SoftmaxStatistics | None = None,
    chunk_size: int | None = None,
) -> AnswerPass:
    """Cross-entropy, gathered columns and log-normalizers of the student's answer tokens.

    Equivalent to:
        >>> cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        >>> log_probabilities = (logits / temperature).log_softmax(-1).gather(-1, columns)

    Args:
        logits: (B, T, V), any floating dtype.
        labels: (B, T) int64 in [0, V), or -100; None for no cross-entropy.
        columns: Column ids for each sequence (B, k) or for each token (B, T, k); None for none.
        temperatures: Where ``log_probabilities`` will be asked for; 1 must be among them.
        statistics: Those of the same logits and temperatures, if they are known already.
        chunk_size: Tokens of the batch whose exponentials exist at once; None chooses.

    Returns:
        Everything in float32 (float64 for float64 logits).

    Cost: O(B T V) with one exponential an element each way; memory beside the gradient: chunk_size * V.
    """
    batch, tokens, _ = logits.shape
    if statistics is None:
        statistics = softmax_statistics(logits, temperatures, chunk_size=chunk_size)
    if columns is None:
        columns = torch.zeros((batch, 0), dtype=torch.int64, device=logits.device)
    if columns.ndim == 2:
        columns = columns.unsqueeze(1).expand(-1, tokens, -1)
    if labels is None:
        labels = torch.full((batch, tokens), IGNORED_LABEL, device=logits.device)
    labelled = labels != IGNORED_LABEL
    ids = torch.cat([columns.long(), labels.masked_fill(~labelled, 0).unsqueeze(-1)], dim=-1)
    gathered, log_sums = cast(
        "tuple[Tensor, Tensor]",
        _AnswerPass.apply(logits, statistics, ids, temperatures, chunk_size),  # pyright: ignore[reportUnknownMemberType]
    )
    losses = (log_sums[..., temperatures.index(1.0)] - gathered[..., -1]).masked_fill(~labelled, 0)
    return AnswerPass(losses.sum(), gathered[..., :-1], log_sums, temperatures)


class _AnswerPass(torch.autograd.Function):
    """(logits) -> (gathered logits minus maximum, log-sums); the maximum is a constant that cancels in every use."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        statistics: SoftmaxStatistics,
        ids: Tensor,
        temperatures: tuple[float, ...],
        chunk_size: int | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, ids)
        ctx.kept = statistics.probabilities
        ctx.temperatures = temperatures
        ctx.chunk_size = chunk_size
        return logits.gather(-1, ids) - statistics.maximum, statistics.log_sums.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        gathered_gradient, log_sums_gradient = gradients
        logits, ids = ctx.saved_tensors
        order = descending(ctx.temperatures)
        temperatures = [ctx.temperatures[index] for index in order]
        # d log_sum / dz is the softmax at that temperature, over the temperature.
        weights = log_sums_gradient[..., order] / log_sums_gradient.new_tensor(temperatures)
        # Kept probabilities turn into the gradient in place; a second backward pass has to compute them again.
        kept: Tensor | None = ctx.kept
        ctx.kept = None
        result = torch.empty_like(logits, memory_format=torch.contiguous_format) if kept is None else kept
        for chunk in answer_chunks(logits, ctx.chunk_size):
            part = result[chunk]
            gradient = part if part.dtype == weights.dtype else torch.empty_like(part, dtype=weights.dtype)
            _softmax_gradient(logits[chunk], temperatures, weights[chunk], gradient, known=kept is not None)
            gradient.scatter_add_(-1, ids[chunk], gathered_gradient[chunk])
            if gradient.dtype != part.dtype:
                part.copy_(gradient)
        return result, None, None, None, None


def _softmax_gradient(logits: Tensor, temperatures: list[float], weights: Tensor, into: Tensor, known: bool) -> None:
    """Write ``sum_i weights[..., i] softmax(logits / temperatures[i])`` into ``into``, which may hold the first one."""
    for step, (values, scale) in enumerate(softmaxes(logits, temperatures, into, known)):
        if step == 1:  # not earlier: the second temperature's probabilities are made of the first one's
            into.mul_(weights[..., :1])
        if step > 0:
            weight = weights[..., step : step + 1]
            into.addcmul_(values, weight if scale is None else weight * scale)
    if len(temperatures) == 1:
        into.mul_(weights)
