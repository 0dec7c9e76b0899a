"""Time and memory of the losses, as ratios to named baselines measured in the same run.

    python benchmarks/losses.py            # everything, about three minutes on two cores
    python benchmarks/losses.py --quick    # few repetitions, small scaling series
    python benchmarks/losses.py --cpu      # the CPU, although there is a GPU

Where there is a GPU, `gpu_losses.py` measures on it instead, with its own arguments, and keeps a file of its own.
Writes benchmarks/results/losses.csv (ratios), losses_scaling.csv (series) and losses_scaling.png (their plots); each
row of the tables names the machine and the versions. The full run renews the tables of docs/performance.md.

`value` is a median; `fastest` is the best of all turns, which other work on the machine disturbs least. Logits are
three times a normal sample: as peaked as a language model's. The `flat` rows use a plain normal sample, the worst case
of greedy and exact matching.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from dense_reference import dense_loss
from torch import Tensor

from crosskd.losses import DistillationMethod, StudentAnswers, TeacherTargets, create_method, targets_from_logits

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks/losses.py begins -->", "<!-- benchmarks/losses.py ends -->"
BATCH, LENGTH, ANSWER, STUDENT_VOCABULARY, TEACHER_VOCABULARY = 2, 300, 20, 50_304, 32_000


class Setup:
    """Logits, labels and steps of one size; every step starts from a fresh leaf, as a model's output would be."""

    def __init__(
        self,
        *,
        answer: int = ANSWER,
        student: int = STUDENT_VOCABULARY,
        teacher: int = TEACHER_VOCABULARY,
        batch: int = BATCH,
        scale: float = 3.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.student = (torch.randn(batch, answer, student, generator=generator) * scale).to(dtype)
        self.teacher = (torch.randn(batch, answer, teacher, generator=generator) * scale).to(dtype)
        self.labels = torch.randint(student, (batch, answer), generator=generator)
        self.mask = torch.ones(batch, answer, dtype=torch.bool)

    def cached(self, method: DistillationMethod) -> TeacherTargets:
        return self.targets(method).to(dtype=torch.float16)

    def targets(self, method: DistillationMethod) -> TeacherTargets:
        request = method.request()
        assert request is not None
        return targets_from_logits(self.teacher, self.mask, request)

    def step(self, method: DistillationMethod, cached: TeacherTargets | None = None) -> None:
        """Cross-entropy and distillation, forward and backward."""
        logits = self.student.detach().requires_grad_()
        targets = cached if cached is not None or not method.needs_teacher else self.targets(method)
        terms = method.terms(StudentAnswers(logits, self.labels, self.mask), targets)
        ((terms["cross_entropy"] + 0.15 * terms["distillation"]) / self.labels.numel()).backward()

    def cross_entropy(self) -> None:
        """The answer-only baseline: torch's cross-entropy."""
        logits = self.student.detach().requires_grad_()
        F.cross_entropy(logits.flatten(0, 1), self.labels.flatten()).backward()


def whole_sequences() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits and labels of whole sequences, the answer last."""
    generator = torch.Generator().manual_seed(1)
    sides: list[Tensor] = []
    labels: list[Tensor] = []
    for vocabulary in (STUDENT_VOCABULARY, TEACHER_VOCABULARY):
        sides.append(torch.randn(BATCH, LENGTH, vocabulary, generator=generator) * 3)
        labels.append(torch.full((BATCH, LENGTH), -100))
        labels[-1][:, -ANSWER:] = torch.randint(vocabulary, (BATCH, ANSWER), generator=generator)
    return sides[0], sides[1], labels[0], labels[1]


def timed(steps: dict[str, Callable[[], None]], repetitions: dict[str, int]) -> dict[str, list[float]]:
    """Seconds of each step, sorted. Steps take turns, so that a slow moment of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for name, step in steps.items():
        if repetitions[name] > 3:
            step()
    for turn in range(max(repetitions.values())):
        for name, step in steps.items():
            if turn < repetitions[name]:
                started = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - started)
    return {name: sorted(values) for name, values in seconds.items()}


def time_ratios(repetitions: int) -> list[dict[str, object]]:
    """The table of docs/performance.md."""
    setup, flat = Setup(), Setup(scale=1.0)
    student, teacher, student_labels, teacher_labels = whole_sequences()

    def full_cross_entropy() -> None:
        logits = student.detach().requires_grad_()
        F.cross_entropy(logits[:, :-1].flatten(0, 1), student_labels[:, 1:].flatten()).backward()

    def dense() -> None:
        dense_loss(student.detach().requires_grad_(), teacher, student_labels, teacher_labels).backward()

    methods = {matching: create_method("multilevel_ot", matching=matching) for matching in ("fast", "greedy", "exact")}
    fast = methods["fast"]
    stored = setup.cached(fast)
    others = {name: create_method(name) for name in ("uld", "sft")}
    steps: dict[str, Callable[[], None]] = {
        "answer-only cross-entropy (torch)": setup.cross_entropy,
        "full-sequence cross-entropy (torch)": full_cross_entropy,
        "dense reference": dense,
        "multilevel_ot fast, cached targets": lambda: setup.step(fast, stored),
        "multilevel_ot fast": lambda: setup.step(fast),
        "multilevel_ot greedy": lambda: setup.step(methods["greedy"]),
        "multilevel_ot exact": lambda: setup.step(methods["exact"]),
        "multilevel_ot fast, flat": lambda: flat.step(fast),
        "multilevel_ot greedy, flat": lambda: flat.step(methods["greedy"]),
        "multilevel_ot exact, flat": lambda: flat.step(methods["exact"]),
        "uld": lambda: setup.step(others["uld"]),
        "sft": lambda: setup.step(others["sft"]),
    }
    slow = {
        "full-sequence cross-entropy (torch)": max(3, repetitions // 5),
        "dense reference": 3 if repetitions > 9 else 1,
    }
    seconds = timed(steps, {name: slow.get(name, repetitions) for name in steps})
    median = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = {name: values[0] for name, values in seconds.items()}
    rows: list[dict[str, object]] = [
        {"what": name, "value": median[name], "fastest": fastest[name], "unit": "s"} for name in steps
    ]
    for what, numerator, denominator, reach in [
        ("live / full-sequence CE", "multilevel_ot fast", "full-sequence cross-entropy (torch)", "<= 0.12"),
        ("dense reference / live", "dense reference", "multilevel_ot fast", ">= 60"),
        (
            "cached / answer-only CE",
            "multilevel_ot fast, cached targets",
            "answer-only cross-entropy (torch)",
            "<= 2.0",
        ),
        ("greedy / fast", "multilevel_ot greedy", "multilevel_ot fast", "<= 2.5"),
        ("exact / fast", "multilevel_ot exact", "multilevel_ot fast", "<= 6"),
        ("greedy / fast, flat", "multilevel_ot greedy, flat", "multilevel_ot fast, flat", ""),
        ("exact / fast, flat", "multilevel_ot exact, flat", "multilevel_ot fast, flat", ""),
        ("sft / answer-only CE", "sft", "answer-only cross-entropy (torch)", ""),
    ]:
        value, best = (times[numerator] / times[denominator] for times in (median, fastest))
        rows.append({"what": what, "value": value, "fastest": best, "unit": "ratio", "reach": reach})
    return rows


def peak_memory(step: str, answer: int, vocabulary: int, dtype: str, chunk: str) -> float:
    """Peak MiB that one step adds in a process of its own: above its inputs (``extra``) or in all (``total``)."""
    command = [sys.executable, __file__, "--memory-of", step, str(answer), str(vocabulary), dtype, chunk]
    # mmap every large tensor and give it back at once: otherwise the heap's leftovers count as memory in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(result.stdout)


def memory_of(step: str, answer: int, vocabulary: int, dtype: str, chunk: str) -> float:
    """In the child process: see ``peak_memory``."""
    # A first, small step loads what is loaded once.
    for size in ((4, 300), (answer, vocabulary)):
        setup = Setup(answer=size[0], student=size[1], teacher=300, dtype=getattr(torch, dtype))
        method = create_method("multilevel_ot", chunk_size=None if chunk == "None" else int(chunk))
        stored = setup.cached(method)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is in use now
        before = _resident("VmRSS")
        setup.cross_entropy() if step == "cross_entropy" else setup.step(method, stored)
    return _resident("VmHWM") - before  # pyright: ignore[reportPossiblyUnboundVariable]


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def memory_rows(quick: bool) -> list[dict[str, object]]:
    """Peak memory above the inputs; Linux only, since it reads /proc."""
    if platform.system() != "Linux":
        return []
    rows: list[dict[str, object]] = []
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        answer = 100
        logits = BATCH * answer * STUDENT_VOCABULARY * size / 2**20
        plain = peak_memory("cross_entropy", answer, STUDENT_VOCABULARY, dtype, "None")
        ours = peak_memory("multilevel_ot", answer, STUDENT_VOCABULARY, dtype, "None")
        name = f"2 x {answer} tokens, V {STUDENT_VOCABULARY:,}, {dtype}"
        rows += [
            {"what": f"answer-only CE, {name}", "value": plain, "unit": "MiB above inputs"},
            {"what": f"multilevel_ot cached, {name}", "value": ours, "unit": "MiB above inputs"},
            {
                "what": f"extra over CE / logits, {name}",
                "value": (ours - plain) / logits,
                "unit": "ratio",
                "reach": "<= 0.5",
            },
        ]
    if not quick:
        answer, vocabulary = 1_000, 262_144  # two sequences: 2,000 answer tokens
        extra = peak_memory("multilevel_ot", answer, vocabulary, "bfloat16", "64")
        total = extra + BATCH * answer * vocabulary * 2 / 2**20
        name = "2,000 answer tokens, V 262,144, bfloat16, chunk_size 64: logits, gradient and all else"
        rows.append({"what": name, "value": total / 1024, "unit": "GiB", "reach": "< 3"})
    return rows


def scaling_rows(quick: bool) -> list[dict[str, object]]:
    """Fastest seconds against answer tokens, student vocabulary and prompt length: cached targets, one thread."""
    torch.set_num_threads(1)
    method = create_method("multilevel_ot")
    series = {
        "answer tokens": [10, 20, 40, 80, 160] if quick else [10, 20, 40, 80, 160, 320, 640],
        "student vocabulary": [8_192, 16_384, 32_768, 65_536]
        if quick
        else [8_192, 16_384, 32_768, 65_536, 131_072, 262_144],
        "prompt tokens": [0, 100, 200] if quick else [0, 100, 200, 400, 800],
    }
    rows: list[dict[str, object]] = []
    for axis, points in series.items():
        for point in points:
            answer = point if axis == "answer tokens" else ANSWER
            student = (
                point if axis == "student vocabulary" else STUDENT_VOCABULARY if axis == "prompt tokens" else 8_192
            )
            setup = Setup(answer=answer, student=student, teacher=1_000, batch=1)
            stored = setup.cached(method)
            if (
                axis == "prompt tokens"
            ):  # the answer's rows of longer logits, as a model without logits_to_keep gives them
                setup.student = torch.cat([torch.zeros(1, point, student), setup.student], dim=1)[:, point:]
            seconds = timed({"step": lambda s=setup, t=stored: s.step(method, t)}, {"step": 5 if quick else 15})
            rows.append({"axis": axis, "point": point, "seconds": seconds["step"][0]})
    return rows


def plot(rows: list[dict[str, object]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    axes_names = list(dict.fromkeys(str(row["axis"]) for row in rows))
    figure, axes = plt.subplots(1, len(axes_names), figsize=(4 * len(axes_names), 3), constrained_layout=True)
    for axis, name in zip(axes, axes_names, strict=True):
        points = [(float(str(row["point"])), float(str(row["seconds"])) * 1e3) for row in rows if row["axis"] == name]
        axis.plot(*zip(*points, strict=True), marker="o")
        axis.set(xlabel=name, ylabel="ms, forward + backward", ylim=(0, 1.1 * max(value for _, value in points)))
    figure.savefig(path, dpi=120)


def machine() -> dict[str, str]:
    """What the numbers depend on, for every row."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }


def write(rows: list[dict[str, object]], name: str, columns: tuple[str, ...], common: dict[str, str]) -> None:
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *common], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
            writer.writerow({**dict.fromkeys(columns, ""), **shown, **common})


def document(rows: list[dict[str, object]], scaling: list[dict[str, object]], common: dict[str, str]) -> None:
    """Put the tables between the markers of docs/performance.md."""

    def table(header: tuple[str, ...], lines: list[list[object]]) -> str:
        cells = [list(header), ["---"] * len(header), *lines]
        return "\n".join("| " + " | ".join(_shown(cell) for cell in line) + " |" for line in cells)

    columns = ("what", "value", "fastest", "unit", "reach")
    measured = table(columns, [[row.get(column, "") for column in columns] for row in rows])
    series = table(
        ("axis", "size", "ms, one thread"),
        [[row["axis"], row["point"], float(str(row["seconds"])) * 1e3] for row in scaling],
    )
    where = ", ".join(f"{name} {value}" for name, value in common.items())
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\nMeasured on: {where}.\n\n{measured}\n\n{series}\n\n{END}{after}")


def _shown(cell: object) -> str:
    if not isinstance(cell, float):
        return f"{cell:,}" if isinstance(cell, int) else str(cell)
    return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:.0f}"


def main() -> None:
    if torch.cuda.is_available() and not {"--cpu", "--memory-of"} & set(sys.argv):
        from gpu_losses import main as on_gpu

        on_gpu()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions; its results are for a look, not to keep")
    parser.add_argument("--cpu", action="store_true", help="measure the CPU although there is a GPU")
    parser.add_argument("--memory-of", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        step, answer, vocabulary, dtype, chunk = arguments.memory_of
        print(memory_of(step, int(answer), int(vocabulary), dtype, chunk))
        return
    common = machine()
    rows = time_ratios(9 if arguments.quick else 41) + memory_rows(arguments.quick)
    scaling = scaling_rows(arguments.quick)
    for row in rows:
        reach = f"   (reach {row['reach']})" if row.get("reach") else ""
        best = f"{row['fastest']:.4g}" if "fastest" in row else ""
        print(f"{row['what']:<90} {row['value']:>10.4g} {best:>10} {row['unit']}{reach}")
    for row in scaling:
        print(f"{row['axis']:<20} {row['point']:>8} {float(str(row['seconds'])) * 1e3:>10.2f} ms")
    suffix = "_quick" if arguments.quick else ""
    write(rows, f"losses{suffix}.csv", ("what", "value", "fastest", "unit", "reach"), common)
    write(scaling, f"losses_scaling{suffix}.csv", ("axis", "point", "seconds"), {**common, "threads": "1"})
    if not arguments.quick:
        document(rows, scaling, common)
    plot(scaling, RESULTS / f"losses_scaling{suffix}.png")


if __name__ == "__main__":
    main()
