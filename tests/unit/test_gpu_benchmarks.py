"""The GPU benchmarks on a CPU: rows, goals, the watchdog, what is counted in a trace, and the page."""

from __future__ import annotations

import csv
import importlib
import os
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COMMON = {"device": "a card", "torch": "2"}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(str(sys.modules[name].__file__)).parent == BENCHMARKS:
            del sys.modules[name]


def row(what: str, value: object, unit: str, size: str = "8x20") -> dict[str, str]:
    return {
        "what": what,
        "size": size,
        "value": str(value),
        "fastest": "",
        "unit": unit,
        "reach": "",
        "note": "",
        **COMMON,
    }


def measured(load: Any, folder: Path, groups: list[str], wanted: list[str]) -> list[dict[str, str]]:
    """Rows that a worker writes on a CPU, after `finish`."""
    worker, losses = load("gpu_worker"), load("gpu_losses")
    output = folder / "losses_a_card.csv"
    with output.open("w", newline="") as file:
        csv.DictWriter(file, [*worker.COLUMNS, *COMMON]).writeheader()
    state = worker.State(folder / "state.json")
    options = {"quick": True, "wanted": wanted, "compare": True, "output": output, "common": COMMON, "state": state}
    worker.Worker("cpu", **options).run(groups)
    assert set(groups) < set(worker.State.read(state.path).done)
    losses.finish(output, COMMON)
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


def test_groups_leave_rows_and_goals(load: Any, tmp_path: Path) -> None:
    rows = measured(load, tmp_path, ["8x20", "hidden_8x20", "step"], ["sft", "fast", "mined"])
    found = {(each["what"], each["size"], each["unit"]): each for each in rows}
    assert [each for each in rows if each["unit"] == "error"] == []
    assert all(each["device"] == "a card" for each in rows)
    own, base = found["sft", "8x20", "ms"], found["torch CE", "8x20", "ms"]
    goal = found["sft / torch CE", "8x20", "ratio"]
    assert float(goal["value"]) == pytest.approx(float(own["value"]) / float(base["value"]), rel=2e-3)
    assert goal["reach"] == "<= 1"
    assert float(found["two passes", "8x20", "of copy bandwidth"]["value"]) > 0
    assert float(found["step, cached fast / SFT", "step", "ratio"]["value"]) > 0
    same = found["fused fast, cached", "hidden_8x20", "gradient, relative difference to dense"]
    assert float(same["value"]) < 0.02  # bfloat16
    assert rows[0]["reach"]
    assert ("uld, cached", "8x20", "ms") not in found


def test_a_step_that_fails_leaves_its_error_and_the_others_go_on(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of\nregisters")

    monkeypatch.setattr("crosskd.losses.mined.MinED.terms", broken)
    rows = measured(load, tmp_path, ["8x20_float32"], ["sft", "mined, cached"])
    errors = [each for each in rows if each["unit"] == "error"]
    assert [each["what"] for each in errors] == ["mined, cached", "mined, cached, torch kernels"]
    assert errors[0]["note"] == "RuntimeError: out of registers"
    assert any(each["what"] == "sft" and each["unit"] == "ms" for each in rows)


WORKER = """
import json, os, sys, time
path = sys.argv[sys.argv.index("--worker") + 1]
state = json.load(open(path)) if os.path.exists(path) else {"done": [], "failed": {}, "current": ""}
def now(current):
    state["current"] = current
    json.dump(state, open(path, "w"))
if "a/kills" not in state["failed"]:
    now("a/kills")
    os.abort()
if "a/hangs" not in state["failed"]:
    now("a/hangs")
    time.sleep(60)
state["done"] = ["a"]
now("")
"""


def test_a_worker_that_dies_or_hangs_is_replaced(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, worker = load("gpu_losses"), load("gpu_worker")
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(losses, "__file__", str(script))
    monkeypatch.setattr(losses, "SILENT_SECONDS", 2)
    state = worker.State(tmp_path / "state.json")
    losses.watch([], state, ["a"], time.monotonic() + 60)
    found = worker.State.read(state.path)
    assert found.done == ["a"]
    assert found.failed == {"a/kills": "exit code -6", "a/hangs": "nothing for 2 s"}


def test_the_run_ends_at_its_deadline(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, worker = load("gpu_losses"), load("gpu_worker")
    script = tmp_path / "worker.py"
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(losses, "__file__", str(script))
    started = time.monotonic()
    losses.watch([], worker.State(tmp_path / "state.json"), ["a"], started + 1)
    assert time.monotonic() - started < 20


def test_what_is_counted_in_a_trace(load: Any) -> None:
    def event(cat: str, name: str, ts: float = 0, dur: float = 0) -> dict[str, Any]:
        return {"cat": cat, "name": name, "ts": ts, "dur": dur}

    events = [
        event("kernel", "void softmax<float>(float*)", 0, 1000),
        event("kernel", "void softmax<float>(float*)", 500, 1000),  # overlaps: 500 more
        event("kernel", "sinkhorn", 3000, 3000),
        event("gpu_memcpy", "Memcpy DtoH", 7000, 250),
        event("cuda_runtime", "cudaStreamSynchronize"),
        event("cuda_runtime", "cudaLaunchKernel"),
        event("cuda_runtime", "cudaDeviceSynchronize"),  # ours, at the end
        {"name": "metadata"},
    ]
    trace = load("gpu_measures").read_trace(events)
    assert (trace.kernels, trace.copies, trace.waits) == (3, 1, 1)
    assert trace.busy == pytest.approx(4.75)
    assert trace.longest == "sinkhorn 3 ms in 1; softmax<float> 2 ms in 2"


def test_synchronizations_are_counted_by_line(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step() -> None:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)

    count, lines = load("gpu_measures").synchronizations(step)
    assert count == 2
    assert lines.startswith("unit/test_gpu_benchmarks.py:")
    assert lines.endswith(" x 2")
    assert modes == ["warn", "default"]


def test_goals_are_computed_from_the_last_measurement(load: Any) -> None:
    reach = load("gpu_reach")
    rows = [
        row("torch CE", 0.2, "ms"),
        row("sft", 9.0, "ms"),
        row("sft", 0.1, "ms"),
        row("fast, cached", 61, "kernels"),
        row("greedy, cached", "", "synchronizations"),
    ]
    found = reach.with_reach(rows, list(COMMON))
    goals = {(each["what"], each["size"], each["unit"]): each for each in found if each["reach"]}
    assert goals["sft / torch CE", "8x20", "ratio"]["value"] == "0.5"
    assert goals["sft / torch CE", "8x20", "ratio"]["note"] == "reached"
    assert goals["cached fast", "8x20", "kernels"]["note"] == "not reached"
    assert goals["cached greedy", "8x20", "synchronizations"]["note"] == "not measured"
    assert goals["cached exact", "8x20", "ms"]["note"] == "not measured"
    assert sum(each["what"] == "sft" for each in found) == 1
    assert reach.with_reach(found, list(COMMON)) == found


@pytest.mark.parametrize(
    ("value", "reach", "expected"), [(2, "<= 2", True), (2.1, "<= 2", False), (0.6, ">= 0.6", True)]
)
def test_reached(load: Any, value: float, reach: str, expected: bool) -> None:
    assert load("gpu_reach").reached(value, reach) is expected


def test_the_page_gets_the_tables_between_its_markers(load: Any, tmp_path: Path) -> None:
    module, reach = load("gpu_page"), load("gpu_reach")
    rows = [
        row("torch CE", 0.25, "ms"),
        row("sft", 0.125, "ms"),
        row("sft", 7, "kernels"),
        row("sft", 0.06, "ms, GPU busy"),
        row("sft", 0, "synchronizations"),
        row("fused sft", 12, "MiB above inputs", "hidden_4x1024"),
        row("mined, cached", "", "error"),
    ]
    file = tmp_path / "losses_a_card.csv"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(reach.with_reach(rows, list(COMMON)))
    begin, end = module.markers("losses")
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{begin}\nold\n{end}\nafter\n")
    for _ in range(2):  # the second time finds its own tables
        module.main([str(file)], page)
        text = page.read_text()
        assert text.startswith(f"before\n\n{begin}\n\nMeasured on: device a card, torch 2.")
        assert text.endswith(f"{end}\nafter\n")
        assert "old" not in text
        assert "| sft / torch CE | 8x20 | 0.5 | ratio | <= 1 | reached |" in text
        assert "| sft | 7 / 0.06 / 0 |" in text
        assert "| what | 4x1024 |" in text
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="gpu begins"):
        module.main([str(file)], page)


def test_a_file_for_each_kind_of_machine(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert load("gpu_measures").file_name("losses", "cuda") == "losses_nvidia_h100_80gb_hbm3.csv"


def test_every_goal_names_something_that_is_measured(load: Any) -> None:
    cases, reach = load("gpu_cases"), load("gpu_reach")
    size = cases.small(cases.SIZES["8x20"])
    names = {
        **{name: set(cases.Case(size, "cpu").steps(compare=True)) | {"two passes"} for name in cases.SIZES},
        **{name: set(cases.HiddenCase(size, "cpu").steps()) for name in ("hidden_8x20", "hidden_4x1024")},
        "step": {"SFT step", *(f"{matching}, cached, step" for matching in ("fast", "greedy", "exact"))},
    }
    for goal in reach.GOALS:
        assert goal.what in names[goal.size], goal
        assert not goal.over or goal.over in names[goal.size], goal


def test_chosen_kernels_leave_the_variable_as_it_was(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = load("gpu_cases").chosen_kernels
    monkeypatch.delenv("CROSSKD_KERNELS", raising=False)
    with chosen("torch"):
        assert os.environ["CROSSKD_KERNELS"] == "torch"
    assert "CROSSKD_KERNELS" not in os.environ
    monkeypatch.setenv("CROSSKD_KERNELS", "triton")
    with chosen("torch"), chosen(None):
        assert os.environ["CROSSKD_KERNELS"] == "torch"
    assert os.environ["CROSSKD_KERNELS"] == "triton"
