"""Two processes with the fused output layer train as one without it: DDP in the trainer, and FSDP, in one launch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import helpers_fused
from helpers_fused import SHARDED, STEP, whole_numbers
from helpers_numbers import measure

TOLERANCE = 1e-6  # numbers are logged in float32, whose rounding is 6e-8, after a handful of additions


@pytest.fixture(scope="module")
def two_processes(
    student_folder: Path, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of two processes measured."""
    folder = tmp_path_factory.mktemp("fused")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [helpers_fused.__file__, str(folder), str(student_folder), str(teacher_folder)]
    paths = os.pathsep.join([str(Path(helpers_fused.__file__).parent), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    done = subprocess.run([*launcher, *script], capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"numbers-{rank}.pt") for rank in (0, 1)]


def test_two_processes_give_the_numbers_of_one_with_logits(
    two_processes: list[dict[str, Any]], student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    one = measure({"kind": "step", **STEP, "per_device_train_batch_size": 4}, student_folder, teacher_folder, tmp_path)
    logged = two_processes[0]["step"]["logged"]
    assert logged.keys() == one["logged"].keys()
    for term, value in one["logged"].items():
        assert logged[term] == pytest.approx(value, rel=TOLERANCE, abs=1e-9), term
    for found in two_processes:
        assert found["step"]["gradients"].keys() == one["gradients"].keys()
        for parameter, gradient in one["gradients"].items():
            torch.testing.assert_close(found["step"]["gradients"][parameter], gradient, rtol=TOLERANCE, atol=1e-12)


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_weights_are_gathered_for_the_layer_and_their_gradients_are_whole(
    name: str, two_processes: list[dict[str, Any]]
) -> None:
    loss, gradients = whole_numbers()
    for found in two_processes:
        torch.testing.assert_close(found[name][0], loss, rtol=1e-12, atol=0)
        assert found[name][1].keys() == gradients.keys()
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(found[name][1][parameter], gradient, rtol=1e-10, atol=1e-10)
