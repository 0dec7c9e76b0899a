"""The gradients of hidden states and output layer, a block of the vocabulary at a time.

What `answer_pass` gives is made of log-sums and of single logits, so the gradient of a logit z_v of a token needs that
logit and a few numbers of the token: ``sum_i w_i exp((z_v - m) / tau_i - L_i)``, with its largest logit m, its log-sums
L_i and their gradients over temperatures w_i, plus the gradients of the columns that were gathered. No other logit
takes part. So the way back goes through the vocabulary: for the rows W_v of the weight in a block, ``Z_v = H W_v^T``,
its gradient in its place, ``dW_v = dZ_v^T H`` in one product that no rounding comes between, and ``dH += dZ_v W_v``.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from crosskd.kernels import MOST_TEMPERATURES, use_triton
from crosskd.losses.answer_pass import answer_gradient
from crosskd.transport.hidden_logits import HiddenLogits
from crosskd.transport.softmax_statistics import SoftmaxStatistics

# Elements of a block of logits: 32 MiB in half precision on a GPU.
_CPU_ELEMENTS = 2**21
_ELEMENTS = 2**24
_LEAST_COLUMNS = 256


def layer_gradients(
    logits: HiddenLogits,
    statistics: SoftmaxStatistics,
    temperatures: tuple[float, ...],
    weights: Float[Tensor, "B T n"],
    ids: Int[Tensor, "B T m"],
    gathered_gradient: Float[Tensor, "B T m"],
    wanted: tuple[bool, bool, bool],
) -> list[Tensor | None]:
    """Gradients of hidden states, weight and bias in their dtypes; None for what is not wanted.

    Args:
        logits: Hidden states and output layer.
        statistics: Maxima and log-sums of all tokens at ``temperatures``.
        temperatures: Those of ``weights``.
        weights: (B, T, n), gradients of the log-sums divided by their temperatures.
        ids: (B, T, m), columns that were gathered; one may stand in several slots.
        gathered_gradient: (B, T, m), their gradients.
        wanted: Of hidden states, weight and bias.

    Cost: three products of (B T, d) and (d, V); memory of a block of logits, and of the hidden states in float32.
    """
    hidden, weight = logits.operands()
    flat = hidden.flatten(0, 1)
    of_hidden = flat.new_zeros(flat.shape, dtype=weights.dtype) if wanted[0] else None
    of_weight = torch.empty_like(weight, dtype=logits.weight.dtype) if wanted[1] else None
    bias = logits.bias
    of_bias = torch.empty_like(bias) if bias is not None and wanted[2] else None
    for block in _blocks(logits):
        part = F.linear(hidden, weight[block], None if bias is None else bias[block].to(hidden.dtype))
        gradient = _of_block(part, block.start, statistics, temperatures, weights, ids, gathered_gradient)
        gradient = gradient.flatten(0, 1)
        if of_hidden is not None:
            of_hidden += gradient @ weight[block]
        if of_weight is not None:
            of_weight[block] = gradient.T @ flat
        if of_bias is not None:
            of_bias[block] = gradient.sum(0, dtype=weights.dtype)
    of_hidden = None if of_hidden is None else of_hidden.view(hidden.shape).to(logits.hidden.dtype)
    return [of_hidden, of_weight, of_bias]


def _blocks(logits: HiddenLogits) -> list[slice]:
    batch, tokens, vocabulary = logits.shape
    elements = _CPU_ELEMENTS if logits.device.type == "cpu" else _ELEMENTS
    columns = max(_LEAST_COLUMNS, elements // max(1, batch * tokens) // 128 * 128)
    return [slice(start, min(vocabulary, start + columns)) for start in range(0, vocabulary, columns)]


def _of_block(
    part: Float[Tensor, "B T v"],
    first: int,
    statistics: SoftmaxStatistics,
    temperatures: tuple[float, ...],
    weights: Tensor,
    ids: Tensor,
    gathered_gradient: Tensor,
) -> Float[Tensor, "B T v"]:
    """Gradient of the logits of columns ``first`` and on, in their dtype."""
    ids = ids - first
    if use_triton(part) and len(temperatures) <= MOST_TEMPERATURES:  # leaves out ids that are not in the block
        return answer_gradient(part, temperatures, weights, ids, gathered_gradient, statistics=statistics, into=part)
    shifted = part - statistics.maximum
    gradient = torch.zeros_like(shifted)
    for index, temperature in enumerate(temperatures):
        log_sum = statistics.log_sums[..., index : index + 1]
        gradient.addcmul_((shifted / temperature - log_sum).exp_(), weights[..., index : index + 1])
    outside = (ids < 0) | (ids >= part.shape[-1])
    gradient.scatter_add_(-1, ids.masked_fill(outside, 0), gathered_gradient.masked_fill(outside, 0))
    return gradient.to(part.dtype)
