"""What a teacher that runs once costs and saves, on a real pair of models.

    python benchmarks/training.py            # about seven minutes on two quiet cores, 12 GiB of memory
    python benchmarks/training.py --quick    # few examples and repetitions
    python benchmarks/training.py --data DIR # examples of a prepared folder, 800 at most, instead of the sample

Gemma 3 270M teaches SmolLM2-135M on questions of QED, four at a time: the models of `make demo`. Steps alternate, so
that a slow moment of the machine meets all of them. `value` is a median, `fastest` the best turn. The full run writes
benchmarks/results/training.csv and renews its table in docs/performance.md. Where there is a GPU, it is measured there,
peak memory is that of the GPU's allocator, and training_<GPU>.csv is written; `gpu_page.py` puts it into the page.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from gpu_measures import MIB, default_device, device_name, file_name, seconds_of
from losses import machine, write
from training_capture import Capture, disk_rows
from training_page import Row, document, shown
from training_steps import BATCH, SHOTS, Steps, make_trainer

from crosskd.cli.demo_models import find_demo_models
from crosskd.data.prepare import load_examples
from crosskd.models.load import load_model
from crosskd.models.precision import fast_bfloat16

SAMPLE = "sample:qed"
MOST_EXAMPLES = 800
MEMORY_STEPS = 6
SLOW_TURNS = 3

SFT = "SFT step"
CACHED = "MultiLevelOT step, cached targets"
LIVE = f"MultiLevelOT step, live teacher, {SHOTS} shots"
DENSE = f"dense step, live teacher, {SHOTS} shots"
DENSE_SHORT = "dense step, live teacher, no shots"
READ = "reading the cache, a batch"
CAPTURE = f"capturing targets, {SHOTS} shots, an example"
DENSE_FORWARD = f"dense forward of the same prompts, {SHOTS} shots, an example"


def load_data(source: str, limit: int) -> Dataset:
    examples = load_examples(source, "train")
    return examples.select(range(min(limit, len(examples))))


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def alternate(steps: dict[str, Callable[[], None]], turns: dict[str, int]) -> dict[str, list[float]]:
    """Seconds of each step, sorted; the order of a turn is the reverse of the turn before."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for name in steps:
        if turns[name] > SLOW_TURNS:
            steps[name]()  # the first time allocates; of the slow steps the median sees to that
    for turn in range(max(turns.values())):
        due = [name for name in steps if turn < turns[name]]
        for name in due if turn % 2 else reversed(due):
            seconds[name].append(seconds_of(steps[name], default_device()))
    return {name: sorted(values) for name, values in seconds.items()}


def time_steps(steps: Steps, *, turns: int, slow_turns: int) -> dict[str, list[float]]:
    """Every step, the slow ones in a few of the turns."""
    functions: dict[str, Callable[[], None]] = {
        SFT: lambda: steps.train("SFT"),
        CACHED: lambda: steps.train("cached"),
        READ: steps.read,
        LIVE: lambda: steps.train("live"),
        DENSE: lambda: steps.dense(SHOTS),
        DENSE_SHORT: lambda: steps.dense(0),
    }
    slow = {LIVE, DENSE, DENSE_SHORT}
    return alternate(functions, {name: slow_turns if name in slow else turns for name in functions})


def time_rows(seconds: dict[str, list[float]]) -> list[Row]:
    """Seconds, and the ratios that docs/performance.md promises."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = {name: min(values) for name, values in seconds.items()}
    rows: list[Row] = [
        {"what": name, "value": medians[name], "fastest": fastest[name], "unit": "s"} for name in seconds
    ]
    for what, numerator, denominator, reach in [
        ("cached / SFT", CACHED, SFT, "<= 1.08"),
        (f"dense, {SHOTS} shots / cached", DENSE, CACHED, ">= 3.5"),
        ("dense, no shots / cached", DENSE_SHORT, CACHED, ""),
        ("live / cached", LIVE, CACHED, ""),
        ("dense forward / capturing", DENSE_FORWARD, CAPTURE, ">= 5"),
        ("reading the cache / cached step", READ, CACHED, "<= 0.01"),
    ]:
        value, best = (times[numerator] / times[denominator] for times in (medians, fastest))
        rows.append({"what": what, "value": value, "fastest": best, "unit": "ratio", "reach": reach})
    return rows


def peak_memory(method: str, data: str, examples: int, cache: Path) -> float:
    """Peak MiB of a process that trains for a few steps, in all."""
    command = [sys.executable, __file__, "--memory-of", method, data, str(examples), str(cache)]
    # mmap every large tensor and give it back at once: otherwise the heap's leftovers count as memory in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return float(result.stdout.splitlines()[-1])


def memory_of(method: str, data: str, examples: int, cache: str) -> float:
    """In the child process: see ``peak_memory``."""
    _, student = find_demo_models()
    targets = Path(cache) if method != "sft" else None
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(
            method, student, load_data(data, examples), Path(scratch), cache=targets, max_steps=MEMORY_STEPS
        )
        trainer.train()
    if default_device() == "cuda":
        return torch.cuda.max_memory_allocated() / MIB
    # not getrusage: its peak is inherited from the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def memory_rows(data: str, examples: int, cache: Path) -> list[Row]:
    """Peak memory of training with the cache against SFT: of the GPU's allocator, or (Linux only) of the process."""
    if default_device() == "cpu" and platform.system() != "Linux":
        return []
    plain, ours = (peak_memory(method, data, examples, cache) for method in ("sft", "multilevel_ot"))
    return [
        {"what": f"peak memory, SFT, {MEMORY_STEPS} steps", "value": plain, "unit": "MiB"},
        {"what": f"peak memory, cached targets, {MEMORY_STEPS} steps", "value": ours, "unit": "MiB"},
        {"what": "peak memory, cached / SFT", "value": ours / plain, "unit": "ratio", "reach": "<= 1.05"},
    ]


def cost_rows(seconds: dict[str, list[float]], examples: int) -> list[Row]:
    """Minutes that trainings take, computed from the medians of this run: steps, and the capture once."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    steps = -(-examples // BATCH)
    capture = examples * median[CAPTURE]
    rows: list[Row] = []
    for what, methods, epochs in [
        ("1 epoch", 1, 1),
        ("10 epochs", 1, 10),
        ("5 methods, 1 epoch each", 5, 1),
        ("5 methods, 10 epochs each", 5, 10),
    ]:
        for way, step, once in [
            ("SFT, no teacher", SFT, 0.0),
            ("cached, capture included", CACHED, capture),
            ("live teacher", LIVE, 0.0),
            ("dense way", DENSE, 0.0),
        ]:
            minutes = (methods * epochs * steps * median[step] + once) / 60
            rows.append({"what": f"{what}: {way}", "value": minutes, "unit": "min, computed"})
    return rows


def measure(arguments: argparse.Namespace, scratch: Path) -> tuple[list[Row], dict[str, str]]:
    """All rows, and what they depend on."""
    quick: bool = arguments.quick
    examples = load_data(arguments.data, 16 if quick else MOST_EXAMPLES)
    paths = find_demo_models()
    teacher = load_model(paths[0])
    teacher.model.to(default_device())  # pyright: ignore[reportArgumentType]
    say(f"capturing the targets of {len(examples)} examples")
    capture = Capture(teacher, examples, turns=1 if quick else 3, dense_examples=BATCH if quick else 2 * BATCH)
    cache = scratch / "targets"
    capture.save(cache)
    say("peak memory, in processes of their own")
    memory = memory_rows(arguments.data, len(examples), cache)
    say("training steps")
    steps = Steps(examples, cache, teacher, paths, scratch)
    seconds = time_steps(steps, turns=4 if quick else 15, slow_turns=1 if quick else SLOW_TURNS)
    seconds |= {CAPTURE: capture.seconds, DENSE_FORWARD: capture.dense_seconds}
    common = {
        **({"device": device_name("cuda"), "cuda": str(torch.version.cuda)} if default_device() == "cuda" else {}),
        **machine(),
        "transformers": transformers.__version__,
        "numbers": "bfloat16 autocast in training" if fast_bfloat16() else "float32",
        "data": f"{len(examples)} of {SAMPLE if arguments.data == SAMPLE else 'QED, --data'}",
        "timed batch": steps.lengths,
    }
    rows = time_rows(seconds) + disk_rows(capture, cache) + memory + cost_rows(seconds, len(examples))
    return rows, common


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions; its results are for a look, not to keep")
    parser.add_argument("--data", default=SAMPLE, help="folder written by `crosskd prepare`; default: the sample")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    if arguments.memory_of:
        method, data, examples, cache = arguments.memory_of
        print(memory_of(method, data, int(examples), cache))
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        rows, common = measure(arguments, Path(scratch))
    for row in rows:
        reach = f"   (reach {row['reach']})" if row.get("reach") else ""
        best = shown(row["fastest"]) if "fastest" in row else ""
        print(f"{row['what']:<75} {shown(row['value']):>10} {best:>10} {row['unit']}{reach}")
    suffix = "_quick" if arguments.quick else ""
    on_cpu = default_device() == "cpu"
    name = f"training{suffix}.csv" if on_cpu else file_name("training", "cuda", suffix)
    write(rows, name, ("what", "value", "fastest", "unit", "reach"), common)
    if on_cpu and not arguments.quick:
        document(rows, common)
    say(f"{(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
