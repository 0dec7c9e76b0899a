"""How a step is measured on a GPU: milliseconds, kernels, synchronizations, memory, and the card's bandwidth.

Every function also runs on a CPU, where what only a GPU has comes out as nothing.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
_SYNCHRONIZING = "called a synchronizing"  # of torch's warning; another one of its module says "Synchronization" only
_WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cuStreamSynchronize", "cuEventSynchronize")


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu {platform.machine()}"


def file_name(kind: str, device: str, suffix: str = "") -> str:
    """``losses_nvidia_h100_80gb_hbm3.csv``: results of ``kind``, a file for each kind of machine."""
    name = re.sub(r"[^a-z0-9]+", "_", device_name(device).lower()).strip("_")
    return f"{kind}_{name}{suffix}.csv"


def synchronize(device: str) -> None:
    """Wait until the GPU has done what was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(step: Callable[[], object], device: str) -> float:
    """One turn, with a synchronization before and after: the launches are in it, as in a training loop."""
    synchronize(device)
    started = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - started


def repetitions(seconds: float, budget: float, most: int) -> int:
    """How often a step is repeated within ``budget`` seconds: at least 3 times."""
    return max(3, min(most, int(budget / max(seconds, 1e-9))))


def alternate(
    steps: Mapping[str, Callable[[], object]],
    device: str,
    *,
    budget: float,
    most: int,
    say: Callable[[str], None],
) -> dict[str, list[float]]:
    """Seconds of each step, sorted. All take turns, spread evenly over the run; every other turn in reverse order.

    Args:
        steps: By name; each has run before.
        device: ``cuda`` or ``cpu``.
        budget: Seconds that one step's repetitions may take together.
        most: Repetitions at most.
        say: Called with a step's name before its turn, so that it is known which one hangs.
    """
    counts: dict[str, int] = {}
    for name, step in steps.items():
        say(name)
        counts[name] = repetitions(min(seconds_of(step, device) for _ in range(2)), budget, most)
    turns = max(counts.values(), default=0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns):
        due = [name for name in steps if turn * counts[name] // turns != (turn + 1) * counts[name] // turns]
        for name in due if turn % 2 else reversed(due):
            say(name)
            seconds[name].append(seconds_of(steps[name], device))
    return {name: sorted(values) for name, values in seconds.items()}


@dataclass(frozen=True)
class Trace:
    """What the GPU did in a step: kernels, copies and fills, milliseconds that it was busy, waits of the host."""

    kernels: int
    copies: int
    busy: float
    waits: int
    longest: str


def trace(step: Callable[[], object]) -> Trace:
    """Run ``step`` once under torch's profiler."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return read_trace(json.loads(path.read_text())["traceEvents"])


def read_trace(events: Sequence[Mapping[str, Any]]) -> Trace:
    """Counts from the events of a Chrome trace. Kernels that overlap are counted once in the busy time."""
    device = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    names = [str(event.get("name")) for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    kernels = [event for event in device if event["cat"] == "kernel"]
    busy, end = 0.0, 0.0
    for start, length in sorted((float(event["ts"]), float(event["dur"])) for event in device):
        busy += max(0.0, start + length - max(start, end))
        end = max(end, start + length)
    return Trace(
        len(kernels), len(device) - len(kernels), busy / 1e3, sum(name in _WAITS for name in names), _longest(kernels)
    )


def _longest(kernels: Sequence[Mapping[str, Any]]) -> str:
    """The three kernels that take most of the time, with milliseconds and launches."""
    total: dict[str, float] = {}
    launches: Counter[str] = Counter()
    for event in kernels:
        name = str(event["name"]).removeprefix("void ").split("(")[0][:60]
        total[name] = total.get(name, 0.0) + float(event["dur"])
        launches[name] += 1
    most = sorted(total.items(), key=lambda item: -item[1])[:3]
    return "; ".join(f"{name} {microseconds / 1e3:.3g} ms in {launches[name]}" for name, microseconds in most)


def synchronizations(step: Callable[[], object]) -> tuple[int, str]:
    """How often torch waits for the GPU in a step, and the lines that make it do so (most often first)."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if _SYNCHRONIZING in str(warning.message)]
    lines = Counter(f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}" for warning in found)
    return len(found), "; ".join(f"{line} x {count}" for line, count in lines.most_common(4))


def peak(step: Callable[[], object]) -> float:
    """Peak MiB of the allocator in a step, above what was in use before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def copy_bandwidth(device: str, *, size: int = 2**32, turns: int = 20) -> float:
    """Bytes a second, read and written, of a copy of ``size`` bytes from one place of the card's memory to another."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    source.fill_(1)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = [seconds_of(lambda: target.copy_(source), device) for _ in range(turns)]
    return 2 * size / statistics.median(seconds)
