"""The terms of the loss between two lines of the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class TermLog:
    """Sums each term over micro-batches; `average` divides by the optimizer's steps, as ``loss`` is logged.

    The micro-batches of the step under way are kept apart, so that a step which is not applied leaves no trace.

    Attributes:
        skipped: Steps that were not applied, since training began.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._pending: dict[str, Tensor] = {}
        self._pending_step = -1
        self.skipped = 0

    def add(self, terms: Mapping[str, Tensor], tokens: Tensor, step: int) -> None:
        """Add a micro-batch's terms (sums over its tokens), divided by the answer tokens of the global batch.

        Args:
            terms: The terms.
            tokens: Answer tokens of the global batch.
            step: Optimizer steps finished so far.
        """
        if step != self._pending_step:
            self._settle()
            self._pending_step = step
        _add(self._pending, {name: value.detach() / tokens for name, value in terms.items()})

    def drop(self) -> None:
        """Forget the step under way, and count it."""
        self._pending = {}
        self.skipped += 1

    def average(self, accelerator: Accelerator) -> dict[str, float]:
        """Mean of each term over the steps since the last call, all processes together; then start again.

        Every process must call it: the sums are added across them.
        """
        self._settle()
        steps, sums = max(self._steps, 1), self._sums
        self._sums, self._steps = {}, 0
        names = sorted(sums)
        if not names:
            return {}
        stacked = torch.stack([sums[name].float() for name in names])
        totals: Tensor = accelerator.reduce(stacked, reduction="sum")  # pyright: ignore[reportAssignmentType]
        return {name: float(total) / steps for name, total in zip(names, totals.tolist(), strict=True)}

    def state(self) -> dict[str, Any]:
        """This process's sums, for a checkpoint; see `restore`."""
        self._settle()
        return {
            "sums": {name: float(value) for name, value in self._sums.items()},
            "steps": self._steps,
            "skipped": self.skipped,
        }

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what `state` gave."""
        self._pending, self._pending_step = {}, -1
        self._sums = {name: torch.tensor(value, device=device) for name, value in state["sums"].items()}
        self._steps, self.skipped = state["steps"], state["skipped"]

    def _settle(self) -> None:
        if self._pending:
            _add(self._sums, self._pending)
            self._steps += 1
            self._pending = {}


def _add(sums: dict[str, Tensor], terms: Mapping[str, Tensor]) -> None:
    for name, value in terms.items():
        sums[name] = sums[name] + value if name in sums else value
