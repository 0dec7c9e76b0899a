"""Runs that are interrupted and resumed: what a kill leaves, and comparing every number with an undisturbed run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback

from crosskd import DistillationTrainer
from crosskd.training.checkpoints import UNFINISHED

_OF_THE_CLOCK = ("runtime", "per_second")


def leave_as_killed(run: Path, copy: Path) -> None:
    """Copy a run that is under way, as a kill would leave it that hit while the next checkpoint was written."""
    shutil.copytree(run, copy)
    torn = copy / UNFINISHED / "checkpoint-99"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"\x08\x00\x00")
    if (copy / "metrics.jsonl").is_file():
        with (copy / "metrics.jsonl").open("a") as stream:
            stream.write('{"step": 4, "lo')


class KilledInStep(TrainerCallback):
    """Keeps a copy of the run's folder at the beginning of a step (counted from 1)."""

    def __init__(self, step: int, copy: Path) -> None:
        self._step, self._copy = step, copy

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step - 1:
            leave_as_killed(Path(args.output_dir), self._copy)


def in_step(patch: Any, step: int, act: Callable[[Path], None]) -> None:
    """Act in the middle of a training step (counted from 1), between forward and optimizer."""
    original = DistillationTrainer.training_step

    def training_step(self: DistillationTrainer, *arguments: Any, **options: Any) -> Tensor:
        loss = original(self, *arguments, **options)
        if self.state.global_step == step - 1:
            act(Path(str(self.args.output_dir)))
        return loss

    patch.setattr(DistillationTrainer, "training_step", training_step)


def with_dropout(model: nn.Module) -> nn.Module:
    """Dropout wherever a model has a place for it, so that a step depends on the state of the random numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.1)
    return model


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of the log without what the clock decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(_OF_THE_CLOCK)} for line in lines]


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Every weight of a student, of an adapter or of a checkpoint."""
    files = sorted(folder.glob("*.safetensors"))
    assert files
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal bit by bit, in all that tensors, lists and mappings hold."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name, value in one.items():
            assert_same(value, other[name], f"{where}/{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, value in enumerate(one):
            assert_same(value, other[index], f"{where}/{index}")
    else:
        assert one == other, where


def assert_ended_alike(whole: Path, resumed: Path) -> None:
    """The student, the newest checkpoint's weights, optimizer, schedule and random numbers, and the log."""
    assert_same(weights_of(whole), weights_of(resumed), "weights")
    assert metrics_of(whole) == metrics_of(resumed)
    last = max(whole.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])).name
    assert_same(weights_of(whole / last), weights_of(resumed / last), last)
    for name in ("optimizer.pt", "scheduler.pt"):
        states = [torch.load(run / last / name, weights_only=True) for run in (whole, resumed)]
        assert_same(states[0], states[1], name)
    assert (whole / last / "rng_state.pth").stat().st_size == (resumed / last / "rng_state.pth").stat().st_size
    assert not (resumed / UNFINISHED / "checkpoint-99").exists()
