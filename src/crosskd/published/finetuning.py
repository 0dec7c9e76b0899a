"""``finetuning.py``: train a student with the published command line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from crosskd.cli.console import start_logging
from crosskd.errors import UsageError
from crosskd.files import check_output_folder, prepare_output_folder
from crosskd.published.finetuning_config import make_config
from crosskd.published.finetuning_flags import NO_EFFECT, FinetuningFlags, read_finetuning_flags
from crosskd.published.flags import help_text
from crosskd.published.loader_file import LoaderFile
from crosskd.published.script import run_script
from crosskd.published.sides import load_student, load_teacher, read_split, read_validation
from crosskd.published.trainer import PublishedTrainer, Schedule, StepCheckpoints
from crosskd.training.config import DistillationConfig
from crosskd.training.named import check_distinct

logger = logging.getLogger(__name__)

ABOUT = """Train a student on the rows of a loader file, alone or with a teacher of another tokenizer, as the published
code of MultiLevelOT does. Writes the student into output_dir and, on the way, into output_dir/STEP."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 for bad input, 130 when it was interrupted."""
    return run_script("finetuning.py", run, words)


def run(words: Sequence[str]) -> None:
    """Train, and save the student."""
    if any(word in ("-h", "--help") for word in words):
        sys.stdout.write(help_text("finetuning.py", ABOUT, FinetuningFlags, NO_EFFECT))
        return
    start_logging("datasets", "transformers")
    flags = read_finetuning_flags(words)
    config = make_config(flags)
    if config.process_index == 0:
        _check_output(flags)
    trainer, checkpoints = build_trainer(flags, config)
    with config.main_process_first(desc="output folder"):
        if config.process_index == 0:
            prepare_output_folder(flags.output_dir, overwrite=flags.overwrite)
    trainer.train()
    checkpoints.finish()
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()  # a process that ends early takes the others' connections with it
    trainer.accelerator.end_training()
    logger.info("student: %s", flags.output_dir)


def build_trainer(flags: FinetuningFlags, config: DistillationConfig) -> tuple[PublishedTrainer, StepCheckpoints]:
    """Load the models, run the loader file, and make the trainer and what saves its student."""
    if flags.distillation:
        check_distinct(flags.model_name, flags.teacher)  # pyright: ignore[reportArgumentType] - checked to be there
    loader = LoaderFile(flags.dataset_file)  # before the models: a mistake in it shows at once
    student = load_student(flags)
    teacher = load_teacher(flags) if flags.distillation else None
    with config.main_process_first(desc="rows"):  # what the loader file caches on disk, the first process makes
        train = read_split(flags, loader, "train", student, teacher)
        validation = read_validation(flags, loader, student, teacher)
    _check_batches(flags, config, train)
    if validation is not None:
        room = max(1, len(validation) // config.world_size)
        config.per_device_eval_batch_size = min(flags.val_batch_size, room)
    trainer = PublishedTrainer(
        student,
        teacher,
        config,
        train,
        validation,
        schedule=Schedule(flags.pct_start, flags.div_factor, flags.final_div_factor),
        sources={"student": flags.model_name, "teacher": teacher and teacher.name, "data": flags.dataset_file},
    )
    checkpoints = StepCheckpoints(trainer, every=flags.save_step, save=flags.save_model, save_all=flags.save_all)
    trainer.add_callback(checkpoints)
    return trainer, checkpoints


def _check_output(flags: FinetuningFlags) -> None:
    folder = Path(flags.output_dir)
    if folder.is_dir() and any(folder.iterdir()) and not flags.overwrite:
        raise UsageError(
            f"--output_dir {folder} is not empty", fix="give --overwrite to replace what it holds, or another folder"
        )
    check_output_folder(folder, overwrite=flags.overwrite)


def _check_batches(flags: FinetuningFlags, config: DistillationConfig, train: Dataset) -> None:
    needed = config.train_batch_size * config.world_size
    if len(train) < needed:
        raise UsageError(
            f"--batch_size_training {flags.batch_size_training}",
            got=f"{len(train)} rows: an incomplete batch, and those are dropped",
            expected=f"at least {needed} rows" if config.world_size > 1 else f"at most {len(train)}",
        )
