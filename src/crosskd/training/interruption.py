"""Ctrl-C and SIGTERM end a training after the step under way, with a checkpoint to go on from."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crosskd.errors import Terminated


class Interruption(TrainerCallback):
    """Turns the first signal into a checkpoint and an orderly end; a second one ends the process at once.

    Processes that train together agree: if one of them was interrupted, all save and stop after the same step.

    Args:
        accelerator: Of the trainer.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self._postponed = False
        self.stopping = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Watch for signals, where this is the main thread (Python takes none elsewhere)."""
        self._signal, self._postponed, self.stopping = None, False, False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint if there was a signal.

        A checkpoint of the last step of an epoch, or of all, is written once the epoch's end is logged and evaluated:
        a run resumed from there would not repeat that.
        """
        if not control.should_training_stop and self._anyone_interrupted():
            self.stopping = True
            control.should_save = True
        self._postponed = control.should_save and (control.should_training_stop or float(state.epoch or 0).is_integer())
        if self._postponed:
            control.should_save = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop once the checkpoint is written; it must not say that training is over."""
        if self.stopping:
            control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """An epoch that was broken off is neither evaluated nor saved as if it were whole."""
        if self.stopping and not self._postponed:
            control.should_log = control.should_evaluate = control.should_save = False
        if self._postponed:
            control.should_save, self._postponed = True, False

    def stop_watching(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def raise_if_stopped(self, checkpoint: str) -> None:
        """End as an interrupted program does, once everything is saved.

        Raises:
            KeyboardInterrupt: With the line that says how to go on; `Terminated` after SIGTERM.
        """
        if self.stopping:
            kind = Terminated if self._signal == signal.SIGTERM else KeyboardInterrupt
            raise kind(f"stopped; {checkpoint} is saved, and the same command with --resume goes on from it")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self.stop_watching()  # the next one is taken at its word

    def _anyone_interrupted(self) -> bool:
        own = self._signal is not None
        if self._accelerator.num_processes == 1:
            return own
        flag = torch.tensor(float(own), device=self._accelerator.device)
        return bool(self._accelerator.reduce(flag, reduction="sum"))  # pyright: ignore[reportArgumentType]
