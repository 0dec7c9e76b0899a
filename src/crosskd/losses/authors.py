"""``formulation="authors"``: what the published code of MultiLevelOT computes instead of the paper's equations.

It is here to reproduce runs made with it, and to show what the differences cost: docs/methods/multilevel_ot.md.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from crosskd.errors import UsageError
from crosskd.losses.answer_pass import answer_pass
from crosskd.losses.base import StudentAnswers, required_targets
from crosskd.losses.multilevel_ot_settings import AUTHORS_ITERATIONS, MultiLevelOTSettings, Parts
from crosskd.losses.standardized import shared_columns, standardized
from crosskd.losses.target_types import TeacherTargets
from crosskd.transport.sinkhorn import sinkhorn_plan, token_cost
from crosskd.transport.softmax_statistics import softmax_statistics

_SINKHORN_SCALE = 0.001  # the weight inside of the Sinkhorn term


def authors_terms(
    settings: MultiLevelOTSettings, student: StudentAnswers, targets: TeacherTargets | None
) -> tuple[Float[Tensor, ""], Parts]:
    """Cross-entropy summed over the labels, and the published terms before their weights of 0.1.

    Raises:
        UsageError: The targets were ranked with other sequences than those of this batch.
    """
    targets = required_targets(targets, "multilevel_ot", "column_log_probabilities", "ranked_with")
    _check_batch(targets)
    logits = standardized(student.logits)
    dtype = logits.dtype
    vocabulary = logits.shape[-1]
    stored = targets.column_log_probabilities
    assert stored is not None  # `required_targets` saw it
    k = min(stored.shape[-1], settings.top_k or targets.vocabulary_size, vocabulary)
    # Answers run from position 0 and are followed by rows of zeros, up to the longest answer of either side.
    length = int(torch.cat([student.mask.sum(1), targets.mask.sum(1)]).amax()) if len(logits) else 0
    teacher = _fit(stored[..., :k].to(dtype).exp() * targets.mask.unsqueeze(-1), length)
    if settings.matching == "greedy":
        columns, used = _published_greedy(logits.detach(), student.mask, teacher)
    else:
        sums = softmax_statistics(logits.detach(), (1.0,), student.mask).column_sums
        columns, used = shared_columns(sums, k).expand(len(logits), -1), k
    answers = answer_pass(logits, columns=columns)
    kept = answers.log_probabilities().exp() * student.mask.unsqueeze(-1)
    kept = _fit(kept * (torch.arange(k, device=kept.device) < used), length)
    cross_entropy = answer_pass(student.logits, labels=student.labels).cross_entropy
    parts = Parts(
        _mean_difference(teacher, kept, targets.mask, student.mask) if settings.absolute_difference_weight else None,
        _swapped_log(teacher, kept) if settings.sequential_log_weight else None,
        _padded_sinkhorn(settings, teacher, kept) if settings.sinkhorn_weight else None,
    )
    # An empty batch has no means: a zero that is attached to the graph.
    return cross_entropy, parts if length else Parts(*(None if part is None else kept.sum() for part in parts))


def _check_batch(targets: TeacherTargets) -> None:
    ranked_with, ids = targets.ranked_with, targets.column_ids
    assert ranked_with is not None  # `authors_terms` saw it
    assert ids is not None  # made together with it
    if bool((ranked_with != len(ranked_with)).any()) or bool((ids != ids[:1]).any()):
        raise UsageError(
            "formulation",
            got=f"'authors' with targets ranked in batches of {int(ranked_with[0])}, used in a batch of {len(ids)}",
            expected="targets made from the logits of this very batch: the published code ranks over the batch",
            fix="distil with a live teacher, or use formulation='paper'",
        )


def _fit(values: Tensor, length: int) -> Tensor:
    """Cut or zero-pad the token axis to ``length``."""
    return pad(values[:, :length], (0, 0, 0, max(0, length - values.shape[1])))


def _published_greedy(
    logits: Tensor, student_mask: Tensor, teacher: Float[Tensor, "B M k"]
) -> tuple[Int[Tensor, "B k"], int]:
    """The published ``--f 2``: its loops run over token positions where they mean vocabulary columns.

    For i in 0..M-1, M the padded answer length, kept teacher column i takes the nearest unused one among the student's
    vocabulary ids 0..M-1. Only the first M kept columns are ever matched; the student's others stay zero.
    """
    batch, length, k = teacher.shape
    used = min(length, k, logits.shape[-1])
    result = torch.zeros((batch, k), dtype=torch.int64, device=logits.device)
    statistics = softmax_statistics(logits)
    first = logits[..., :length] - statistics.maximum - statistics.log_sums
    student = _fit(first.exp() * student_mask.unsqueeze(-1), length)
    costs = torch.cdist(teacher.transpose(1, 2)[:, :used].contiguous(), student.transpose(1, 2).contiguous(), p=1.0)
    for row in range(used):
        choice = costs[:, row].argmin(1, keepdim=True)
        result[:, row : row + 1] = choice
        costs.scatter_(2, choice.unsqueeze(1).expand(-1, used, -1), torch.inf)
    return result, used


def _mean_difference(teacher: Tensor, student: Tensor, teacher_mask: Tensor, student_mask: Tensor) -> Tensor:
    """Step 4: the mean over min(lengths) positions of each example, then over examples."""
    counts = torch.minimum(teacher_mask.sum(1), student_mask.sum(1))
    inside = torch.arange(teacher.shape[1], device=counts.device) < counts.unsqueeze(1)
    sums = ((teacher - student).abs().sum(-1) * inside).sum(1)
    return (sums / counts.clamp(min=1)).mean()


def _swapped_log(teacher: Tensor, student: Tensor) -> Tensor:
    """Step 5: a second softmax over the kept probabilities, and student and teacher in each other's place."""
    return -(student.softmax(-1) * teacher.log_softmax(-1)).sum(-1).mean()


def _padded_sinkhorn(settings: MultiLevelOTSettings, teacher: Tensor, student: Tensor) -> Tensor:
    """Step 6: a second softmax at tau_SD, padding included, summed over the batch and made small."""
    cost = token_cost(
        (teacher / settings.sinkhorn_temperature).softmax(-1), (student / settings.sinkhorn_temperature).softmax(-1)
    )
    plan = sinkhorn_plan(cost, settings.sinkhorn_epsilon, AUTHORS_ITERATIONS)
    return (plan * cost).sum() * _SINKHORN_SCALE
