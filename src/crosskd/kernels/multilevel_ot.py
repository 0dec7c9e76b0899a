"""The terms of MultiLevelOT on matched columns, attached to the graph of the logits: a few launches there, one back.

The kernels and their derivation are in `crosskd.kernels.multilevel_ot_tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosskd.kernels import launch as kernels
from crosskd.kernels.answer_gradient import parts_of_vocabulary
from crosskd.kernels.multilevel_ot_tokens import collect, row_gradient, token_terms
from crosskd.kernels.sinkhorn import Rounds
from crosskd.kernels.sinkhorn_distance import sinkhorn_with_gradient
from crosskd.kernels.statistics import inverses, square

MOST_COLUMNS = 256
_BLOCK = 4096


@dataclass(frozen=True)
class Weights:
    """Weights of the terms in the total; a term with weight 0 is not computed."""

    absolute_difference: float
    sequential_log: float
    sinkhorn: float


@lru_cache(maxsize=64)
def _weight_constants(weights: Weights) -> dict[str, Any]:
    """What the kernels take of the weights."""
    names = {"HAD": weights.absolute_difference, "SL": weights.sequential_log, "SD": weights.sinkhorn}
    switches: dict[str, Any] = {name: weight != 0 for name, weight in names.items()}
    return switches | {f"{name}_WEIGHT": float(weight) for name, weight in names.items()}


@dataclass(frozen=True)
class Sides:
    """Both sides of a batch, as the kernels read them. Tensors without a note on strides are contiguous.

    Attributes:
        maxima: (B, T_s), of `row_statistics`.
        log_sums: (B, T_s, n).
        temperatures: Those of ``log_sums``; the first is 1.
        ids: (B, k) int64, distinct columns of each sequence; the k of a sequence side by side.
        labels: (B, T_s) int64, negative for none.
        student_mask: (B, T_s).
        teacher_values: (B, T_t, k), log-probabilities, any floating dtype; the k of a token side by side.
        teacher_mask: (B, T_t).
        normalizers: (B, T_t, m), or None where the temperature is 1 everywhere.
        normalizer_temperatures: Those of ``normalizers``.
        sequential_log_temperature: That of SL, one of ``temperatures`` where SL is computed.
        sinkhorn_temperature: That of SD, likewise.
    """

    maxima: Float[Tensor, "B T_s"]
    log_sums: Float[Tensor, "B T_s n"]
    temperatures: tuple[float, ...]
    ids: Int[Tensor, "B k"]
    labels: Int[Tensor, "B T_s"]
    student_mask: Bool[Tensor, "B T_s"]
    teacher_values: Float[Tensor, "B T_t k"]
    teacher_mask: Bool[Tensor, "B T_t"]
    normalizers: Float[Tensor, "B T_t m"] | None
    normalizer_temperatures: tuple[float, ...]
    sequential_log_temperature: float
    sinkhorn_temperature: float

    def arguments(self) -> tuple[Tensor | None, ...]:
        """In the order of the kernels, after the logits and what is written."""
        return (
            self.maxima,
            self.log_sums,
            self.ids,
            self.labels,
            self.student_mask,
            self.teacher_values,
            self.normalizers,
            self.teacher_mask,
        )

    def strides(self) -> tuple[int, int, int]:
        """Of sequences in ids, sequences and tokens in the teacher's values."""
        return self.ids.stride(0), self.teacher_values.stride(0), self.teacher_values.stride(1)

    def constants(self) -> dict[str, Any]:
        """Temperatures and where each is found, number of columns, and dtype."""
        own = self.sequential_log_temperature, self.sinkhorn_temperature
        dtype = self.maxima.dtype
        return _side_constants(self.temperatures, self.normalizer_temperatures, own, self.ids.shape[1], dtype)


@lru_cache(maxsize=64)
def _side_constants(
    temperatures: tuple[float, ...],
    normalizer_temperatures: tuple[float, ...],
    own: tuple[float, float],
    kept: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "N": len(temperatures),
        "NORMALIZERS": len(normalizer_temperatures),
        "KEPT": kernels.power_of_two(kept),
        "DTYPE": kernels.TRITON_DTYPES[dtype],
    }
    for name, tau in zip(("SL", "SD"), own, strict=True):
        result[f"{name}_INDEX"] = temperatures.index(tau) if tau in temperatures else 0
        result[f"{name}_INV"] = 1 / tau
        known = tau != 1 and tau in normalizer_temperatures
        result[f"{name}_NORMALIZER"] = normalizer_temperatures.index(tau) if known else -1
    return result


def multilevel_terms(
    logits: Float[Tensor, "B T_s V"], sides: Sides, weights: Weights, sinkhorn: Rounds
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy, weighted total, HAD, SL and SD as scalars attached to the graph; sums over tokens and sequences.

    Args:
        logits: (B, T_s, V), entries of a token side by side.
        sides: What else there is of the batch.
        weights: Of the terms.
        sinkhorn: Of the third term.
    """
    return _Terms.apply(logits, sides, weights, sinkhorn)  # pyright: ignore[reportReturnType]


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, sides: Sides, weights: Weights, sinkhorn: Rounds) -> tuple[Tensor, ...]:
        batch, tokens, _ = logits.shape
        teacher_tokens, kept = sides.teacher_values.shape[1], sides.ids.shape[1]
        longest = max(tokens, teacher_tokens)
        terms = sides.maxima.new_empty((batch, longest, 3))
        # the tokens of a column side by side, as the Sinkhorn kernels read them
        student = sides.maxima.new_empty((batch, kept, tokens))
        teacher = sides.maxima.new_empty((batch, kept, teacher_tokens))
        constants = _weight_constants(weights)
        switches = {name: constants[name] for name in ("HAD", "SL", "SD")}
        kernels.launch(
            token_terms,
            (longest, batch),
            logits,
            *sides.arguments(),
            terms,
            student,
            teacher,
            logits.stride(0),
            logits.stride(1),
            *sides.strides(),
            tokens,
            teacher_tokens,
            kept,
            **switches,
            **sides.constants(),
            num_warps=2,
        )
        distances = of_student = None
        if constants["SD"]:
            distances, of_student = sinkhorn_with_gradient(
                teacher,
                student,
                sides.teacher_mask,
                sides.student_mask,
                sinkhorn,
                ctx.needs_input_grad[0],
            )
        result = sides.maxima.new_empty(5)
        dtype = kernels.TRITON_DTYPES[result.dtype]
        arguments = (terms, distances, result, batch * longest, batch)
        kernels.launch(collect, (1,), *arguments, **constants, BLOCK=1024, DTYPE=dtype, num_warps=4)
        ctx.save_for_backward(logits, of_student)
        ctx.sides, ctx.weights = sides, weights
        ctx.set_materialize_grads(False)
        return result.unbind()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor | None
    ) -> tuple[Tensor, None, None, None]:
        logits, of_student = ctx.saved_tensors
        sides: Sides = ctx.sides
        batch, tokens, vocabulary = logits.shape
        result = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        parts, columns_a_part = parts_of_vocabulary(batch * tokens, vocabulary)
        kernels.launch(
            row_gradient,
            (batch * tokens, parts),
            logits,
            result,
            *sides.arguments(),
            of_student,
            *gradients,
            logits.stride(0),
            logits.stride(1),
            *sides.strides(),
            tokens,
            sides.teacher_values.shape[1],
            vocabulary,
            sides.ids.shape[1],
            columns_a_part,
            **_weight_constants(ctx.weights),
            UPSTREAM=sum(1 << index for index, gradient in enumerate(gradients) if gradient is not None),
            **sides.constants(),
            SQUARE=square(sides.temperatures),
            **inverses(sides.temperatures),
            BLOCK=_BLOCK,
            num_warps=8,
        )
        return result, None, None, None
