"""One chunked pass over logits: maxima, log-sums at several temperatures and column sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosskd.kernels import MOST_TEMPERATURES, use_triton
from crosskd.transport.hidden_logits import HiddenLogits

# Elements of a chunk's buffer. A CPU wants it to stay in its caches; a GPU wants few, large kernels.
_CPU_CHUNK_ELEMENTS = 2**19
_GPU_CHUNK_ELEMENTS = 2**26


@dataclass(frozen=True)
class SoftmaxStatistics:
    """What a softmax over the vocabulary needs beside the logits, for each token and temperature.

    The probability of logit ``z`` at temperature ``tau`` is ``exp((z - maximum) / tau - log_sum)``: both numbers are
    small, so nothing is lost where logits are large.

    Attributes:
        maximum: Largest logit of each token, (B, T, 1), float32 or float64.
        log_sums: ``log sum exp((z - maximum) / tau)`` for each temperature, (B, T, n), between 0 and ln V.
        column_sums: Sum of the probabilities over the chosen tokens, (B, V), at the first temperature; None unless
            a mask was given.
        probabilities: Those of the highest temperature, (B, T, V); None unless ``keep`` was set.
    """

    maximum: Float[Tensor, "B T 1"]
    log_sums: Float[Tensor, "B T n"]
    column_sums: Float[Tensor, "B V"] | None = None
    probabilities: Float[Tensor, "B T V"] | None = None


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums and exponentials run in: float64 stays, everything narrower becomes float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def token_chunks(logits: Tensor, chunk_size: int | None) -> Iterator[slice]:
    """Slices of the token axis of (B, T, V) logits that hold at most ``chunk_size`` tokens of all sequences together.

    Args:
        logits: Any tensor of shape (B, T, V).
        chunk_size: Tokens of a chunk, counted over the whole batch; None picks a number that suits the device.
    """
    batch, tokens, _ = logits.shape
    step = max(1, _chunk_tokens(logits, chunk_size) // max(1, batch))
    for start in range(0, tokens, step):
        yield slice(start, min(tokens, start + step))


def answer_chunks(logits: Tensor, chunk_size: int | None) -> Iterator[tuple[slice, slice]]:
    """Slices (sequences, tokens) that cut (B, T, V) logits into parts of at most ``chunk_size`` tokens.

    A part is several whole sequences or a piece of one, so that parts of contiguous logits are contiguous: some kernels
    copy what is not. Arguments as for ``token_chunks``.
    """
    batch, tokens, _ = logits.shape
    size = _chunk_tokens(logits, chunk_size)
    sequence_step = max(1, size // max(1, tokens))
    for first in range(0, batch, sequence_step):
        for start in range(0, tokens, size):
            yield slice(first, min(batch, first + sequence_step)), slice(start, min(tokens, start + size))


def _chunk_tokens(logits: Tensor, chunk_size: int | None) -> int:
    if chunk_size is not None:
        return max(1, chunk_size)
    limit = _CPU_CHUNK_ELEMENTS if logits.device.type == "cpu" else _GPU_CHUNK_ELEMENTS
    return max(1, limit // max(1, logits.shape[-1]))


def descending(temperatures: Sequence[float]) -> list[int]:
    """Indices of the temperatures, the highest first: the order that ``softmaxes`` is cheapest in."""
    return sorted(range(len(temperatures)), key=lambda index: -temperatures[index])


def softmaxes(
    logits: Float[Tensor, "B T V"],
    temperatures: Sequence[float],
    first: Float[Tensor, "B T V"] | None = None,
    known: bool = False,
) -> Iterator[tuple[Float[Tensor, "B T V"], Float[Tensor, "B T 1"] | None]]:
    """``(logits / tau).softmax(-1)`` for each temperature in turn; each step overwrites the one before.

    What comes is (values, scale): the probabilities are ``values * scale``, or ``values`` where scale is None. A caller
    multiplies by something anyway, and one pass over the vocabulary is saved.

    A temperature half of the one before it (1 after 2, the paper's pair) costs a square instead of an exponential, so
    descending order is the cheap one. The softmax kernel itself is faster than one ``exp`` on its own.

    Args:
        logits: A chunk of logits, (B, T, V), any floating dtype.
        temperatures: Positive.
        first: Where to write the first temperature's probabilities, which are then not overwritten.
        known: Whether ``first`` holds them already.
    """
    own = torch.empty_like(logits, dtype=compute_dtype(logits.dtype), memory_format=torch.contiguous_format)
    scaled = torch.empty_like(own)
    values = own if first is None else first
    scale: Tensor | None = None
    previous = 0.0
    for step, temperature in enumerate(temperatures):
        if step > 0 and temperature * 2 == previous and scale is None:
            values = torch.mul(values, values, out=own)
            scale = values.sum(-1, keepdim=True).reciprocal_()
        elif step > 0 or not known:
            values = values if step == 0 else own
            torch.softmax(_divide(logits, temperature, scaled), -1, out=values)
            scale = None
        previous = temperature
        yield values, scale


def _divide(logits: Tensor, temperature: float, out: Tensor) -> Tensor:
    """``logits / temperature``, rounded to ``out``'s dtype and not to that of the logits."""
    if logits.dtype == out.dtype:
        return logits if temperature == 1 else torch.mul(logits, 1 / temperature, out=out)
    return out.copy_(logits).mul_(1 / temperature)


@torch.no_grad()
def softmax_statistics(
    logits: Float[Tensor, "B T V"],
    temperatures: tuple[float, ...] = (1.0,),
    mask: Bool[Tensor, "B T"] | None = None,
    chunk_size: int | None = None,
    keep: bool = False,
) -> SoftmaxStatistics:
    """Maxima, log-sums and (with a mask) column sums of the softmax of each token, chunk by chunk.

    Equivalent to:
        >>> maximum = logits.amax(-1, keepdim=True)
        >>> log_sums = torch.stack([((logits - maximum) / tau).logsumexp(-1) for tau in temperatures], -1)
        >>> column_sums = ((logits / temperatures[0]).softmax(-1) * mask[..., None]).sum(1)

    Args:
        logits: (B, T, V), any floating dtype.
        temperatures: Positive; the first is the one of ``column_sums``.
        mask: (B, T), tokens whose probabilities ``column_sums`` adds up.
        chunk_size: Tokens of the batch whose exponentials exist at once; None chooses.
        keep: Keep the probabilities of the highest temperature, which costs as much memory as the logits.

    Returns:
        The statistics, in float32, or in float64 for float64 logits. No gradient flows through them.

    Cost: O(B T V) operations, one exponential an element for temperatures that halve; memory 2 chunk_size V. Triton
    kernels read the logits once, and a second time for column sums; they keep nothing and need no chunks.
    """
    if isinstance(logits, HiddenLogits):
        from crosskd.transport.hidden_statistics import hidden_statistics

        return hidden_statistics(logits, temperatures, mask, chunk_size)
    if use_triton(logits) and len(temperatures) <= MOST_TEMPERATURES:
        return _by_kernels(logits, temperatures, mask)
    order = descending(temperatures)
    batch, tokens, vocabulary = logits.shape
    dtype = compute_dtype(logits.dtype)
    maximum = logits.new_empty((batch, tokens, 1), dtype=dtype)
    largest = logits.new_empty((batch, tokens, len(temperatures)), dtype=dtype)
    columns = None if mask is None else logits.new_zeros((batch, 1, vocabulary), dtype=dtype)
    weights = None if mask is None else mask.to(dtype).unsqueeze(1)
    kept = logits.new_empty(logits.shape, dtype=dtype) if keep else None
    for chunk in answer_chunks(logits, chunk_size):
        part = logits[chunk]
        maximum[chunk] = part.amax(-1, keepdim=True)
        probabilities = softmaxes(part, [temperatures[i] for i in order], None if kept is None else kept[chunk])
        for index, (values, scale) in zip(order, probabilities, strict=True):
            peak = values.amax(-1)
            largest[(*chunk, index)] = peak if scale is None else peak * scale.squeeze(-1)
            if index == 0 and columns is not None and weights is not None:
                counts = weights[chunk[0], :, chunk[1]]
                columns[chunk[0]].baddbmm_(counts if scale is None else counts * scale.transpose(1, 2), values)
    # The largest logit's exponential is 1, so its probability is one over the sum.
    log_sums = largest.log_().neg_()
    return SoftmaxStatistics(maximum, log_sums, None if columns is None else columns.squeeze(1), kept)


def _by_kernels(logits: Tensor, temperatures: tuple[float, ...], mask: Tensor | None) -> SoftmaxStatistics:
    from crosskd.kernels.statistics import column_sums, row_statistics, with_contiguous_rows

    logits = with_contiguous_rows(logits)
    maxima, log_sums, _ = row_statistics(logits, temperatures, compute_dtype(logits.dtype))
    sums = None if mask is None else column_sums(logits, maxima, log_sums, mask, temperatures[0])
    return SoftmaxStatistics(maxima.unsqueeze(-1), log_sums, sums)
