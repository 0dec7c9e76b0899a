"""The trainer of the published runs: its optimizer, its schedule, its order of rows, its checkpoints."""

from __future__ import annotations

import logging
import math
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crosskd.models.card import CardFacts
from crosskd.training.trainer import DistillationTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """OneCycle: the learning rate rises in the first ``pct_start`` of the steps and falls in the rest, by cosines.

    Attributes:
        pct_start: Share of the steps, in (0, 1).
        div_factor: It begins at the largest learning rate divided by this.
        final_div_factor: It ends at the first learning rate divided by this.
    """

    pct_start: float = 0.1
    div_factor: float = 2.0
    final_div_factor: float = 5.0


class PublishedOrder(Sampler[int]):
    """Indices in the published order: a shuffle by ``seed``, the same every epoch, of all whole batches' rows.

    Args:
        size: Number of rows.
        batch_size: Rows of a batch; the last incomplete batch is left out before the shuffle.
        seed: Seed of the shuffle.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self._indices = list(range(size // batch_size * batch_size))
        random.Random(seed).shuffle(self._indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


class PublishedTrainer(DistillationTrainer):
    """`DistillationTrainer` as the published code trains.

    AdamW decays every parameter; the schedule is OneCycle, the momentum's cycle included; rows come in
    `PublishedOrder`. Validation and checkpoints: see `StepCheckpoints`.

    Args:
        arguments: As for `DistillationTrainer`.
        schedule: The OneCycle schedule.
        options: As for `DistillationTrainer`.
    """

    def __init__(self, *arguments: Any, schedule: Schedule, **options: Any) -> None:
        self._schedule = schedule
        super().__init__(*arguments, **options)
        self.remove_callback(self.interruption)  # the published script has no flag to go on from a checkpoint

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All of them: the published optimizer knows no exceptions for biases and norms."""
        return [name for name, _ in model.named_parameters()]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """OneCycle over all steps, one step of it for each of the optimizer's."""
        if self.lr_scheduler is None:
            self.lr_scheduler = OneCycleLR(
                optimizer or self.optimizer,  # pyright: ignore[reportArgumentType] - the trainer makes it first
                max_lr=self.args.learning_rate,
                total_steps=num_training_steps,
                pct_start=self._schedule.pct_start,
                div_factor=self._schedule.div_factor,
                final_div_factor=self._schedule.final_div_factor,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler  # pyright: ignore[reportReturnType]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        return PublishedOrder(len(rows), self._train_batch_size, self.args.seed)

    def _card(self) -> CardFacts:
        return replace(super()._card(), task="as the loader file has it")


class StepCheckpoints(TrainerCallback):
    """Validate and save every ``every`` steps of an epoch and at its end, into ``<output_dir>/<step>``.

    With validation rows, the student is saved where its loss is the lowest so far (or always, with ``save_all``), and
    the best one ends up in the output folder itself. Without them it is saved each time, and the last one does.

    Args:
        trainer: Whose student it is.
        every: Steps between two of them.
        save: Whether to save on the way at all.
        save_all: Whether to save what is no new best too.
    """

    def __init__(self, trainer: PublishedTrainer, *, every: int, save: bool = True, save_all: bool = False) -> None:
        self._trainer = trainer
        self._every = every
        self._save = save
        self._save_all = save_all
        self.best_loss = math.inf
        self.best: Path | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Decide whether this step is one of those."""
        steps = max(1, state.max_steps // math.ceil(args.num_train_epochs))
        step = (state.global_step - 1) % steps + 1
        if step % self._every and step != steps:
            return
        if self._trainer.eval_dataset is not None:
            control.should_evaluate = True
        elif self._save:
            self._write(state.global_step)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Save a new best student."""
        loss = (metrics or {}).get("eval_loss", math.nan)
        better = loss < self.best_loss
        if self._save and (better or self._save_all):
            folder = self._write(state.global_step)
            self.best = folder if better else self.best
        if better:
            self.best_loss = loss
            logger.info("step %d: validation loss %.4f, the lowest so far", state.global_step, loss)

    def finish(self) -> None:
        """Put the student that counts into the output folder: the best by validation, or the one in memory."""
        output = Path(str(self._trainer.args.output_dir))
        if self.best is None:
            self._trainer.save_model(str(output))
        elif self._trainer.args.should_save:
            shutil.copytree(self.best, output, dirs_exist_ok=True)
            logger.info("the student of step %s had the lowest validation loss, and is kept", self.best.name)

    def _write(self, step: int) -> Path:
        folder = Path(str(self._trainer.args.output_dir)) / str(step)
        self._trainer.save_model(str(folder))
        return folder
