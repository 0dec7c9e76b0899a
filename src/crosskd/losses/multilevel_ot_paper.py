"""The terms of MultiLevelOT as the paper's equations define them, from the student's logits and teacher targets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from crosskd.errors import UsageError
from crosskd.kernels import MOST_TEMPERATURES, use_triton
from crosskd.losses.answer_pass import AnswerPass, answer_pass
from crosskd.losses.base import StudentAnswers, required_targets
from crosskd.losses.levels import (
    MatchedColumns,
    absolute_difference,
    sequential_log,
    sinkhorn_of_sequences,
    sinkhorn_of_tokens,
)
from crosskd.losses.multilevel_ot_settings import MultiLevelOTSettings, Parts
from crosskd.losses.targets import TeacherTargets
from crosskd.transport.hidden_logits import HiddenLogits
from crosskd.transport.largest import largest_ids
from crosskd.transport.matching import match_with_statistics
from crosskd.transport.softmax_statistics import compute_dtype, softmax_statistics


def temperatures_of(settings: MultiLevelOTSettings) -> tuple[float, ...]:
    """Temperatures that the terms in use need: 1 first, since ranking and HAD are at 1."""
    others = set[float]()
    if settings.sequential_log_weight:
        others.add(settings.sequential_log_temperature)
    if settings.sinkhorn_weight:
        others.add(settings.sinkhorn_temperature)
    return (1.0, *sorted(others - {1.0}))


def terms_by_kernels(
    settings: MultiLevelOTSettings, student: StudentAnswers, targets: TeacherTargets | None
) -> tuple[Float[Tensor, ""], ...] | None:
    """Cross-entropy, weighted total, and the three terms, from fused kernels; None where they do not serve.

    They serve ranked and matched columns of sequences (at most 256 of them), and transport between sequences: all but
    the ablations.
    """
    by_sequence = settings.ranking == "sequence" and settings.sinkhorn_level == "sequence"
    if isinstance(student.logits, HiddenLogits) or not (use_triton(student.logits) and by_sequence and settings.top_k):
        return None
    from crosskd.kernels.multilevel_ot import MOST_COLUMNS, Sides, Weights, multilevel_terms
    from crosskd.kernels.sinkhorn import Rounds
    from crosskd.kernels.statistics import with_contiguous_rows

    teacher = _teacher_columns(settings, student, targets)
    temperatures = temperatures_of(settings)
    empty = 0 in student.logits.shape or 0 in teacher.values.shape
    if empty or teacher.values.shape[-1] > MOST_COLUMNS or len(temperatures) > MOST_TEMPERATURES:
        return None
    for temperature in temperatures[1:]:
        teacher.normalizer(temperature)
    logits = with_contiguous_rows(student.logits)
    fast = settings.matching == "fast"  # reads column sums, and no probability of the teacher's
    statistics = softmax_statistics(logits.detach(), temperatures, student.mask if fast else None)
    mask, normalizers = teacher.targets.mask, teacher.targets.log_normalizers
    values = teacher.values if fast else teacher.widened(logits.dtype).values.exp()
    ids = match_with_statistics(logits.detach(), statistics, values, student.mask, mask, settings.matching)
    sides = Sides(
        maxima=statistics.maximum.squeeze(-1),
        log_sums=statistics.log_sums,
        temperatures=temperatures,
        ids=ids,
        labels=student.labels.contiguous(),
        student_mask=student.mask.contiguous(),
        teacher_values=teacher.values if teacher.values.stride(-1) == 1 else teacher.values.contiguous(),
        teacher_mask=mask.contiguous(),
        normalizers=None if normalizers is None else normalizers.contiguous(),
        normalizer_temperatures=teacher.targets.temperatures,
        sequential_log_temperature=settings.sequential_log_temperature,
        sinkhorn_temperature=settings.sinkhorn_temperature,
    )
    weights = Weights(settings.absolute_difference_weight, settings.sequential_log_weight, settings.sinkhorn_weight)
    rounds = settings.sinkhorn_epsilon, settings.sinkhorn_iterations, settings.sinkhorn_tolerance
    sinkhorn = Rounds(*rounds, settings.plan_gradient == "unrolled")
    return multilevel_terms(logits, sides, weights, sinkhorn)


def paper_terms(
    settings: MultiLevelOTSettings, student: StudentAnswers, targets: TeacherTargets | None
) -> tuple[Float[Tensor, ""], Parts]:
    """Cross-entropy on the labels, and the terms in use; sums over tokens and sequences."""
    teacher = _teacher_columns(settings, student, targets).widened(student.logits.dtype)
    answers = _student_columns(settings, student, teacher)
    pair = _Pair(settings, student, teacher, answers)
    columns = pair.at(1.0)
    difference = absolute_difference(columns) if settings.absolute_difference_weight else None
    logarithm = transport = None
    if settings.sequential_log_weight:
        temperature = settings.sequential_log_temperature
        teacher_values = teacher.log_probabilities(temperature).exp()
        logarithm = sequential_log(teacher_values, answers.log_probabilities(temperature), columns.compared())
    if settings.sinkhorn_weight:
        sinkhorn = sinkhorn_of_sequences if settings.sinkhorn_level == "sequence" else sinkhorn_of_tokens
        columns = pair.at(settings.sinkhorn_temperature)
        rounds = settings.sinkhorn_epsilon, settings.sinkhorn_iterations, settings.plan_gradient
        transport = sinkhorn(columns, *rounds, settings.sinkhorn_tolerance)
    return answers.cross_entropy, Parts(difference, logarithm, transport)


@dataclass(frozen=True)
class _TeacherColumns:
    """The teacher's k columns; log-probabilities at temperature 1, as stored, and what turns them into others."""

    values: Float[Tensor, "B T k"]
    targets: TeacherTargets

    def widened(self, dtype: torch.dtype) -> _TeacherColumns:
        """Values in what the student's logits are computed in."""
        return replace(self, values=self.values.to(compute_dtype(dtype)))

    def log_probabilities(self, temperature: float) -> Float[Tensor, "B T k"]:
        if temperature == 1:
            return self.values
        return self.values / temperature - self.normalizer(temperature).to(self.values.dtype)

    def normalizer(self, temperature: float) -> Float[Tensor, "B T 1"]:
        """Log-normalizers at a temperature other than 1."""
        normalizers = self.targets.log_normalizers
        if normalizers is None or temperature not in self.targets.temperatures:
            raise UsageError(
                "temperature",
                got=temperature,
                expected=f"one of those that the teacher targets hold: {(1.0, *self.targets.temperatures)}",
                fix="write the cache again",
            )
        index = self.targets.temperatures.index(temperature)
        return normalizers[..., index : index + 1]


def _teacher_columns(
    settings: MultiLevelOTSettings, student: StudentAnswers, targets: TeacherTargets | None
) -> _TeacherColumns:
    field = "column_log_probabilities" if settings.ranking == "sequence" else "entry_log_probabilities"
    targets = required_targets(targets, "multilevel_ot", field)
    if targets.ranked_with is not None:
        raise UsageError("formulation", got="targets made for 'authors'", expected="targets made for 'paper'")
    values: Tensor = getattr(targets, field)
    wanted = min(settings.top_k or targets.vocabulary_size, targets.vocabulary_size)
    if values.shape[-1] < wanted:
        raise UsageError(
            "top_k",
            got=settings.top_k or "all",
            expected=f"at most the {values.shape[-1]} columns that the teacher targets hold",
            fix="lower it or write the cache again",
        )
    columns = min(wanted, student.logits.shape[-1])
    return _TeacherColumns(values[..., :columns], targets)


def _student_columns(settings: MultiLevelOTSettings, student: StudentAnswers, teacher: _TeacherColumns) -> AnswerPass:
    """One pass over the student's logits, with the columns that stand opposite the teacher's."""
    logits = student.logits.detach()
    temperatures = temperatures_of(settings)
    # Probabilities kept in the gradient's own memory save the backward pass an exponential an element.
    keep = student.logits.requires_grad and torch.is_grad_enabled() and logits.dtype == compute_dtype(logits.dtype)
    by_sequence = settings.ranking == "sequence"
    statistics = softmax_statistics(
        logits, temperatures, student.mask if by_sequence else None, settings.chunk_size, keep
    )
    if by_sequence:
        values = teacher.values.exp()
        masks = student.mask, teacher.targets.mask
        columns = match_with_statistics(logits, statistics, values, *masks, settings.matching)
    else:
        columns = largest_ids(logits, teacher.values.shape[-1], settings.chunk_size)
    return answer_pass(
        student.logits,
        labels=student.labels,
        columns=columns,
        temperatures=temperatures,
        statistics=statistics,
        chunk_size=settings.chunk_size,
    )


@dataclass(frozen=True)
class _Pair:
    """Both sides' columns, turned into probabilities at the temperature that a term asks for."""

    settings: MultiLevelOTSettings
    student: StudentAnswers
    teacher: _TeacherColumns
    answers: AnswerPass

    def at(self, temperature: float) -> MatchedColumns:
        teacher = self.teacher.log_probabilities(temperature).exp()
        student = self.answers.log_probabilities(temperature).exp()
        teacher_rest = student_rest = None
        if not self.settings.top_k:  # nothing is cut off: what one vocabulary has more than the other meets zeros
            columns = teacher.shape[-1]
            if self.teacher.targets.vocabulary_size > columns:
                teacher_rest = 1 - teacher.sum(-1)
            if self.student.logits.shape[-1] > columns:
                student_rest = 1 - student.sum(-1)
        masks = self.teacher.targets.mask, self.student.mask
        return MatchedColumns(teacher, student, *masks, teacher_rest, student_rest)
