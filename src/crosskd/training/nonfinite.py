"""Steps whose loss or gradients are not finite are not applied: the run stops and says why, or drops them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crosskd.errors import TrainingFailed
from crosskd.training.checkpoints import last_checkpoint
from crosskd.training.config import DistillationConfig

logger = logging.getLogger(__name__)

MOST_IN_A_ROW = 10
"""So many dropped steps in a row stop a run that drops them."""
_SHOWN = 16


@dataclass(frozen=True)
class MicroBatch:
    """What is kept of a forward until its step is applied.

    Attributes:
        terms: Every term of the loss, detached scalars.
        ids: Ids of the examples.
    """

    terms: Mapping[str, Tensor]
    ids: Sequence[str]

    def not_finite(self) -> dict[str, float]:
        """The terms that are not finite."""
        values = {name: float(value) for name, value in self.terms.items()}
        return {name: value for name, value in values.items() if not torch.isfinite(torch.tensor(value))}


class NonFiniteGuard(TrainerCallback):
    """Looks at the terms and the gradients of a step before the optimizer applies it.

    The look costs one norm over the gradients and one transfer to the host a step. With float16 gradients that a
    scaler scales, gradients that overflow belong to the scaler, which skips the step and lowers its scale: only the
    terms are looked at.

    Args:
        accelerator: Of the trainer.
        forget: Called when a step is dropped, to take its terms out of the log.
    """

    def __init__(self, accelerator: Accelerator, forget: Callable[[], None]) -> None:
        self._accelerator = accelerator
        self._forget = forget
        self._batches: list[MicroBatch] = []
        self._in_a_row = 0
        self.skipped = 0

    def note(self, terms: Mapping[str, Tensor], ids: Sequence[str]) -> None:
        """Remember a micro-batch until its step is looked at."""
        self._batches.append(MicroBatch({name: value.detach() for name, value in terms.items()}, list(ids)))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Forget what another training left."""
        self._batches, self._in_a_row, self.skipped = [], 0, 0

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Stop, or take the gradients away so that the optimizer changes nothing."""
        assert model is not None
        assert isinstance(args, DistillationConfig)
        batches, self._batches = self._batches, []
        norm = None if self._accelerator.scaler is not None else gradient_norm(model)
        if self._all_finite(batches, norm):
            self._in_a_row = 0
            return
        message = f"step {state.global_step + 1}: {_what(batches, norm)}"
        self._in_a_row += 1
        if args.on_nonfinite == "stop" or self._in_a_row >= MOST_IN_A_ROW:
            raise TrainingFailed(f"{message} {self._advice(args, state)}")
        logger.warning("%s The step is dropped (--on_nonfinite skip).", message)
        self.skipped += 1
        self._forget()
        model.zero_grad(set_to_none=True)

    def _all_finite(self, batches: Sequence[MicroBatch], norm: Tensor | None) -> bool:
        """Whether all processes saw finite numbers only; one transfer to the host."""
        values = [value.float() for batch in batches for value in batch.terms.values()]
        values += [] if norm is None else [norm.float()]
        bad = (~torch.isfinite(torch.stack([value.reshape(()) for value in values]))).any().float()
        if self._accelerator.num_processes > 1:
            bad = self._accelerator.reduce(bad, reduction="sum")
        return not bool(bad)

    def _advice(self, args: DistillationConfig, state: TrainerState) -> str:
        dropped = f" {self._in_a_row} steps in a row were dropped." if args.on_nonfinite == "skip" else ""
        good = last_checkpoint(Path(str(args.output_dir)))
        kept = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
        skip = "" if args.on_nonfinite == "skip" else ", or --on_nonfinite skip to drop such steps"
        return (
            f"The step was not applied.{dropped} {kept[0].upper()}{kept[1:]}. Try a lower --learning_rate or more "
            f"--warmup_steps, --bf16 in place of --fp16, float32; look at these examples{skip}."
        )


def gradient_norm(model: nn.Module) -> Tensor:
    """Norm over all gradients, as a scalar; 0 where there are none."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # pyright: ignore[reportAttributeAccessIssue]


def _what(batches: Sequence[MicroBatch], norm: Tensor | None) -> str:
    """What is not finite, and in which examples."""
    bad = [(batch, found) for batch in batches if (found := batch.not_finite())]
    if not bad:
        where, of = batches, "" if norm is None else f" ({float(norm)})"
        what = f"the gradient norm is not finite{of}, though every term of the loss is"
    else:
        where = [batch for batch, _ in bad]
        terms = {name: value for _, found in bad for name, value in found.items()}
        what = "the loss is not finite: " + ", ".join(f"{name} is {value}" for name, value in terms.items())
    ids = [name for batch in where for name in batch.ids]
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"{what}; examples {', '.join(map(repr, ids[:_SHOWN]))}{more}." if ids else f"{what}."
