"""Every method and variant of one, on a batch of answers of unequal lengths: a step of training without its models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crosskd.losses import StudentAnswers, TeacherTargets, create_method, targets_from_logits
from crosskd.losses.base import DistillationMethod
from crosskd.losses.mined import MinED

_PUBLISHED = {"top_entries": 10, "alignment": "dtw", "remainder": "dropped", "edit_distance_cutoff": 1.0}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "uld": ("uld", {"top_entries": 20}),
    "mined": ("mined", {"top_entries": 20}),
    "mined published": ("mined", _PUBLISHED),
    "fast": ("multilevel_ot", {}),
    "greedy": ("multilevel_ot", {"matching": "greedy"}),
    "exact": ("multilevel_ot", {"matching": "exact"}),
    "envelope": ("multilevel_ot", {"plan_gradient": "envelope"}),
    "no truncation": ("multilevel_ot", {"top_k": 0}),
    "ranking by token": ("multilevel_ot", {"ranking": "token"}),
    "sinkhorn by token": ("multilevel_ot", {"sinkhorn_level": "token"}),
    "authors": ("multilevel_ot", {"formulation": "authors"}),
    "authors greedy": ("multilevel_ot", {"formulation": "authors", "matching": "greedy"}),
}


class Step:
    """Logits, labels and masks of both models, and a method.

    Args:
        name: One of ``METHODS``.
        dtype: Of the logits.
        device: Where everything is.
        whole: All answers are as long as the longest: what can be made of tensors without data.
        vocabulary: The student's; the teacher's is 50 smaller.
    """

    def __init__(
        self,
        name: str,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        *,
        whole: bool = False,
        vocabulary: int = 300,
    ) -> None:
        torch.manual_seed(0)
        method, settings = METHODS[name]
        self.method: DistillationMethod = create_method(method, **settings)
        mask, self.teacher_mask = (
            torch.ones(3, tokens, dtype=torch.bool) if whole else torch.arange(tokens) < torch.tensor(lengths)[:, None]
            for tokens, lengths in ((7, [7, 5, 1]), (9, [9, 2, 4]))
        )
        self.logits = torch.randn(3, 7, vocabulary).to(device, dtype).requires_grad_()
        teachers = vocabulary - 50
        self.teacher_logits = torch.randn(3, 9, teachers).to(device, dtype)
        self.teacher_mask = self.teacher_mask.to(device)
        alignment = None
        if isinstance(self.method, MinED):
            ids = torch.arange(teachers)
            self.method = self.method.with_vocabulary_map(ids.where(ids % 3 > 0, -1))
            alignment = torch.arange(7).expand(3, -1).where(mask, -1).to(device)
        labels = torch.randint(0, vocabulary, (3, 7)).to(device)
        self.student = StudentAnswers(self.logits, labels, mask.to(device), alignment)

    def targets(self) -> TeacherTargets | None:
        """What the method asks of the teacher."""
        request = self.method.request()
        return None if request is None else targets_from_logits(self.teacher_logits, self.teacher_mask, request)

    def gradient(self, targets: TeacherTargets | None) -> Tensor:
        """The loss and back."""
        terms = self.method.terms(self.student, targets)
        (gradient,) = torch.autograd.grad(terms["cross_entropy"] + terms["distillation"], self.logits)
        return gradient
