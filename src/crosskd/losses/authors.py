"""``formulation="authors"``: what the published code of MultiLevelOT computes instead of the paper's equations.

It is here to reproduce runs made with it, and to show what the differences cost: docs/methods/multilevel_ot.md.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from crosskd.errors import UsageError
from crosskd.losses.answer_pass import answer_pass
from crosskd.losses.base import StudentAnswers, required_targets
from crosskd.losses.levels import MatchedColumns, sinkhorn_of_sequences
from crosskd.losses.multilevel_ot_settings import AUTHORS_ITERATIONS, MultiLevelOTSettings, Parts
from crosskd.losses.standardized import shared_columns, standardized
from crosskd.losses.target_types import TeacherTargets
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
    _check_batch(targets, len(student.logits))
    logits = standardized(student.logits)
    vocabulary = logits.shape[-1]
    stored = targets.column_log_probabilities
    assert stored is not None  # `required_targets` saw it
    k = min(stored.shape[-1], settings.top_k or targets.vocabulary_size, vocabulary)
    padded = _Padded(student.mask, targets.mask)
    teacher = padded.fit(stored[..., :k].to(logits.dtype).exp() * targets.mask.unsqueeze(-1))
    if settings.matching == "greedy":
        columns = _published_greedy(logits.detach(), student.mask, teacher, padded)
    else:
        sums = softmax_statistics(logits.detach(), (1.0,), student.mask).column_sums
        columns = shared_columns(sums, k).expand(len(logits), -1)
    answers = answer_pass(logits, columns=columns)
    kept = padded.fit(answers.log_probabilities().exp() * student.mask.unsqueeze(-1))
    if settings.matching == "greedy":  # only the first M columns were matched
        kept = kept * (torch.arange(k, device=kept.device) < padded.length)
    cross_entropy = answer_pass(student.logits, labels=student.labels).cross_entropy
    if 0 in teacher.shape[:2]:  # no sequence has no mean: a zero that is attached to the graph
        return cross_entropy, Parts(*[kept.sum()] * 3)
    return cross_entropy, Parts(
        _mean_difference(teacher, kept, targets.mask, student.mask) if settings.absolute_difference_weight else None,
        _swapped_log(teacher, kept, padded) if settings.sequential_log_weight else None,
        _padded_sinkhorn(settings, teacher, kept, padded) if settings.sinkhorn_weight else None,
    )


class _Padded:
    """Answers run from position 0 and are followed by rows of zeros up to M, the longest answer of either side.

    M stays on the device: arrays are as wide as the wider mask, and what is beyond M is masked.

    Attributes:
        width: Static length of the token axis.
        length: M, a scalar.
        rows: (B, width), true up to M.
    """

    def __init__(self, student_mask: Bool[Tensor, "B T_s"], teacher_mask: Bool[Tensor, "B T_t"]) -> None:
        self.width = max(student_mask.shape[1], teacher_mask.shape[1])
        counts = torch.cat([student_mask.sum(1), teacher_mask.sum(1)])
        self.length = counts.amax() if len(counts) else counts.sum()
        places = torch.arange(self.width, device=counts.device)
        self.rows = (places < self.length).expand(len(student_mask), -1)

    def fit(self, values: Float[Tensor, "B T k"]) -> Float[Tensor, "B W k"]:
        """Zero-pad the token axis to the common width."""
        return pad(values, (0, 0, 0, self.width - values.shape[1]))

    def mean(self, values: Float[Tensor, "B W"]) -> Float[Tensor, ""]:
        """Mean over the B x M rows that exist; zero where M is."""
        return values.masked_fill(~self.rows, 0).sum() / (self.length * len(values)).clamp(min=1)


def _check_batch(targets: TeacherTargets, batch: int) -> None:
    if targets.ranked_with != batch:  # whether all were ranked together is what `TeacherTargets.stack` looks at
        raise UsageError(
            "formulation",
            got=f"'authors' with targets ranked in batches of {targets.ranked_with}, used in a batch of {batch}",
            expected="targets made from the logits of this very batch: the published code ranks over the batch",
            fix="distil with a live teacher, or use formulation='paper'",
        )


def _published_greedy(
    logits: Tensor, student_mask: Tensor, teacher: Float[Tensor, "B W k"], padded: _Padded
) -> Int[Tensor, "B k"]:
    """The published ``--f 2``: its loops run over token positions where they mean vocabulary columns.

    For i in 0..M-1, M the padded answer length, kept teacher column i takes the nearest unused one among the student's
    vocabulary ids 0..M-1. Only the first M kept columns are ever matched; what the others get is of no use.
    """
    batch, width, k = teacher.shape
    used = min(width, k, logits.shape[-1])
    result = torch.zeros((batch, k), dtype=torch.int64, device=logits.device)
    statistics = softmax_statistics(logits)
    first = logits[..., :width] - statistics.maximum - statistics.log_sums
    student = padded.fit(first.exp() * student_mask.unsqueeze(-1))
    costs = torch.cdist(teacher.transpose(1, 2)[:, :used].contiguous(), student.transpose(1, 2).contiguous(), p=1.0)
    ids = torch.arange(costs.shape[-1], device=costs.device)
    costs = costs.masked_fill(ids >= padded.length, torch.inf)
    for row in range(used):
        choice = costs[:, row].argmin(1, keepdim=True)
        result[:, row : row + 1] = choice
        costs.scatter_(2, choice.unsqueeze(1).expand(-1, used, -1), torch.inf)
    return result


def _mean_difference(teacher: Tensor, student: Tensor, teacher_mask: Tensor, student_mask: Tensor) -> Tensor:
    """Step 4: the mean over min(lengths) positions of each example, then over examples."""
    counts = torch.minimum(teacher_mask.sum(1), student_mask.sum(1))
    inside = torch.arange(teacher.shape[1], device=counts.device) < counts.unsqueeze(1)
    sums = ((teacher - student).abs().sum(-1) * inside).sum(1)
    return (sums / counts.clamp(min=1)).mean()


def _swapped_log(teacher: Tensor, student: Tensor, padded: _Padded) -> Tensor:
    """Step 5: a second softmax over the kept probabilities, and student and teacher in each other's place."""
    return padded.mean(-(student.softmax(-1) * teacher.log_softmax(-1)).sum(-1))


def _padded_sinkhorn(settings: MultiLevelOTSettings, teacher: Tensor, student: Tensor, padded: _Padded) -> Tensor:
    """Step 6: a second softmax at tau_SD, padding included, summed over the batch and made small."""
    teacher, student = ((side / settings.sinkhorn_temperature).softmax(-1) for side in (teacher, student))
    columns = MatchedColumns(teacher, student, padded.rows, padded.rows)
    return _SINKHORN_SCALE * sinkhorn_of_sequences(columns, settings.sinkhorn_epsilon, AUTHORS_ITERATIONS, "unrolled")
