"""A `transformers.Trainer` whose runs can be killed at any moment and end as if nothing had happened."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from crosskd.errors import TrainingFailed, UsageError
from crosskd.files import read_json, write_json
from crosskd.training.checkpoints import (
    UNFINISHED,
    last_checkpoint,
    load_weights,
    move_into_place,
    problem_of,
    refuse_differences,
    remove_old_checkpoints,
    writing,
)
from crosskd.training.interruption import Interruption
from crosskd.training.run_files import STATE
from crosskd.training.term_log import TermLog

logger = logging.getLogger(__name__)

_LOG_STATE = "log_state_{}.json"
_OPTIMIZER = "optimizer.pt"


class ResumableTrainer(Trainer):
    """Adds to `transformers.Trainer` what makes a resumed run equal the undisturbed one, bit by bit on one machine.

    Checkpoints are written beside their place and moved there when they are whole. They are loaded strictly: a weight
    that is missing or unexpected is an error, also when the best model is loaded at the end. What the log has gathered
    since its last line is saved, too. Ctrl-C and SIGTERM save a checkpoint, once the step under way is applied.

    Attributes:
        terms: What is logged beside the loss; whoever computes the loss adds to it.
        interruption: Watches for signals during `train`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.terms = TermLog()
        self.interruption = Interruption(self.accelerator)
        self._redirected: str | None = None
        self._whole_loss = True
        for callback in (self.interruption, _AtBeginning(self)):
            self.add_callback(callback)

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> Any:
        """See `transformers.Trainer.train`; ``True`` goes on from the newest whole checkpoint.

        Raises:
            UsageError: The checkpoint is not whole, or does not hold the weights of this model.
            KeyboardInterrupt: Ctrl-C or SIGTERM, once a checkpoint is saved.
            TrainingFailed: A checkpoint or a line of the log cannot be written; the last good checkpoint stays.
        """
        self._resumed = self._checkpoint(resume_from_checkpoint)
        try:
            result = super().train(self._resumed, *arguments, **options)
        finally:
            self.interruption.stop_watching()
            self._close_progress()
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is None:
            logger.warning("no best checkpoint was saved: the student is that of the last step")
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms of the loss, averaged over the steps since the last time; see `transformers.Trainer.log`."""
        if "loss" in logs:
            logs = {**logs, **self.terms.average(self.accelerator)}
            logs |= {"skipped_steps": self.terms.skipped} if self.terms.skipped else {}
        if "train_loss" in logs and self._whole_loss:  # of the whole run, and of the steps that were applied
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step - self.terms.skipped, 1)
        with writing(Path(str(self.args.output_dir)), "the log"):
            super().log(logs, start_time)

    def save_state(self) -> None:
        """Write ``trainer_state.json`` in one step: it says that the run is finished (`is_finished`)."""
        if self.args.should_save:
            path = Path(str(self.args.output_dir)) / STATE
            beside = path.with_name(f".{STATE}.part")
            self.state.save_to_json(str(beside))
            beside.replace(path)

    def restore_log(self) -> None:
        """Take up the log where the checkpoint left it (called when training begins)."""
        self._remove_unfinished()
        self.accelerator.wait_for_everyone()
        self._whole_loss = True
        if not self._resumed:
            self.terms = TermLog()
            return
        self._find_best_checkpoint()
        path = Path(self._resumed) / _LOG_STATE.format(self.args.process_index)
        if not path.is_file():  # written by another number of processes
            self._whole_loss = False
            return
        state = read_json(path)
        self._tr_loss = torch.tensor(state["loss"], device=self.args.device)
        self._globalstep_last_logged = state["last_logged"]
        self._total_loss_scalar = state["total"]
        self.terms.restore(state["terms"], self.args.device)

    def _close_progress(self) -> None:
        """End the line of a progress bar that an error left open, so that the next message has a line of its own."""
        for callback in self.callback_handler.callbacks:
            for name in ("prediction_bar", "training_bar"):
                if getattr(callback, name, None) is not None:
                    getattr(callback, name).close()
                    setattr(callback, name, None)

    def _checkpoint(self, given: str | bool | None) -> str | None:
        """The checkpoint to go on from, after a look at whether it is whole."""
        if not given:
            return None
        folder = Path(str(self.args.output_dir))
        checkpoint = last_checkpoint(folder) if given is True else Path(given)
        if checkpoint is None:
            raise UsageError(f"resume_from_checkpoint {folder}", got="no whole checkpoint", expected="at least one")
        problem = problem_of(checkpoint)
        if problem is None and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            problem = None if (checkpoint / _OPTIMIZER).is_file() else f"no {_OPTIMIZER}: the weights alone were saved"
        if problem is not None:
            raise UsageError(f"checkpoint {checkpoint}", got=problem, expected="a whole checkpoint")
        return str(checkpoint)

    def _run_epoch(self, **arguments: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Train an epoch, unless a checkpoint of the last step was gone on from: there is nothing left to do."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**arguments)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        """Evaluate, except at the start of a resumed run (the call that skips the scheduler)."""
        if skip_scheduler and self._resumed:
            return None
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        """Close the log and load the best model, unless the run was interrupted: then nothing more happens to it."""
        if self.interruption.stopping:
            self.is_in_train = False
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
            self.interruption.raise_if_stopped(f"checkpoint-{self.state.global_step}")
        return super()._finalize_training(trial, num_train_samples, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside its place, and move it there when all processes have written their part."""
        run, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        try:
            with writing(run, name):
                self._write_checkpoint(model, trial, run, name)
        except TrainingFailed:
            self._remove_unfinished()  # it takes the room that a last good checkpoint may need
            raise
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / name))

    def _write_checkpoint(self, model: nn.Module, trial: Any, run: Path, name: str) -> None:
        unfinished = run / UNFINISHED / name
        with self._writing_to(run / UNFINISHED):
            super()._save_checkpoint(model, trial)
        write_json(unfinished / _LOG_STATE.format(self.args.process_index), self._log_state())
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint == str(unfinished):
            self.state.best_model_checkpoint = str(run / name)
        if self.args.should_save:
            self.state.save_to_json(str(unfinished / STATE))
            move_into_place(unfinished, run / name)
            kept = {self.state.global_step, self.state.best_global_step}
            remove_old_checkpoints(run, self.args.save_total_limit, kept)
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        return self._redirected or super()._get_output_dir(trial)

    @contextmanager
    def _writing_to(self, folder: Path) -> Iterator[None]:
        """Let checkpoints go into another folder; they are counted, and pushed to a hub, in their own place, later."""
        pushes, limit = self.args.push_to_hub, self.args.save_total_limit
        self._redirected, self.args.push_to_hub, self.args.save_total_limit = str(folder), False, None
        try:
            yield
        finally:
            self._redirected, self.args.push_to_hub, self.args.save_total_limit = None, pushes, limit

    def _remove_unfinished(self) -> None:
        if self.args.should_save:
            shutil.rmtree(Path(str(self.args.output_dir)) / UNFINISHED, ignore_errors=True)

    def _find_best_checkpoint(self) -> None:
        """The best checkpoint lies beside the others, also where the run's folder goes by another name now."""
        if self.state.best_global_step is not None:
            best = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None

    def _log_state(self) -> dict[str, Any]:
        return {
            "loss": float(self._tr_loss),
            "last_logged": self._globalstep_last_logged,
            "total": self._total_loss_scalar,
            "terms": self.terms.state(),
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            assert self.model is not None
            load_weights(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            logger.info("the student is that of %s (%s)", Path(str(best)).name, self.state.best_metric)
            assert self.model is not None
            load_weights(self.model, Path(str(best)))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """What transformers only warns of is an error here; weights that are never saved may be missing."""
        ignored = set(getattr(self.model, "_keys_to_ignore_on_save", None) or ())
        missing = set(load_result.missing_keys) - ignored
        refuse_differences(self._resumed or str(self.args.output_dir), missing, load_result.unexpected_keys)


class _AtBeginning(TrainerCallback):
    """Calls back when the trainer has set up everything, and before the first step."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer.restore_log()
