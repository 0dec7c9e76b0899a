"""The process that measures for `gpu_losses.py`: one group after another, every result written as it comes.

A step that fails leaves its error in a row, and the others go on. Where an error leaves the GPU unusable (an illegal
address), or a step hangs or kills the process, `gpu_losses.py` starts another worker, which leaves that step out: what
is being done stands in a state file all the time.
"""

from __future__ import annotations

import csv
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_cases import CE, LONG, SIZES, TORCH, Case, HiddenCase, Leaves, Step, small
from gpu_measures import (
    MIB,
    alternate,
    copy_bandwidth,
    peak,
    repetitions,
    seconds_of,
    synchronizations,
    synchronize,
    trace,
)
from gpu_passes import gradient_pass, statistics_pass
from torch import Tensor

COLUMNS = ("what", "size", "value", "fastest", "unit", "reach", "note")
GROUPS = ("bandwidth", *SIZES, "hidden_8x20", "hidden_4x1024", "step")
BASELINES = (CE, "dense torch CE", "SFT step")  # measured whatever is asked for
UNUSABLE = 3  # exit code

Work = Callable[[], Any]


@dataclass
class State:
    """What is done, what failed for good, and what is being done, in a file that outlives the process."""

    path: Path
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    current: str = ""

    @classmethod
    def read(cls, path: Path) -> State:
        return cls(path, **json.loads(path.read_text())) if path.exists() else cls(path)

    def write(self) -> None:
        text = json.dumps({"done": self.done, "failed": self.failed, "current": self.current})
        partial = self.path.with_suffix(".part")
        partial.write_text(text)
        partial.replace(self.path)

    def now(self, current: str) -> None:
        self.current = current
        self.write()


class Worker:
    """Measures groups of steps and appends rows to a file.

    Args:
        device: ``cuda`` or ``cpu``.
        quick: Tiny sizes and few repetitions.
        wanted: Parts of names; steps without any of them are left out. Empty for all.
        compare: Whether the torch code is measured beside the kernels.
        output: The CSV file.
        common: Columns about the machine.
        state: See there.
    """

    def __init__(
        self,
        device: str,
        *,
        quick: bool,
        wanted: list[str],
        compare: bool,
        output: Path,
        common: dict[str, str],
        state: State,
    ) -> None:
        self.device, self.quick, self.wanted, self.compare = device, quick, wanted, compare
        self.output, self.common, self.state = output, common, state
        self.bandwidth = 0.0
        self.group = ""

    def run(self, groups: list[str]) -> None:
        if self.device == "cuda":
            self.group = "profiler"  # its first use takes a second
            self.guard("start", lambda: trace(lambda: torch.zeros(8, device="cuda").add_(1)))
        self._measure_bandwidth()
        for group in groups:
            if group in self.state.done:
                continue
            self.group = group
            self.guard("setup", lambda g=group: self._group(g))
            self.state.done.append(group)
            self.state.now("")
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def row(self, what: str, size: str, value: object, unit: str, *, fastest: object = "", note: str = "") -> None:
        """Append a row; the file is complete after each."""
        values = [what, size, _number(value), _number(fastest), unit, "", note]
        line = dict(zip(COLUMNS, values, strict=True)) | self.common
        with self.output.open("a", newline="") as file:
            csv.DictWriter(file, list(line), lineterminator="\n").writerow(line)
        print(f"{size:<14} {what:<45} {_number(value):>10} {unit} {note[:110]}", flush=True)

    def guard(self, name: str, action: Callable[[], Any]) -> Any:
        """The result of ``action``, or None and a row with the error; leaves the process if the GPU is gone."""
        key = f"{self.group}/{name}"
        if key in self.state.failed:
            return None
        self.state.now(key)
        try:
            return action()
        except Exception as error:
            text = f"{type(error).__name__}: {error}".replace("\n", " ")[:400]
            self.row(name, self.group, "", "error", note=text)
            try:
                synchronize(self.device)
            except Exception:
                self.state.failed[key] = text
                self.state.write()
                sys.stdout.flush()
                os._exit(UNUSABLE)  # an ordinary end would wait for the broken GPU
            return None

    def _group(self, group: str) -> None:
        if group in SIZES:
            self._losses(group)
        elif group.startswith("hidden_"):
            self._hidden(group)
        elif group == "step":
            self._training_step()

    def _measure_bandwidth(self) -> None:
        self.group = "bandwidth"
        size = 2**20 if self.quick else 2**32
        self.bandwidth = self.guard("copy", lambda: copy_bandwidth(self.device, size=size)) or 0.0
        if "bandwidth" not in self.state.done:
            self.row("copy bandwidth", "4 GiB", self.bandwidth / 1e12, "TB/s", note="bytes read and written")
            self.state.done.append("bandwidth")

    def _losses(self, group: str) -> None:
        size = small(SIZES[group]) if self.quick else SIZES[group]
        case = Case(size, self.device)
        makers = case.steps(compare=self.compare)
        steps = self.prepared(makers, group)
        self.times(steps, group)
        self.differences(steps, group)
        self.counts(steps, group)
        if group in (*LONG, "8x20"):
            self.passes(case, group)

    def prepared(self, makers: Mapping[str, Callable[[], Work]], size: str) -> dict[str, Work]:
        """The steps that could be made and run twice; the first turn compiles kernels, and its seconds are a row."""
        steps: dict[str, Work] = {}
        for name, make in makers.items():
            if self.wanted and name not in BASELINES and not any(part in name for part in self.wanted):
                continue

            def first(make: Callable[[], Work] = make) -> tuple[Work, float]:
                started = time.perf_counter()
                step = make()
                step()
                synchronize(self.device)
                seconds = time.perf_counter() - started
                step()
                synchronize(self.device)
                return step, seconds

            result = self.guard(name, first)
            if result is not None:
                steps[name] = result[0]
                self.row(name, size, result[1], "s, first turn")
        return steps

    def times(self, steps: dict[str, Work], size: str, *, budget: float = 0.5, most: int = 200) -> None:
        """Milliseconds of steps that take turns; one that fails now is taken out of ``steps``, and the rest go on."""
        if self.quick:
            budget, most = 0.02, 3
        turn: list[str] = []

        def say(name: str) -> None:
            turn[:] = [name]
            self.state.path.touch()  # alive

        options: dict[str, Any] = {"budget": budget, "most": most, "say": say}
        measured: dict[str, list[float]] = {}
        while steps and not measured:
            result = self.guard("timing", lambda: alternate(steps, self.device, **options))
            measured = result or {}
            if result is None and (not turn or steps.pop(turn[0], None) is None):
                return
        for name, values in measured.items():
            turns = f"{len(values)} turns"
            self.row(name, size, values[len(values) // 2] * 1e3, "ms", fastest=values[0] * 1e3, note=turns)

    def differences(self, steps: Mapping[str, Step], size: str) -> None:
        """Loss and gradients of the kernels against the torch code: that what is timed is right."""
        for name in [name for name in steps if name + TORCH in steps]:
            found = self.guard(f"{name}: difference", lambda n=name: _difference(steps[n](), steps[n + TORCH]()))
            if found is not None:
                self.row(name, size, found[0], "loss, relative difference to torch kernels")
                self.row(name, size, found[1], "gradient, relative difference to torch kernels")

    def counts(self, steps: Mapping[str, Work], size: str) -> None:
        """Kernels, busy time, synchronizations and peak memory: nothing on a CPU."""
        if self.device != "cuda":
            return
        for name, step in steps.items():
            found = self.guard(f"{name}: profile", lambda s=step: trace(s))
            if found is not None and not found.kernels:
                self.row(name, size, "", "error", note="the profiler saw no kernel")
            elif found is not None:
                self.row(name, size, found.kernels, "kernels", note=f"and {found.copies} copies or fills")
                self.row(name, size, found.busy, "ms, GPU busy", note=found.longest)
                self.row(name, size, found.waits, "waits of the host, profiler")
            waits = self.guard(f"{name}: synchronizations", lambda s=step: synchronizations(s))
            if waits is not None:
                self.row(name, size, waits[0], "synchronizations", note=waits[1])
            mebibytes = self.guard(f"{name}: peak", lambda s=step: peak(s))
            if mebibytes is not None:
                self.row(name, size, mebibytes, "MiB above inputs")

    def passes(self, case: Case, size: str) -> None:
        """The two passes alone, against two reads and one write of the logits at the bandwidth of a copy."""
        seconds: list[float] = []
        for name, make in (("pass: statistics", statistics_pass), ("pass: gradient", gradient_pass)):
            made = self.guard(name, lambda m=make: self._median(m(case)))
            if made is not None:
                seconds.append(made)
                self.row(name, size, made * 1e3, "ms")
        if len(seconds) == 2 and self.bandwidth:
            floor = 3 * case.student.numel() * case.student.element_size() / self.bandwidth
            self.row("two passes", size, floor * 1e3, "ms, read + read + write at bandwidth")
            self.row("two passes", size, floor / sum(seconds), "of copy bandwidth")

    def _median(self, step: Callable[[], object]) -> float:
        step()
        turns = repetitions(seconds_of(step, self.device), 0.3, 3 if self.quick else 200)
        return sorted(seconds_of(step, self.device) for _ in range(turns))[turns // 2]

    def _hidden(self, group: str) -> None:
        size = SIZES[group.removeprefix("hidden_")]
        case = HiddenCase(small(size) if self.quick else size, self.device)
        steps = self.prepared(case.steps(), group)
        self.times(steps, group)
        self.counts(steps, group)
        gradient = case.weight.numel() * case.weight.element_size() / MIB
        self.row("the weight's gradient", group, gradient, "MiB", note="part of each peak with a trained output layer")
        for loss in ("sft", "fast, cached"):
            pair = [steps[name] for name in (f"fused {loss}", f"dense {loss}") if name in steps]
            if len(pair) == 2:
                found = self.guard(f"{loss}: difference", lambda p=pair: _difference(p[0](), p[1]()))
                if found is not None:
                    self.row(f"fused {loss}", group, found[0], "loss, relative difference to dense")
                    self.row(f"fused {loss}", group, found[1], "gradient, relative difference to dense")

    def _training_step(self) -> None:
        from gpu_step import TrainingStep

        case = TrainingStep(self.device, quick=self.quick)
        steps = self.prepared(case.steps(), "step")
        self.times(steps, "step", budget=6.0, most=40)
        if self.device != "cuda":
            return
        inputs = torch.cuda.memory_allocated() / MIB
        for name, step in steps.items():
            mebibytes = self.guard(f"{name}: peak", lambda s=step: peak(s))
            if mebibytes is not None:
                self.row(name, "step", (mebibytes + inputs) / 1024, "GiB, peak")
            waits = self.guard(f"{name}: synchronizations", lambda s=step: synchronizations(s))
            if waits is not None:
                self.row(name, "step", waits[0], "synchronizations", note=waits[1])


def _difference(ours: tuple[Tensor, Leaves], reference: tuple[Tensor, Leaves]) -> tuple[float, float]:
    """Relative differences of the losses and of the gradients, all leaves together."""
    loss = (ours[0] - reference[0]).abs() / reference[0].abs()
    squares = torch.zeros(2, dtype=torch.float64, device=loss.device)
    for mine, theirs in zip(ours[1], reference[1], strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        for a, b in zip(mine.grad.flatten().split(2**26), theirs.grad.flatten().split(2**26), strict=True):
            squares += torch.stack([(a.float() - b.float()).square().sum(), b.float().square().sum()])
    return float(loss), float((squares[0] / squares[1]).sqrt())


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
