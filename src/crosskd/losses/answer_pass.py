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

from crosskd.kernels import MOST_TEMPERATURES, use_triton
from crosskd.losses.base import IGNORED_LABEL
from crosskd.transport.hidden_logits import HiddenLogits
from crosskd.transport.softmax_statistics import (
    SoftmaxStatistics,
    answer_chunks,
    compute_dtype,
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
    if isinstance(logits, HiddenLogits):
        from crosskd.losses.hidden_pass import hidden_answer_pass

        return hidden_answer_pass(logits, labels, columns, temperatures, statistics, chunk_size)
    if use_triton(logits) and len(temperatures) <= MOST_TEMPERATURES and temperatures[0] == 1:
        return _by_kernels(logits, labels, columns, temperatures, statistics)
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


def _by_kernels(
    logits: Tensor,
    labels: Tensor | None,
    columns: Tensor | None,
    temperatures: tuple[float, ...],
    statistics: SoftmaxStatistics | None,
) -> AnswerPass:
    from crosskd.kernels.answer_pass import answer_outputs

    known = None if statistics is None else (statistics.maximum.squeeze(-1), statistics.log_sums)
    dtype = compute_dtype(logits.dtype)
    return AnswerPass(*answer_outputs(logits, labels, columns, temperatures, known, dtype), temperatures)


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
        # d log_sum / dz is the softmax at that temperature, over the temperature.
        weights = torch.stack([log_sums_gradient[..., i] / tau for i, tau in enumerate(ctx.temperatures)], dim=-1)
        # Kept probabilities turn into the gradient in place; a second backward pass has to compute them again.
        kept: Tensor | None = ctx.kept
        ctx.kept = None
        result = answer_gradient(
            logits, ctx.temperatures, weights, ids, gathered_gradient, chunk_size=ctx.chunk_size, kept=kept
        )
        return result, None, None, None, None


def answer_gradient(
    logits: Float[Tensor, "B T V"],
    temperatures: tuple[float, ...],
    weights: Float[Tensor, "B T n"],
    ids: Int[Tensor, "B T m"],
    gathered_gradient: Float[Tensor, "B T m"],
    *,
    chunk_size: int | None = None,
    statistics: SoftmaxStatistics | None = None,
    kept: Float[Tensor, "B T V"] | None = None,
    into: Float[Tensor, "B T V"] | None = None,
) -> Float[Tensor, "B T V"]:
    """Gradient of logits of which log-sums and gathered columns were used.

    Equivalent to:
        >>> gradient = sum(weights[..., i : i + 1] * (logits / tau).softmax(-1) for i, tau in enumerate(temperatures))
        >>> gradient.scatter_add(-1, ids, gathered_gradient)

    Args:
        logits: (B, T, V), any floating dtype.
        temperatures: Those of ``weights``.
        weights: (B, T, n), gradients of the log-sums divided by their temperatures.
        ids: (B, T, m), columns that were gathered; one may stand in several slots.
        gathered_gradient: (B, T, m), their gradients.
        chunk_size: Tokens of the batch whose exponentials exist at once; None chooses.
        statistics: Those of the same logits and temperatures, which save kernels a read; torch code does without.
        kept: The probabilities that ``softmax_statistics(..., keep=True)`` kept. They are overwritten.
        into: Where to write, contiguous and in the logits' dtype. It may be ``logits``: then they are overwritten.

    Returns:
        The gradient in the logits' dtype; ``into`` or ``kept`` if one was given.
    """
    if use_triton(logits) and len(temperatures) <= MOST_TEMPERATURES:
        return _gradient_by_kernels(logits, temperatures, weights, ids, gathered_gradient, statistics, into)
    order = descending(temperatures)
    descending_temperatures = [temperatures[index] for index in order]
    weights = torch.stack([weights[..., index] for index in order], dim=-1)  # an index list would wait for the host
    result = kept
    if result is None:
        result = torch.empty_like(logits, memory_format=torch.contiguous_format) if into is None else into
    for chunk in answer_chunks(logits, chunk_size):
        part, source = result[chunk], logits[chunk]
        own = part.dtype == weights.dtype and into is None
        gradient = part if own else torch.empty_like(part, dtype=weights.dtype)
        _softmax_gradient(source, descending_temperatures, weights[chunk], gradient, known=kept is not None)
        gradient.scatter_add_(-1, ids[chunk], gathered_gradient[chunk])
        if not own:
            part.copy_(gradient)
    return result


def _gradient_by_kernels(
    logits: Tensor,
    temperatures: tuple[float, ...],
    weights: Tensor,
    ids: Tensor,
    gathered_gradient: Tensor,
    statistics: SoftmaxStatistics | None,
    into: Tensor | None,
) -> Tensor:
    from crosskd.kernels.answer_gradient import answer_gradient as write
    from crosskd.kernels.statistics import with_contiguous_rows

    logits = with_contiguous_rows(logits)
    if statistics is None:
        statistics = softmax_statistics(logits, temperatures)
    return write(
        logits,
        statistics.maximum.squeeze(-1),
        statistics.log_sums,
        temperatures,
        log_sum_gradient=weights.contiguous(),
        divided=True,
        ids=ids,
        id_gradient=gathered_gradient.contiguous(),
        into=into,
    )


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
