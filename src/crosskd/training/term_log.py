"""The terms of the loss between two lines of the log."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor


class TermLog:
    """Sums each term over micro-batches; `average` divides by the optimizer's steps, as ``loss`` is logged."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._first_step = 0

    def add(self, terms: Mapping[str, Tensor], tokens: Tensor, step: int) -> None:
        """Add a micro-batch's terms (sums over its tokens), divided by the answer tokens of the global batch.

        Args:
            terms: The terms.
            tokens: Answer tokens of the global batch.
            step: Optimizer steps finished so far; a resumed run does not begin at 0.
        """
        if not self._sums:
            self._first_step = step
        for name, value in terms.items():
            share = value.detach() / tokens
            self._sums[name] = self._sums[name] + share if name in self._sums else share

    def average(self, accelerator: Accelerator, step: int) -> dict[str, float]:
        """Mean of each term over the steps since the last call, all processes together; then start anew.

        Every process must call it: the sums are added across them.
        """
        steps = max(step - self._first_step, 1)
        names = sorted(self._sums)
        if not names:
            return {}
        stacked = torch.stack([self._sums[name].float() for name in names])
        totals: Tensor = accelerator.reduce(stacked, reduction="sum")  # pyright: ignore[reportAssignmentType]
        self._sums = {}
        return {name: float(total) / steps for name, total in zip(names, totals.tolist(), strict=True)}
