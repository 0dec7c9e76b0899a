"""`crosskd.losses.answer_pass` with one launch for what is gathered and one for the gradient."""
# what Triton compiles is not Python to a type checker
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from crosskd.kernels import launch as kernels
from crosskd.kernels.answer_gradient import answer_gradient
from crosskd.kernels.statistics import row_statistics, with_contiguous_rows


@triton.jit
def _gather(
    logits,
    maxima,
    log_sums,
    labels,
    ids,
    gathered,
    losses,
    stride_b,
    stride_t,
    id_stride_b,
    id_stride_t,
    tokens,
    slots,
    HAS_LABELS: tl.constexpr,
    N: tl.constexpr,
    SLOTS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Program (token, sequence): its columns relative to the maximum, and its cross-entropy."""
    token, sequence = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = sequence * tokens + token
    base = logits + sequence * stride_b + token * stride_t
    maximum = tl.load(maxima + row)
    if SLOTS > 0:
        slot = tl.arange(0, SLOTS)
        column = tl.load(ids + sequence * id_stride_b + token * id_stride_t + slot, mask=slot < slots, other=0)
        values = tl.load(base + column, mask=slot < slots, other=0.0).to(DTYPE) - maximum
        tl.store(gathered + row * slots + slot, values, mask=slot < slots)
    if HAS_LABELS:
        label = tl.load(labels + row)
        logit = tl.load(base + tl.where(label >= 0, label, 0)).to(DTYPE)
        loss = tl.load(log_sums + row * N) - (logit - maximum)
        tl.store(losses + row, tl.where(label >= 0, loss, 0.0))


def answer_outputs(
    logits: Float[Tensor, "B T V"],
    labels: Int[Tensor, "B T"] | None,
    columns: Int[Tensor, "B k"] | Int[Tensor, "B T k"] | None,
    temperatures: tuple[float, ...],
    known: tuple[Float[Tensor, "B T"], Float[Tensor, "B T n"]] | None,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, ""], Float[Tensor, "B T k"], Float[Tensor, "B T n"]]:
    """Summed cross-entropy, columns minus each token's maximum, and log-sums, attached to the graph.

    Args:
        logits: (B, T, V), any floating dtype.
        labels: (B, T) int64, negative for none; None for no cross-entropy at all.
        columns: (B, k) or (B, T, k) int64; None for none.
        temperatures: At most three; 1 is the first where there are labels.
        known: Maxima and log-sums, if there are any already.
        dtype: What is computed in.
    """
    labels = None if labels is None else labels.contiguous()
    return _Outputs.apply(with_contiguous_rows(logits), labels, columns, temperatures, known, dtype)  # pyright: ignore


class _Outputs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor | None,
        columns: Tensor | None,
        temperatures: tuple[float, ...],
        known: tuple[Tensor, Tensor] | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _ = logits.shape
        losses: Tensor | None = None
        if known is None:
            maxima, log_sums, losses = row_statistics(logits, temperatures, dtype, labels)
        else:
            maxima, log_sums = known
        ids, slots = None, 0
        if columns is not None and columns.shape[-1]:
            ids = columns.unsqueeze(1).expand(-1, tokens, -1) if columns.ndim == 2 else columns
            slots = ids.shape[-1]
        gathered = maxima.new_empty((batch, tokens, slots))
        if slots or (labels is not None and losses is None):
            losses = torch.empty_like(maxima) if labels is not None else None
            kernels.launch(
                _gather,
                (tokens, batch),
                logits,
                maxima,
                log_sums,
                labels,
                ids,
                gathered,
                losses,
                logits.stride(0),
                logits.stride(1),
                0 if ids is None else ids.stride(0),
                0 if ids is None else ids.stride(1),
                tokens,
                slots,
                HAS_LABELS=labels is not None,
                N=len(temperatures),
                SLOTS=kernels.power_of_two(slots) if slots else 0,
                DTYPE=kernels.TRITON_DTYPES[dtype],
                num_warps=4,
            )
        ctx.save_for_backward(logits, maxima, log_sums, labels, ids)
        ctx.temperatures = temperatures
        ctx.set_materialize_grads(False)
        cross_entropy = maxima.new_zeros(()) if losses is None else losses.sum()
        return cross_entropy, gathered, log_sums if known is None else log_sums.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor | None
    ) -> tuple[Tensor, None, None, None, None, None]:
        logits, maxima, log_sums, labels, ids = ctx.saved_tensors
        of_loss, of_gathered, of_log_sums = gradients
        result = answer_gradient(
            logits,
            maxima,
            log_sums,
            ctx.temperatures,
            labels=None if of_loss is None else labels,
            loss_gradient=of_loss,
            log_sum_gradient=None if of_log_sums is None else of_log_sums.contiguous(),
            ids=None if of_gathered is None else ids,
            id_gradient=None if of_gathered is None else of_gathered.contiguous(),
        )
        return result, None, None, None, None, None


def cross_entropy(logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"], dtype: torch.dtype) -> Float[Tensor, ""]:
    """Summed cross-entropy alone, attached to the graph: one launch and a sum forward, one launch back.

    Args:
        logits: (B, T, V), any floating dtype.
        labels: (B, T) int64, negative for none.
        dtype: What is computed in.
    """
    return _CrossEntropy.apply(with_contiguous_rows(logits), labels.contiguous(), dtype)  # pyright: ignore


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        maxima, log_sums, losses = row_statistics(logits, (1.0,), dtype, labels)
        assert losses is not None  # there are labels
        ctx.save_for_backward(logits, labels, maxima, log_sums)
        return losses.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, None, None]:
        logits, labels, maxima, log_sums = ctx.saved_tensors
        of_loss = {"labels": labels, "loss_gradient": gradients[0]}
        return answer_gradient(logits, maxima, log_sums, (1.0,), **of_loss), None, None
