"""SIGKILL at any moment of a training, then ``--resume``: weights and log are those of the undisturbed run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from helpers_families import save_tiny
from helpers_kills import run_and_kill
from helpers_resume import assert_ended_alike, metrics_of

pytestmark = pytest.mark.faults
EVENTS, MOMENTS = 14, 6
"""Kills right before a change on disk, and kills by the clock: 20 a student."""


def distill(student: Path, data: Path, output: Path, *more: str) -> list[str]:
    """Training, logging, saving and evaluating, with a limit of checkpoints, the best at the end, and dropout."""
    return [
        "distill", "--student", str(student), "--data", str(data), "--output_dir", str(output), "--method", "sft",
        "--max_steps", "8", "--per_device_train_batch_size", "3", "--learning_rate", "1e-2", "--logging_steps", "3",
        "--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "steps", "--eval_steps", "2",
        "--load_best_model_at_end", "--save_total_limit", "2", "--use_cpu", "--disable_tqdm", "true", *more,
    ]  # fmt: skip


def moments(events: int, seconds: float) -> list[dict[str, Any]]:
    """The first and the last change on disk, others between them, and moments between them by the clock."""
    draw = random.Random(9)
    between = draw.sample(range(2, events), EVENTS - 2)
    by_event = [{"at_event": event} for event in sorted([1, *between, events])]
    return [*by_event, *({"after_seconds": draw.uniform(0.1, 0.95) * seconds} for _ in range(MOMENTS))]


@pytest.mark.parametrize("family", ["pythia", "opt"])
def test_a_killed_training_ends_as_the_undisturbed_one(family: str, data_folder: Path, tmp_path: Path) -> None:
    student = save_tiny(family, tmp_path / "student")
    whole = tmp_path / "whole"
    undisturbed = run_and_kill(distill(student, data_folder, whole), watched=whole)
    assert undisturbed.status == 0, undisturbed.output
    drawn = moments(undisturbed.events, undisturbed.seconds)
    hit = 0
    for index, moment in enumerate(drawn):
        run = tmp_path / f"run{index}"
        killed = run_and_kill(distill(student, data_folder, run), watched=run, **moment)
        hit += killed.killed
        assert killed.killed or killed.status == 0, (moment, killed.output)
        resumed = run_and_kill(distill(student, data_folder, run, "--resume"), watched=run)
        assert resumed.status == 0, (moment, resumed.output)
        assert_ended_alike(whole, run)
    assert len(drawn) == EVENTS + MOMENTS
    assert hit >= 15


def test_a_training_that_is_killed_again_and_again_gets_there(data_folder: Path, tmp_path: Path) -> None:
    """Killed during the final save too, and each time in another place."""
    student = save_tiny("pythia", tmp_path / "student")
    whole, run = tmp_path / "whole", tmp_path / "run"
    undisturbed = run_and_kill(distill(student, data_folder, whole), watched=whole)
    draw = random.Random(10)
    for index in range(5):
        at = draw.randrange(undisturbed.events // 4, undisturbed.events // 2)
        resume = ["--resume"] if index else []
        killed = run_and_kill(distill(student, data_folder, run, *resume), watched=run, at_event=at)
        assert killed.killed or killed.status == 0, killed.output
    assert run_and_kill(distill(student, data_folder, run, "--resume"), watched=run).status == 0
    assert_ended_alike(whole, run)


def test_a_kill_during_the_final_save_trains_no_step_more(data_folder: Path, tmp_path: Path) -> None:
    """8 steps of 3 examples end inside an epoch; from checkpoint-8 there is nothing left to train, only to save."""
    student = save_tiny("opt", tmp_path / "student")
    whole, run = tmp_path / "whole", tmp_path / "run"
    more = ["--max_steps", "7"]
    undisturbed = run_and_kill(distill(student, data_folder, whole, *more), watched=whole)
    killed = run_and_kill(
        distill(student, data_folder, run, *more), watched=run, at_event=undisturbed.events - 1
    )  # fmt: skip
    assert killed.killed
    assert (run / "checkpoint-7").is_dir()
    resumed = run_and_kill(distill(student, data_folder, run, *more, "--resume"), watched=run)
    assert resumed.status == 0, resumed.output
    assert "going on from checkpoint-7" in " ".join(resumed.output.split())
    assert max(line["step"] for line in metrics_of(run)) == 7
    assert_ended_alike(whole, run)
