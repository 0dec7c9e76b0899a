"""What a distillation method is: answer logits and teacher targets in, named sums out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosskd.errors import UsageError
from crosskd.losses.targets import TargetRequest, TeacherTargets

IGNORED_LABEL = -100


@dataclass(frozen=True)
class StudentAnswers:
    """The student's side of a batch: logits that predict its answer tokens, answers starting at column 0.

    Attributes:
        logits: (B, T_s, V_s), any floating dtype, attached to the graph.
        labels: (B, T_s) int64, the token that each position must predict; -100 where there is none.
        mask: (B, T_s) bool, the tokens that take part in distillation: the labels without the end-of-sequence token.
        alignment: (B, T_s) int64, index of the teacher's token aligned with each student's token, -1 for none; only
            for methods with ``needs_alignment``.
    """

    logits: Float[Tensor, "B T_s V_s"]
    labels: Int[Tensor, "B T_s"]
    mask: Bool[Tensor, "B T_s"]
    alignment: Int[Tensor, "B T_s"] | None = None


class DistillationMethod(ABC):
    """A loss by name. Subclass as a frozen dataclass whose fields are the hyperparameters, and register it.

    See ``registry.py`` for how a method is found by name, and docs/methods/index.md for a complete example.
    """

    name: ClassVar[str]
    needs_teacher: ClassVar[bool] = True
    needs_alignment: ClassVar[bool] = False

    @abstractmethod
    def request(self) -> TargetRequest | None:
        """What the method needs of the teacher; None where it needs nothing."""

    @abstractmethod
    def terms(self, student: StudentAnswers, targets: TeacherTargets | None) -> dict[str, Tensor]:
        """The loss in parts: scalars attached to the graph, sums over tokens and sequences.

        Returns:
            ``"cross_entropy"`` and ``"distillation"`` (before its weight alpha), then the named parts of the latter.
            Their sum is divided by the answer tokens of the global batch by whoever trains.

        Raises:
            UsageError: ``targets`` is missing or lacks what ``request`` asked for.
        """


def required_targets(targets: TeacherTargets | None, method: str, *fields: str) -> TeacherTargets:
    """``targets``, after making sure that they are there and hold ``fields``; else a UsageError that names both."""
    missing = list(fields) if targets is None else [name for name in fields if getattr(targets, name) is None]
    if targets is None or missing:
        raise UsageError(
            f"teacher targets of {method}",
            got="none" if targets is None else "no " + ", ".join(missing),
            expected="targets made for this method's request",
            fix="make them with targets_from_logits(logits, mask, method.request()) or write the cache again",
        )
    return targets
