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
        self._last_step = 0

    def start(self, step: int) -> None:
        """Count from optimizer step ``step`` on: 0, or where a resumed run goes on."""
        self._sums, self._last_step = {}, step

    def add(self, terms: Mapping[str, Tensor], tokens: Tensor) -> None:
        """Add a micro-batch's terms (sums over its tokens), divided by the answer tokens of the global batch."""
        for name, value in terms.items():
            share = value.detach() / tokens
            self._sums[name] = self._sums[name] + share if name in self._sums else share

    def average(self, accelerator: Accelerator, step: int) -> dict[str, float]:
        """Mean of each term over the steps since the last call, all processes together; then start anew.

        Every process must call it: the sums are added across them.
        """
        steps = max(step - self._last_step, 1)
        names = sorted(self._sums)
        if not names:
            return {}
        stacked = torch.stack([self._sums[name].float() for name in names])
        totals: Tensor = accelerator.reduce(stacked, reduction="sum")  # pyright: ignore[reportAssignmentType]
        self.start(step)
        return {name: float(total) / steps for name, total in zip(names, totals.tolist(), strict=True)}
