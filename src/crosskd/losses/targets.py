"""Make ``TeacherTargets`` from a teacher's logits, whether they go into a cache or straight into a loss."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosskd.errors import UsageError
from crosskd.losses.standardized import standardized_targets
from crosskd.losses.target_types import TargetRequest, TeacherTargets
from crosskd.transport.largest import largest_ids
from crosskd.transport.ranking import largest_columns
from crosskd.transport.softmax_statistics import SoftmaxStatistics, softmax_statistics

__all__ = ["TargetRequest", "TeacherTargets", "targets_from_logits"]


@torch.no_grad()
def targets_from_logits(
    teacher_logits: Float[Tensor, "B T V"],
    teacher_mask: Bool[Tensor, "B T"],
    request: TargetRequest,
    token_ids: Int[Tensor, "B T"] | None = None,
    *,
    chunk_size: int | None = None,
) -> TeacherTargets:
    """All that ``request`` asks for, from the logits that predict the teacher's answer tokens.

    Every number depends on its own sequence alone, so that targets made one example at a time and stacked equal those
    of the batch. Only ``request.standardized`` ranks over the batch.

    Args:
        teacher_logits: (B, T, V), any floating dtype; ``teacher_logits[:, 0]`` predicts the first answer token.
        teacher_mask: (B, T), true on answer tokens.
        request: From ``DistillationMethod.request()``; merge those of several methods with ``|``.
        token_ids: (B, T) int64, the answer's tokens; needed for ``request.answer_tokens``, else ignored.
        chunk_size: Tokens of the batch whose exponentials exist at once; None chooses.

    Returns:
        Targets in float32, or in float64 for float64 logits; ``.to(dtype=torch.float16)`` makes them small.

    Raises:
        UsageError: ``request.answer_tokens`` without ``token_ids``.

    Cost: one pass over (B, T, V); per-token entries add a top-k of each token.
    """
    if request.standardized:
        return standardized_targets(teacher_logits, teacher_mask, request)
    temperatures = tuple(sorted({1.0, *request.temperatures}))
    others = tuple(temperature for temperature in temperatures if temperature != 1)
    mask = teacher_mask if request.top_k is not None else None
    statistics = softmax_statistics(teacher_logits, (1.0, *others), mask, chunk_size)
    values: dict[str, Tensor] = {}
    if request.top_k is not None:
        values |= _ranked_columns(teacher_logits, statistics, request.top_k)
    if others:
        log_sums = statistics.log_sums
        # log_probability / tau - log_normalizer must equal (z - maximum) / tau - log_sum at tau.
        at_one = [log_sums[..., :1] / temperature for temperature in others]
        values["log_normalizers"] = log_sums[..., 1:] - torch.cat(at_one, dim=-1)
    if request.top_entries is not None:
        values |= _largest_entries(teacher_logits, statistics, request, chunk_size)
    if request.answer_tokens:
        values |= _answer_tokens(teacher_logits, statistics, teacher_mask, token_ids)
    return replace(TeacherTargets(teacher_mask, others, teacher_logits.shape[-1]), **values)


def _log_probabilities(logits: Tensor, statistics: SoftmaxStatistics, ids: Tensor) -> Tensor:
    """Log-probabilities at temperature 1 of ``ids``, (B, T, m)."""
    return logits.gather(-1, ids) - statistics.maximum - statistics.log_sums[..., :1]


def _ranked_columns(logits: Tensor, statistics: SoftmaxStatistics, top_k: int) -> dict[str, Tensor]:
    assert statistics.column_sums is not None  # `targets_from_logits` asked for them
    ids = largest_columns(statistics.column_sums, top_k or logits.shape[-1])
    values = _log_probabilities(logits, statistics, ids.unsqueeze(1).expand(-1, logits.shape[1], -1))
    return {"column_ids": ids.to(torch.int32), "column_log_probabilities": values}


def _largest_entries(
    logits: Tensor, statistics: SoftmaxStatistics, request: TargetRequest, chunk_size: int | None
) -> dict[str, Tensor]:
    vocabulary = logits.shape[-1]
    count = min(request.top_entries or vocabulary, vocabulary)
    entry_ids = largest_ids(logits, count, chunk_size)
    values = _log_probabilities(logits, statistics, entry_ids)
    tail = 1 - values.exp().sum(-1) if count < vocabulary else torch.zeros_like(values[..., 0])
    entries = {"entry_log_probabilities": values, "entry_tail": tail.clamp_(min=0)}
    return {**entries, "entry_ids": entry_ids.to(torch.int32)} if request.entry_ids else entries


def _answer_tokens(
    logits: Tensor, statistics: SoftmaxStatistics, mask: Tensor, token_ids: Tensor | None
) -> dict[str, Tensor]:
    if token_ids is None:
        raise UsageError("token_ids", got="None", expected="the answer's token ids, (B, T)", fix="pass token_ids=")
    ids = token_ids.to(torch.int64).masked_fill(~mask, 0)
    values = _log_probabilities(logits, statistics, ids.unsqueeze(-1)).squeeze(-1)
    return {"answer_ids": ids, "answer_log_probabilities": values}
