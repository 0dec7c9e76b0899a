"""Cross-entropy on labels: supervised fine-tuning, and SeqKD where the labels are the teacher's answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosskd.kernels import use_triton
from crosskd.losses.answer_pass import answer_pass
from crosskd.losses.base import DistillationMethod, StudentAnswers
from crosskd.losses.registry import register
from crosskd.losses.targets import TargetRequest, TeacherTargets
from crosskd.transport.hidden_logits import HiddenLogits
from crosskd.transport.softmax_statistics import compute_dtype


def answer_cross_entropy(
    logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"], chunk_size: int | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy summed over the labels that are not -100, ``- sum_t log s_y(t)`` (first term of Eq. 21).

    Equivalent to:
        >>> torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")

    Args:
        logits: (B, T, V), any floating dtype.
        labels: (B, T) int64 in [0, V), or -100.
        chunk_size: Tokens of the batch whose exponentials exist at once; None chooses.

    Returns:
        A scalar in float32 (float64 for float64 logits), attached to the graph.
    """
    if use_triton(logits) and not isinstance(logits, HiddenLogits):
        from crosskd.kernels.answer_pass import cross_entropy

        return cross_entropy(logits, labels, compute_dtype(logits.dtype))
    return answer_pass(logits, labels=labels, chunk_size=chunk_size).cross_entropy


@register
@dataclass(frozen=True)
class CrossEntropy(DistillationMethod):
    """Supervised fine-tuning: cross-entropy on labels and nothing else."""

    name: ClassVar[str] = "sft"
    needs_teacher: ClassVar[bool] = False

    def request(self) -> TargetRequest | None:
        """Nothing."""
        return None

    def terms(self, student: StudentAnswers, targets: TeacherTargets | None) -> dict[str, Tensor]:
        """``cross_entropy``, and a ``distillation`` of zero, a constant; ``targets`` are not looked at."""
        cross_entropy = answer_cross_entropy(student.logits, student.labels)
        return {"cross_entropy": cross_entropy, "distillation": torch.zeros_like(cross_entropy)}


@register
@dataclass(frozen=True)
class SequenceDistillation(CrossEntropy):
    """SeqKD: the cross-entropy of ``sft`` on answers that the teacher generated (Kim and Rush, 2016).

    The labels make the difference, and the data layer chooses them: it trains on ``teacher_answer`` for this name.
    """

    name: ClassVar[str] = "seqkd"
