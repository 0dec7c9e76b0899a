"""Universal logit distillation: sorted probabilities side by side, no vocabulary needed (Boizard et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from crosskd.losses.answer_pass import answer_pass
from crosskd.losses.base import DistillationMethod, StudentAnswers, required_targets
from crosskd.losses.registry import register
from crosskd.losses.targets import TargetRequest, TeacherTargets, targets_from_logits
from crosskd.losses.teacher_entries import checked_top_entries, largest_teacher_entries
from crosskd.transport.largest import largest_ids


def uld_loss(
    student_logits: Float[Tensor, "B T_s V_s"],
    teacher_logits: Float[Tensor, "B T_t V_t"],
    student_mask: Bool[Tensor, "B T_s"],
    teacher_mask: Bool[Tensor, "B T_t"],
    *,
    top_entries: int | None = None,
) -> Float[Tensor, ""]:
    """Universal logit distillation loss, ``sum_t sum_i |t_(i)(t) - s_(i)(t)|`` (Eq. 7, arXiv 2412.14528).

    t_(i) and s_(i) are the i-th largest probabilities of teacher and student for one token; the shorter vocabulary is
    padded with zeros. Unequal answers are compared on positions 1..min(T_t, T_s) of each sequence.

    Equivalent to (for equal lengths and V_s <= V_t):
        >>> student = student_logits.softmax(-1).sort(descending=True).values
        >>> teacher = teacher_logits.softmax(-1).sort(descending=True).values
        >>> ((teacher - F.pad(student, (0, V_t - V_s))).abs().sum(-1) * student_mask).sum()

    Args:
        student_logits: (B, T_s, V_s), any floating dtype, answers starting at column 0.
        teacher_logits: (B, T_t, V_t), any floating dtype; no gradient flows into them.
        student_mask: (B, T_s), true on answer tokens.
        teacher_mask: (B, T_t), true on answer tokens.
        top_entries: Compare the largest ``top_entries`` one by one and what is beyond them as two sums (see ``ULD``);
            None or 0 compares all.

    Returns:
        A scalar in float32 (float64 for float64 logits), summed over tokens and sequences, attached to the graph.

    Raises:
        UsageError: ``top_entries`` is negative.

    Cost: O(B T V log V) and about 16 bytes for each of the min(V_s, V_t) sorted entries of each token; with
    ``top_entries`` O(B T V), and only those entries are kept.
    """
    exact = min(student_logits.shape[-1], teacher_logits.shape[-1])  # what is beyond compares with zeros: one sum
    method = ULD(top_entries=top_entries or exact)
    targets = targets_from_logits(teacher_logits, teacher_mask, method.request())
    labels = torch.full(student_mask.shape, -100, device=student_logits.device)
    return method.terms(StudentAnswers(student_logits, labels, student_mask), targets)["distillation"]


@register
@dataclass(frozen=True)
class ULD(DistillationMethod):
    """Universal logit distillation (Eq. 7) with the teacher's largest entries only.

    The m largest probabilities of each token are compared one by one, and what is beyond them as two sums::

        sum_{i<=m} |t_(i) - s_(i)| + |R_t - R_s|,    R = 1 - sum_{i<=m} p_(i)

    By the triangle inequality this is never above Eq. 7, and below it by at most ``2 min(R_t, R_s)``, twice the
    teacher's tail mass, which is the term ``tail_mass``. It equals Eq. 7 from m = min(V_s, V_t) on, and it is zero for
    identical models at every m.

    Attributes:
        top_entries: m; None or 0 for all.
    """

    name: ClassVar[str] = "uld"

    top_entries: int | None = 200

    def __post_init__(self) -> None:
        checked_top_entries(self.top_entries)

    def request(self) -> TargetRequest:
        """The largest probabilities of each token, without their ids: only their size matters."""
        return TargetRequest(top_entries=self.top_entries or 0)

    def terms(self, student: StudentAnswers, targets: TeacherTargets | None) -> dict[str, Tensor]:
        """``cross_entropy``, ``distillation``, and ``tail_mass``: the teacher's probability beyond the top entries."""
        targets = required_targets(targets, self.name, "entry_log_probabilities", "entry_tail")
        log_probabilities, teacher_rest = largest_teacher_entries(targets, self.top_entries)
        tokens = min(student.mask.shape[1], targets.mask.shape[1])
        compared = student.mask[:, :tokens] & targets.mask[:, :tokens]
        ids = largest_ids(student.logits.detach()[:, :tokens], log_probabilities.shape[-1])
        columns = pad(ids, (0, 0, 0, student.mask.shape[1] - tokens))
        answers = answer_pass(student.logits, labels=student.labels, columns=columns)
        student_entries = answers.log_probabilities()[:, :tokens].exp()
        teacher_entries = log_probabilities[:, :tokens].to(student_entries.dtype).exp()
        teacher_rest = teacher_rest[:, :tokens].to(student_entries.dtype)
        exhausted = student_entries.shape[-1] == student.logits.shape[-1]
        student_rest = torch.zeros_like(teacher_rest) if exhausted else 1 - student_entries.sum(-1)
        student_entries = pad(student_entries, (0, teacher_entries.shape[-1] - student_entries.shape[-1]))
        distances = (teacher_entries - student_entries).abs().sum(-1) + (teacher_rest - student_rest).abs()
        return {
            "cross_entropy": answers.cross_entropy,
            "distillation": distances.masked_fill(~compared, 0).sum(),
            "tail_mass": teacher_rest.masked_fill(~compared, 0).sum(),
        }
