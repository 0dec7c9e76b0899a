"""MultiLevelOT: optimal transport between answers, token by token and sequence by sequence (arXiv 2412.14528)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosskd.losses.authors import authors_terms
from crosskd.losses.base import IGNORED_LABEL, DistillationMethod, StudentAnswers
from crosskd.losses.multilevel_ot_paper import paper_terms, temperatures_of, terms_by_kernels
from crosskd.losses.multilevel_ot_settings import Formulation, MultiLevelOTSettings
from crosskd.losses.registry import register
from crosskd.losses.targets import TargetRequest, TeacherTargets, targets_from_logits
from crosskd.transport.matching import Matching


class MultiLevelOTTerms(NamedTuple):
    """Scalars attached to the graph, sums over tokens and sequences, not yet weighted except for ``total``.

    ``total = absolute_difference + beta sequential_log + gamma sinkhorn``, before alpha (Eq. 21).
    """

    total: Float[Tensor, ""]
    absolute_difference: Float[Tensor, ""]
    sequential_log: Float[Tensor, ""]
    sinkhorn: Float[Tensor, ""]


def multilevel_ot_loss(
    student_logits: Float[Tensor, "B T_s V_s"],
    teacher_logits: Float[Tensor, "B T_t V_t"],
    student_mask: Bool[Tensor, "B T_s"],
    teacher_mask: Bool[Tensor, "B T_t"],
    *,
    top_k: int | None = 50,
    matching: Matching | str = "fast",
    sequential_log_weight: float = 0.1,
    sinkhorn_weight: float = 0.1,
    sinkhorn_temperature: float = 2.0,
    sinkhorn_epsilon: float = 0.1,
    sinkhorn_iterations: int = 20,
    sinkhorn_tolerance: float = 0.0,
    formulation: Formulation | str = "paper",
) -> MultiLevelOTTerms:
    """MultiLevelOT between the answers of a student and of a teacher with any two vocabularies.

    ``L = L_HAD + beta L_SL + gamma L_SD`` (Eq. 14, 16, 20 and 21, arXiv 2412.14528, before alpha) on the teacher's
    ``top_k`` columns with the largest summed probability in each sequence and the student's columns matched to them.

    Args:
        student_logits: (B, T_s, V_s), any floating dtype; the logits that predict the answer tokens, answers starting
            at column 0. Gradients flow to them.
        teacher_logits: (B, T_t, V_t), any floating dtype, likewise; no gradient.
        student_mask: (B, T_s), true on answer tokens.
        teacher_mask: (B, T_t), true on answer tokens.
        top_k: Columns kept, cut to the smaller vocabulary; None or 0 for no truncation.
        matching: ``fast``, ``greedy`` or ``exact``, see ``crosskd.transport.match_columns``.
        sequential_log_weight: beta; 0 switches the term off.
        sinkhorn_weight: gamma; 0 switches the term off.
        sinkhorn_temperature: tau_SD of the probabilities that the Sinkhorn cost compares.
        sinkhorn_epsilon: lambda, positive.
        sinkhorn_iterations: N, at least 1; ``formulation="authors"`` always runs the 10 of the published code.
        sinkhorn_tolerance: Deviation of a row's mass from 1 at which a sequence pair takes no further round; 0: all N.
        formulation: ``paper`` for the equations, ``authors`` for what the published code computes (see
            docs/methods/multilevel_ot.md): means over the batch instead of sums, before the weight of 1.5.

    Returns:
        The terms in float32 (float64 for float64 logits): zero, with a graph, where there are no answer tokens.

    Raises:
        UsageError: A setting out of range.

    Note: answers of unequal length are compared on positions 1..min(T_t, T_s) by the first two terms, and as a
        T_t x T_s transport problem by the third.

    Cost: O(B T V) with one exponential an element each way, O(B T_t T_s (k + N)) for Sinkhorn; memory beside the
        gradient of the logits: two chunks of about 500,000 elements.

    Example:
        >>> student, teacher = torch.randn(2, 8, 400, requires_grad=True), torch.randn(2, 9, 300)
        >>> terms = multilevel_ot_loss(student, teacher, torch.ones(2, 8).bool(), torch.ones(2, 9).bool())
        >>> terms.total.backward()
    """
    method = MultiLevelOT(
        top_k=top_k,
        matching=matching,
        formulation=formulation,
        sequential_log_weight=sequential_log_weight,
        sinkhorn_weight=sinkhorn_weight,
        sinkhorn_temperature=sinkhorn_temperature,
        sinkhorn_epsilon=sinkhorn_epsilon,
        sinkhorn_iterations=sinkhorn_iterations,
        sinkhorn_tolerance=sinkhorn_tolerance,
    )
    labels = torch.full(student_mask.shape, IGNORED_LABEL, device=student_logits.device)
    targets = targets_from_logits(teacher_logits, teacher_mask, method.request())
    _, terms = method.published_terms(StudentAnswers(student_logits, labels, student_mask), targets)
    return terms


@register
@dataclass(frozen=True)
class MultiLevelOT(MultiLevelOTSettings, DistillationMethod):
    """MultiLevelOT as a method; ``MultiLevelOTSettings`` lists its hyperparameters."""

    name: ClassVar[str] = "multilevel_ot"

    def request(self) -> TargetRequest:
        """Ranked columns of each sequence (or sorted entries of each token), and one log-normalizer a temperature."""
        count = self.top_k or 0
        if self.formulation == "authors":
            return TargetRequest(top_k=count, standardized=True)
        others = temperatures_of(self)[1:]
        if self.ranking == "token":
            return TargetRequest(top_entries=count, temperatures=others)
        return TargetRequest(top_k=count, temperatures=others)

    def terms(self, student: StudentAnswers, targets: TeacherTargets | None) -> dict[str, Tensor]:
        """``cross_entropy``, ``distillation`` and its parts before their weights; sums over tokens and sequences.

        With ``formulation="authors"`` the published means over the batch are multiplied by the batch's number of
        labels, so that dividing by the number of labels gives the published value back.

        Raises:
            UsageError: Targets missing, made for another request, or ranked with another batch (``authors``).
        """
        cross_entropy, parts = self.published_terms(student, targets)
        if self.formulation == "authors":
            labels = (student.labels != IGNORED_LABEL).sum()
            parts = MultiLevelOTTerms(*(part * labels for part in parts))
        named = parts._asdict()
        return {"cross_entropy": cross_entropy, "distillation": named.pop("total"), **named}

    def published_terms(
        self, student: StudentAnswers, targets: TeacherTargets | None
    ) -> tuple[Float[Tensor, ""], MultiLevelOTTerms]:
        """Cross-entropy summed over the labels, and the terms as the chosen formulation publishes them."""
        compute = authors_terms if self.formulation == "authors" else paper_terms
        terms = terms_by_kernels(self, student, targets) if self.formulation == "paper" else None
        if terms is not None:
            return terms[0], MultiLevelOTTerms(*terms[1:])
        with torch.autocast(student.logits.device.type, enabled=False):  # all sums are in float32 or better
            cross_entropy, parts = compute(self, student, targets)
        nothing = cross_entropy * 0
        present = [nothing if part is None else part for part in parts]
        weights = (self.absolute_difference_weight, self.sequential_log_weight, self.sinkhorn_weight)
        total = sum((weight * part for weight, part in zip(weights, present, strict=True)), nothing)
        return cross_entropy, MultiLevelOTTerms(total, *present)
