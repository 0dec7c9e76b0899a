"""Dense reference: MultiLevelOT over whole sequences, as the published code goes about it.

Written from the description of the published computation in docs/methods/multilevel_ot.md: full-sequence logits of both
models are standardized, turned into probabilities, moved to position 0 and zeroed outside of the answers, and ranked by
sums over batch and positions. Every step makes a tensor of the full (B, L, V). It is the baseline of `losses.py`, and
tested to give what ``formulation="authors"`` gives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (1.0, 0.1, 0.1)


def dense_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_labels: Tensor,
    teacher_labels: Tensor,
    *,
    top_k: int = 50,
    weight: float = 1.5,
) -> Tensor:
    """Mean cross-entropy plus the weighted distillation, from whole sequences (B, L, V) with labels -100 outside."""
    cross_entropy = F.cross_entropy(student_logits[:, :-1].flatten(0, 1), student_labels[:, 1:].flatten())
    return cross_entropy + weight * dense_distillation(
        student_logits, teacher_logits, student_labels, teacher_labels, top_k=top_k
    )


def dense_distillation(
    student_logits: Tensor, teacher_logits: Tensor, student_labels: Tensor, teacher_labels: Tensor, *, top_k: int = 50
) -> Tensor:
    """Distillation before its weight, a mean over the batch."""
    student, student_lengths = _answers_first(_probabilities(student_logits), student_labels)
    teacher, teacher_lengths = _answers_first(_probabilities(teacher_logits), teacher_labels)
    length = int(torch.cat([student_lengths, teacher_lengths]).max())
    student, teacher = student[:, :length], teacher[:, :length]
    k = min(top_k, student.shape[-1], teacher.shape[-1])
    student = student[..., student.sum((0, 1)).argsort(descending=True)][..., :k]
    teacher = teacher[..., teacher.sum((0, 1)).argsort(descending=True)][..., :k]
    counts = torch.minimum(student_lengths, teacher_lengths).tolist()
    difference = torch.stack(
        [(t[:n] - s[:n]).abs().sum(-1).mean() for t, s, n in zip(teacher, student, counts, strict=True)]
    )
    logarithm = -(student.softmax(-1) * teacher.log_softmax(-1)).sum(-1).mean()
    pairs = zip(teacher, student, strict=True)
    transport = torch.stack([_sinkhorn((t / 2).softmax(-1), (s / 2).softmax(-1)) for t, s in pairs]).sum() * 0.001
    terms = difference.mean(), logarithm, transport
    return torch.stack([weight * term for weight, term in zip(WEIGHTS, terms, strict=True)]).sum()


def _probabilities(logits: Tensor) -> Tensor:
    return (logits / (logits.std(-1, keepdim=True) + 1e-4)).softmax(-1)


def _answers_first(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each answer's rows at position 0, the other rows zero, as a tensor of the full size."""
    answers = labels != -100
    result = torch.zeros_like(probabilities)
    for row, (values, inside) in enumerate(zip(probabilities, answers, strict=True)):
        first, count = int(inside.int().argmax()), int(inside.sum())
        result[row, :count] = values[first - 1 : first - 1 + count]
    return result, answers.sum(1)


def _sinkhorn(teacher: Tensor, student: Tensor, epsilon: float = 0.1, iterations: int = 10) -> Tensor:
    cost = torch.cdist(teacher, student, p=1)
    plan = (-cost / epsilon).exp()
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * cost).sum()
