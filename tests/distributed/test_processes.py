"""Two processes train as one does: the same loss and terms at every step, through the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crosskd import load_model
from helpers_tolerances import loss_tolerance


def run(words: list[str], processes: int) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "crosskd", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("method", ["multilevel_ot"])
def test_two_processes_give_the_losses_of_one(
    method: str, student_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    words = [
        "distill", "--student", str(student_folder), "--teacher", str(teacher_folder), "--data", str(data_folder),
        "--method", method, "--top_k", "10", "--number_few_shot", "1", "--max_steps", "3", "--logging_steps", "1",
        "--learning_rate", "1e-1", "--optim", "sgd",  # Adam makes whole steps of what rounding leaves of zero
        "--save_strategy", "no", "--use_cpu",
    ]  # fmt: skip
    logs = []
    for processes, batch in ((1, 4), (2, 2)):
        folder = tmp_path / str(processes)
        run([*words, "--per_device_train_batch_size", str(batch), "--output_dir", str(folder)], processes)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        logs.append([line for line in lines if "loss" in line])
    assert len(logs[0]) == len(logs[1]) == 3
    assert logs[0][2]["loss"] < logs[0][0]["loss"]
    models = load_model(student_folder).model, load_model(teacher_folder).model
    tolerance = loss_tolerance(*models, length=256, tokens=100)
    for one, two in zip(*logs, strict=True):
        for name in ("loss", "cross_entropy", "distillation", "absolute_difference", "sinkhorn", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=tolerance), name
