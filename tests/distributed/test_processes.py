"""Two processes train and evaluate as one does: the same loss, terms, gradients and scores, in one launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import helpers_numbers
from helpers_fused import SHARDED, whole_numbers
from helpers_numbers import METHODS, measure

TOLERANCE = 1e-6  # numbers are logged in float32, whose rounding is 6e-8, after a handful of additions
STEPS = {
    f"{method}-{'all' if averaged else 'own'}": {
        "kind": "step", "per_device_train_batch_size": 2, "average_tokens_across_devices": averaged, **settings,
    }
    for method, settings in METHODS.items()
    for averaged in (True, False)
}  # fmt: skip
# what two processes compute from hidden states is what one does from logits
FUSED = {**STEPS["multilevel_ot-all"], "fused_output_layer": True}
EVALUATIONS = {
    f"evaluate-{rows}-{size}": {
        "kind": "evaluate", "method": "sft", "evaluated": rows, "per_device_eval_batch_size": size,
        "predict_with_generate": rows == 5, "generation_max_new_tokens": 4,
    }
    for rows, size in ((5, 2), (3, 4), (4, 2))
}  # fmt: skip
POISONED = {
    "poisoned": {"kind": "poisoned", "method": "sft", "per_device_train_batch_size": 2},
    "poisoned-skip": {
        "kind": "poisoned", "method": "sft", "per_device_train_batch_size": 2, "on_nonfinite": "skip", "max_steps": 2,
        "rows": 8, "logging_steps": 2,
    },
}  # fmt: skip
JOBS: dict[str, dict[str, Any]] = {**STEPS, "fused": FUSED, **EVALUATIONS, **POISONED, **SHARDED}


@pytest.fixture(scope="module")
def two_processes(
    student_folder: Path, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of two processes measured."""
    folder = tmp_path_factory.mktemp("processes")
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps(JOBS))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [helpers_numbers.__file__, str(jobs), str(student_folder), str(teacher_folder)]
    paths = os.pathsep.join([str(Path(helpers_numbers.__file__).parent), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    done = subprocess.run([*launcher, *script], capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"numbers-{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def one_process(
    student_folder: Path, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Measures the same in this process: one batch of all four examples, or two of two where a batch is ranked as one.

    The authors' code ranks the columns of a whole batch together, so that only equal batches give equal losses.
    """
    known: dict[str, dict[str, Any]] = {}

    def measured(job: dict[str, Any]) -> dict[str, Any]:
        apart = ("average_tokens_across_devices", "fused_output_layer")
        alone = {name: value for name, value in job.items() if name not in apart}
        if job.get("formulation") == "authors":
            alone |= {"gradient_accumulation_steps": 2}
        elif job["kind"] == "step":
            alone |= {"per_device_train_batch_size": 4}
        key = json.dumps(alone)
        if key not in known:
            known[key] = measure(alone, student_folder, teacher_folder, tmp_path_factory.mktemp("alone"))
        return known[key]

    return measured


@pytest.mark.parametrize("name", [*STEPS, "fused"])
def test_two_processes_give_the_numbers_of_one(
    name: str, two_processes: list[dict[str, Any]], one_process: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    one = one_process(JOBS[name])
    logged = two_processes[0][name]["logged"]
    assert logged.keys() == one["logged"].keys()
    for term, value in one["logged"].items():
        assert logged[term] == pytest.approx(value, rel=TOLERANCE, abs=1e-9), term
    for found in two_processes:
        assert found[name]["gradients"].keys() == one["gradients"].keys()
        for parameter, gradient in one["gradients"].items():
            torch.testing.assert_close(found[name]["gradients"][parameter], gradient, rtol=TOLERANCE, atol=1e-12)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_rows_that_fill_up_the_last_batch_do_not_count(
    name: str, two_processes: list[dict[str, Any]], one_process: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    one = one_process(JOBS[name])
    shared = sum(sum(found[name]["tokens"]) for found in two_processes)
    if name != "evaluate-4-2":
        assert shared > sum(one["tokens"]), "no row was repeated: the case says nothing"
    scores = [score for score in one["metrics"] if score.endswith(("loss", "f1", "match", "rougeLsum"))]
    assert "eval_loss" in scores
    for found in two_processes:
        for score in scores:
            assert found[name]["metrics"][score] == pytest.approx(one["metrics"][score], rel=TOLERANCE), score


def test_both_processes_stop_for_the_example_of_one(two_processes: list[dict[str, Any]]) -> None:
    first, second = (found["poisoned"]["error"] for found in two_processes)
    assert first == second  # q3 is the second process's
    assert "step 1: the loss is not finite: cross_entropy is nan; examples 'q2', 'q3'." in first


def test_both_processes_drop_the_step_that_one_of_them_cannot_take(two_processes: list[dict[str, Any]]) -> None:
    assert [found["poisoned-skip"]["error"] for found in two_processes] == [None, None]


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_weights_are_gathered_for_the_fused_layer_and_their_gradients_are_whole(
    name: str, two_processes: list[dict[str, Any]]
) -> None:
    loss, gradients = whole_numbers()
    for found in two_processes:
        torch.testing.assert_close(found[name]["loss"], loss, rtol=1e-12, atol=0)
        assert found[name]["gradients"].keys() == gradients.keys()
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(found[name]["gradients"][parameter], gradient, rtol=1e-10, atol=1e-10)
