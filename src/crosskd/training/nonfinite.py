"""Steps whose loss or gradients are not finite are not applied: the run stops and says why, or drops them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crosskd.errors import TrainingFailed
from crosskd.training.checkpoints import last_checkpoint
from crosskd.training.config import DistillationConfig

logger = logging.getLogger(__name__)

MOST_IN_A_ROW = 10
"""So many dropped steps in a row stop a run that drops them."""
_SHOWN = 16
_TRY = "Try a lower --learning_rate or more --warmup_steps, --bf16 in place of --fp16, float32"


@dataclass(frozen=True)
class MicroBatch:
    """What is kept of a forward until its step is applied.

    Attributes:
        terms: Every term of the loss, detached scalars.
        ids: Ids of the examples.
    """

    terms: Mapping[str, Tensor]
    ids: Sequence[str]

    def seen(self) -> tuple[dict[str, float], Sequence[str]]:
        """The terms that are not finite, and the ids."""
        values = {name: float(value) for name, value in self.terms.items()}
        return {name: value for name, value in values.items() if not math.isfinite(value)}, self.ids


class NonFiniteGuard(TrainerCallback):
    """Looks at the terms and the gradients of a step before the optimizer applies it, and at the weights it saves.

    The look costs one norm over the gradients and one transfer to the host a step; the weights are looked at before a
    checkpoint is saved and at the end, so that every checkpoint is a good one. With float16 gradients that a scaler
    scales, gradients that overflow belong to the scaler, which skips the step and lowers its scale: only the terms are
    looked at.

    Args:
        accelerator: Of the trainer.
        begin: Called when a step begins.
        forget: Called when a step is dropped, to take what it added since out of the log.
    """

    def __init__(self, accelerator: Accelerator, begin: Callable[[], None], forget: Callable[[], None]) -> None:
        self._accelerator = accelerator
        self._begin = begin
        self._forget = forget
        self._batches: list[MicroBatch] = []
        self._in_a_row = 0

    def note(self, terms: Mapping[str, Tensor], ids: Sequence[str]) -> None:
        """Remember a micro-batch until its step is looked at."""
        self._batches.append(MicroBatch({name: value.detach() for name, value in terms.items()}, list(ids)))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Forget what another training left."""
        self._batches, self._in_a_row = [], 0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Let the trainer note what the log holds."""
        self._begin()

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
        seen = [batch.seen() for batch in batches]
        if self._accelerator.num_processes > 1:
            seen = gather_object(seen)  # all say the same, whoever had the example
        message = f"step {state.global_step + 1}: {_what(seen, norm)}"
        self._in_a_row += 1
        if args.on_nonfinite == "stop" or self._in_a_row >= MOST_IN_A_ROW:
            dropped = f" {self._in_a_row} steps in a row were dropped." if args.on_nonfinite == "skip" else ""
            skip = "" if dropped else ", or --on_nonfinite skip to drop such steps"
            advice = f"{_kept(args)} {_TRY}; look at these examples{skip}."
            raise TrainingFailed(f"{message} The step was not applied.{dropped} {advice}")
        logger.warning("%s The step is dropped (--on_nonfinite skip).", message)
        self._forget()
        model.zero_grad(set_to_none=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Look at the weights before they are saved, and after the last step."""
        if control.should_save or control.should_training_stop:
            self._check_weights(args, state, model)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Look at the weights before they are saved."""
        if control.should_save:
            self._check_weights(args, state, model)

    def _check_weights(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        bad = weights_not_finite(model)
        if self._accelerator.num_processes > 1:
            bad = list(dict.fromkeys(gather_object(bad)))
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise TrainingFailed(
                f"step {state.global_step} made weights that are not finite: {bad[0]}{more}. "
                f"The student is not saved. {_kept(args)} {_TRY}."
            )

    def _all_finite(self, batches: Sequence[MicroBatch], norm: Tensor | None) -> bool:
        """Whether all processes saw finite numbers only; one transfer to the host."""
        values = [value.float() for batch in batches for value in batch.terms.values()]
        values += [] if norm is None else [norm.float()]
        bad = (~torch.isfinite(torch.stack([value.reshape(()) for value in values]))).any().float()
        if self._accelerator.num_processes > 1:
            bad = self._accelerator.reduce(bad, reduction="sum")
        return not bool(bad)


def weights_not_finite(model: nn.Module) -> list[str]:
    """Names of the trained parameters that hold a NaN or an infinity; one transfer to the host."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.numel()]
    if not trained:
        return []
    finite = torch.stack([torch.isfinite(p).all().to(trained[0][1].device) for _, p in trained])
    return [name for (name, _), good in zip(trained, finite.tolist(), strict=True) if not good]


def _kept(args: TrainingArguments) -> str:
    good = last_checkpoint(Path(str(args.output_dir)))
    return f"The last good checkpoint is {good}." if good else "There is no checkpoint yet."


def gradient_norm(model: nn.Module) -> Tensor:
    """Norm over all gradients, as a scalar; 0 where there are none."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # pyright: ignore[reportAttributeAccessIssue]


def _what(seen: Sequence[tuple[Mapping[str, float], Sequence[str]]], norm: Tensor | None) -> str:
    """What is not finite, and in which examples; ``seen`` is what `MicroBatch.seen` gave."""
    bad = [(terms, ids) for terms, ids in seen if terms]
    if not bad:
        of = "" if norm is None else f" ({float(norm)})"
        what = f"the gradient norm is not finite{of}, though every term of the loss is"
    else:
        terms = {name: value for found, _ in bad for name, value in found.items()}
        what = "the loss is not finite: " + ", ".join(f"{name} is {value}" for name, value in terms.items())
    ids = [name for _, names in bad or seen for name in names]
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"{what}; examples {', '.join(map(repr, ids[:_SHOWN]))}{more}." if ids else f"{what}."
