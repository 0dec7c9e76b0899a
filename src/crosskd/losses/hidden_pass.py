"""`answer_pass` and `partition_pass` for logits that are never all there, forward and back a part at a time.

With hidden states H (N, d) of N tokens, the output layer's weight W (V, d) and logits ``Z = H W^T + b``, the gradients
of a loss are ``dH = dZ W``, ``dW = dZ^T H`` and ``db = sum dZ``: sums over rows, or over columns, of Z. So the forward
pass makes the logits of a chunk of rows, takes what it needs and lets them go, and the backward pass makes them once
more: by columns for `answer_pass` (`crosskd.losses.hidden_gradient`), by rows for `partition_pass`, which leaves the
gradient of a chunk to the pass over logits that are there. A part of the logits and its gradient are in memory,
instead of (B, T, V) twice; the price is one more matrix product beside the three of a layer that keeps its logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from crosskd.losses.answer_pass import AnswerPass, answer_pass
from crosskd.losses.base import IGNORED_LABEL
from crosskd.losses.hidden_gradient import layer_gradients
from crosskd.losses.partition_pass import PartitionPass, partition_pass
from crosskd.transport.hidden_logits import HiddenLogits, Rows
from crosskd.transport.softmax_statistics import SoftmaxStatistics, compute_dtype, softmax_statistics

# Elements of a weight's gradient that are made in half precision before they are added in float32.
_BLOCK_ELEMENTS = 2**24

Compute = Callable[[Tensor, Rows], tuple[Tensor, ...]]
"""What is wanted of the logits (b, t, V) of some rows: first a sum over them, then tensors that lead with (b, t)."""


def hidden_answer_pass(
    logits: HiddenLogits,
    labels: Int[Tensor, "B T"] | None,
    columns: Int[Tensor, "B k"] | Int[Tensor, "B T k"] | None,
    temperatures: tuple[float, ...],
    statistics: SoftmaxStatistics | None,
    chunk_size: int | None,
) -> AnswerPass:
    """`answer_pass` of logits that are not there; arguments and result as there.

    Cost: forward one matrix product of (B T, d) and (d, V), none where the statistics are known and the columns are a
    sequence's: then the few logits that are wanted are made by themselves. Backward three of them.
    """

    def compute(part: Tensor, rows: Rows) -> tuple[Tensor, ...]:
        known = None if statistics is None else SoftmaxStatistics(statistics.maximum[rows], statistics.log_sums[rows])
        known = softmax_statistics(part, temperatures, chunk_size=chunk_size) if known is None else known
        outputs = answer_pass(
            part,
            labels=None if labels is None else labels[rows],
            columns=None if columns is None else columns[rows[: columns.ndim - 1]],
            temperatures=temperatures,
            statistics=known,
            chunk_size=chunk_size,
        )
        return outputs.cross_entropy, outputs.columns, outputs.log_sums, known.maximum

    with torch.no_grad():
        if statistics is not None and (columns is None or columns.ndim == 2):
            outputs = _wanted_logits(logits, labels, columns, temperatures, statistics)
        else:
            *outputs, maximum = _assembled(logits.detach(), compute, chunk_size)
            statistics = SoftmaxStatistics(maximum, outputs[2])
    ids = columns if columns is None or columns.ndim == 3 else columns.unsqueeze(1).expand(-1, logits.shape[1], -1)
    used = _Used(logits.detach(), labels, ids, temperatures, statistics)
    found = _HiddenAnswers.apply(logits.hidden, logits.weight, logits.bias, used, *outputs)  # pyright: ignore
    return AnswerPass(*cast("tuple[Tensor, Tensor, Tensor]", found), temperatures)


@dataclass(frozen=True)
class _Used:
    """What of the logits was used: labels (B, T), columns (B, T, k), log-sums at temperatures."""

    logits: HiddenLogits
    labels: Tensor | None
    columns: Tensor | None
    temperatures: tuple[float, ...]
    statistics: SoftmaxStatistics


class _HiddenAnswers(torch.autograd.Function):
    """(hidden, weight, bias) -> outputs of `answer_pass`, which are there already."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, used: _Used, *outputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(hidden, weight, bias)  # so that autograd notices if they are changed in place
        ctx.used = used
        return tuple(output.clone() for output in outputs)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        used: _Used = ctx.used
        of_loss, of_columns, of_log_sums = gradients
        _ = ctx.saved_tensors
        weights = [of_log_sums[..., index] / tau for index, tau in enumerate(used.temperatures)]
        ids, of_ids = used.columns, of_columns
        if used.labels is not None:
            labelled = used.labels != IGNORED_LABEL
            of_label = torch.where(labelled, of_loss, 0)
            at_one = used.temperatures.index(1.0)
            weights[at_one] = weights[at_one] + of_label
            label = used.labels.masked_fill(~labelled, 0).unsqueeze(-1)
            ids = label if ids is None else torch.cat([ids.long(), label], dim=-1)
            of_ids = torch.cat([of_ids, -of_label.unsqueeze(-1)], dim=-1)
        if ids is None:
            ids = torch.zeros(of_ids.shape, dtype=torch.int64, device=of_ids.device)
        with torch.autocast(used.logits.device.type, enabled=False):  # as in the forward pass
            found = layer_gradients(
                used.logits,
                used.statistics,
                used.temperatures,
                torch.stack(weights, dim=-1),
                ids.long(),
                of_ids,
                ctx.needs_input_grad[:3],
            )
        return (*found, *(None for _ in range(4)))


def hidden_partition_pass(
    logits: HiddenLogits,
    ids: Int[Tensor, "B T n"],
    keep: Bool[Tensor, "B T n"],
    labels: Int[Tensor, "B T"],
    chunk_size: int | None,
) -> PartitionPass:
    """`partition_pass` of logits that are not there; arguments and result as there.

    Cost: one matrix product of (B T, d) and (d, V) forward, three of them backward.
    """

    def compute(part: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        outputs = partition_pass(part, ids[rows], keep[rows], labels[rows], chunk_size=chunk_size)
        return outputs.cross_entropy, outputs.log_probabilities, outputs.log_rest

    return PartitionPass(*row_by_row(logits, compute, chunk_size))


def row_by_row(logits: HiddenLogits, compute: Compute, chunk_size: int | None = None) -> tuple[Tensor, ...]:
    """What ``compute`` gives of all rows, from the logits of a chunk at a time, attached to the layer's operands.

    Equivalent to:
        >>> compute(hidden @ weight.T + bias, (slice(None), slice(None)))

    Args:
        logits: Hidden states and output layer.
        compute: Called with the logits of some rows, without a graph and, for the gradient, once more with one.
        chunk_size: See `HiddenLogits.chunks`.
    """
    operands = logits.hidden, logits.weight, logits.bias
    outputs = _RowByRow.apply(*operands, logits.detach(), compute, chunk_size)  # pyright: ignore
    return cast("tuple[Tensor, ...]", outputs)


def _wanted_logits(
    logits: HiddenLogits,
    labels: Tensor | None,
    columns: Tensor | None,
    temperatures: tuple[float, ...],
    statistics: SoftmaxStatistics,
) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of `answer_pass` without a graph, where few logits are wanted and those of all columns are not."""
    maximum, log_sums = statistics.maximum, statistics.log_sums
    gathered = maximum.new_empty((*maximum.shape[:2], 0))
    if columns is not None:
        # A product of another shape rounds otherwise: no logit may come out above the largest one.
        gathered = (logits.columns(columns.long()) - maximum).clamp_max(0)
    cross_entropy = maximum.new_zeros(())
    if labels is not None:
        labelled = labels != IGNORED_LABEL
        shifted = (logits.entries(labels.masked_fill(~labelled, 0)) - maximum.squeeze(-1)).clamp_max(0)
        losses = log_sums[..., temperatures.index(1.0)] - shifted
        cross_entropy = losses.masked_fill(~labelled, 0).sum()
    return cross_entropy, gathered, log_sums.clone()


class _RowByRow(torch.autograd.Function):
    """(hidden, weight, bias) -> the outputs of ``compute``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        logits: HiddenLogits,
        compute: Compute,
        chunk_size: int | None,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(hidden, weight, bias)  # so that autograd notices if they are changed in place
        ctx.logits, ctx.compute, ctx.chunk_size = logits, compute, chunk_size
        ctx.set_materialize_grads(False)
        return _assembled(logits, compute, chunk_size)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        chunks = list(ctx.logits.chunks(ctx.chunk_size))
        sums = _LayerGradients(ctx.logits, ctx.saved_tensors, ctx.needs_input_grad[:3], len(chunks) > 1)
        with torch.autocast(ctx.logits.device.type, enabled=False):  # as in the forward pass
            for rows in chunks:
                sums.add(rows, _gradient_of_rows(ctx.logits, ctx.compute, rows, gradients))
        return (*sums.results(), None, None, None)


def _assembled(logits: HiddenLogits, compute: Compute, chunk_size: int | None) -> tuple[Tensor, ...]:
    results: list[Tensor] = []
    for rows in logits.chunks(chunk_size):
        total, *others = compute(logits.part(rows), rows)
        if not results:
            wholes = [part.new_empty((*logits.shape[:2], *part.shape[2:])) for part in others]
            results = [torch.zeros_like(total), *wholes]
        results[0] += total
        for result, part in zip(results[1:], others, strict=True):
            result[rows] = part
    return tuple(results)


def _gradient_of_rows(
    logits: HiddenLogits, compute: Compute, rows: Rows, gradients: tuple[Tensor | None, ...]
) -> Float[Tensor, "b t V"]:
    """Gradient of the logits of a chunk; they are gone when it returns."""
    part = logits.part(rows).requires_grad_()
    with torch.enable_grad():
        outputs = compute(part, rows)
    of_rows = [None if gradient is None else gradient[rows] for gradient in gradients[1:]]
    pairs = zip(outputs, (gradients[0], *of_rows), strict=True)
    used = [(output, gradient) for output, gradient in pairs if gradient is not None]
    return torch.autograd.grad([output for output, _ in used], part, [gradient for _, gradient in used])[0]


class _LayerGradients:
    """Adds up the gradients of hidden states, weight and bias.

    The sums over chunks are in float32 or better. Where there is one chunk, no sum is needed.
    """

    def __init__(
        self,
        logits: HiddenLogits,
        attached: tuple[Tensor, Tensor, Tensor | None],
        wanted: tuple[bool, bool, bool],
        several: bool,
    ) -> None:
        hidden, weight, bias = attached
        self._hidden, self._weight = logits.operands()
        self._dtypes = tuple(None if tensor is None else tensor.dtype for tensor in attached)
        dtype = compute_dtype(logits.dtype) if several else logits.dtype
        self._of_hidden = torch.empty_like(hidden) if wanted[0] else None
        self._of_weight = weight.new_zeros(weight.shape, dtype=dtype) if wanted[1] and several else None
        self._of_bias = None if bias is None or not wanted[2] else bias.new_zeros(bias.shape, dtype=dtype)
        self._wants_weight = wanted[1]

    def add(self, rows: Rows, gradient: Float[Tensor, "b t V"]) -> None:
        """Add what the gradient of the logits of some rows gives."""
        if self._of_hidden is not None:
            self._of_hidden[rows] = gradient @ self._weight
        flat, hidden = gradient.flatten(0, 1), self._hidden[rows].flatten(0, 1)
        if self._of_weight is not None:
            _add_product(self._of_weight, flat, hidden)
        elif self._wants_weight:
            self._of_weight = flat.T @ hidden
        if self._of_bias is not None:
            self._of_bias += flat.sum(0, dtype=self._of_bias.dtype)

    def results(self) -> list[Tensor | None]:
        """In the dtypes of hidden states, weight and bias; None for what was not wanted."""
        found = self._of_hidden, self._of_weight, self._of_bias
        return [None if sum_ is None else sum_.to(dtype) for sum_, dtype in zip(found, self._dtypes, strict=True)]


def _add_product(total: Float[Tensor, "V d"], gradient: Float[Tensor, "n V"], hidden: Float[Tensor, "n d"]) -> None:
    """``total += gradient.T @ hidden``; in blocks where the product is in half precision and the sum is not."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.T, hidden)
        return
    step = max(1, _BLOCK_ELEMENTS // max(1, total.shape[1]))
    for start in range(0, len(total), step):
        total[start : start + step] += gradient[:, start : start + step].T @ hidden
