"""Time, launches and memory of the losses on a GPU, against what must be reached there.

    python benchmarks/gpu_losses.py                       # everything, about four minutes on an H100
    python benchmarks/gpu_losses.py --only 8x20 step      # some groups
    python benchmarks/gpu_losses.py --methods fast sft    # some methods (torch's cross-entropy always)
    python benchmarks/gpu_losses.py --kernels torch       # the whole run with CROSSKD_KERNELS=torch
    python benchmarks/gpu_losses.py --device cpu --quick  # tiny sizes, to try this program

Writes benchmarks/results/losses_<GPU>.csv (losses_<GPU>_part.csv for a part of it), row by row as they come; at the end
the rows of what must be reached are put first. `python benchmarks/gpu_page.py FILE.csv` puts the tables into
docs/performance.md. `python benchmarks/losses.py` ends up here where there is a GPU.

Logits are there already; a step is forward and backward of cross-entropy and distillation from a fresh leaf, with a
synchronization before and after, so that it holds the launches that a training loop would see. All steps of a size
alternate; the first turn (Triton compiles) is a number of its own. The measuring process is watched: one that dies, or
says nothing for two minutes, is replaced, and what it was doing is left out.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from gpu_measures import default_device, device_name, file_name
from gpu_reach import plain_text, tables, with_reach
from gpu_worker import COLUMNS, GROUPS, UNUSABLE, State, Worker

RESULTS = Path(__file__).parent / "results"
SILENT_SECONDS = 120


def machine(device: str, commit: str) -> dict[str, str]:
    """What the numbers depend on, for every row."""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "none"
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "triton": version,
        "cuda": str(torch.version.cuda),
        "kernels": os.environ.get("CROSSKD_KERNELS") or "chosen by device",
        "crosskd": commit or _commit(),
    }


def _commit() -> str:
    """The commit that is checked out, with a plus sign where files differ from it; empty without git."""
    here = Path(__file__).parent
    try:
        name = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name + ("+" if changed.stdout.strip() else "")


def watch(arguments: list[str], state: State, groups: list[str], deadline: float) -> None:
    """Start workers until all groups are done; a step that broke one is left out by the next."""
    for _ in range(12):
        if time.monotonic() > deadline:
            return
        process = subprocess.Popen([sys.executable, __file__, *arguments, "--worker", str(state.path)])
        reason = _end_of(process, state.path, deadline)
        now = State.read(state.path)
        if process.returncode == 0 or all(group in now.done for group in groups):
            return
        if process.returncode != UNUSABLE and now.current:
            now.failed[now.current] = reason
            now.write()
        print(f"worker ended while at {now.current or 'its start'}: {reason}", flush=True)
        if not now.current:
            return


def _end_of(process: subprocess.Popen[bytes], progress: Path, deadline: float) -> str:
    """Wait for a worker; end it where it says nothing for long, or time is up."""
    while True:
        try:
            process.wait(timeout=1)
            return f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            pass
        said = progress.stat().st_mtime if progress.exists() else time.time()
        silent = time.time() - said > SILENT_SECONDS
        if silent or time.monotonic() > deadline:
            process.kill()
            process.wait()
            return f"nothing for {SILENT_SECONDS} s" if silent else "time is up"


def work(options: argparse.Namespace, output: Path, common: dict[str, str]) -> None:
    """In the child process: measure what is not done yet."""
    state = State.read(Path(options.worker))
    worker = Worker(
        options.device,
        quick=options.quick,
        wanted=options.methods,
        compare=not options.kernels and not options.no_comparison,
        output=output,
        common=common,
        state=state,
    )
    for key, reason in state.failed.items():
        group, _, name = key.partition("/")
        worker.row(name, group, "", "error", note=reason)
    worker.run(options.only)


def finish(output: Path, common: dict[str, str]) -> None:
    """Put the goals before the rows, drop what was measured twice, and print the tables."""
    with output.open(newline="") as file:
        rows = with_reach(csv.DictReader(file), list(common))
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *common], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for title, lines in reversed(tables(rows)[1:]):
        print(f"\n{title}\n{plain_text(lines)}")
    print("\n" + ", ".join(f"{name} {value}" for name, value in common.items()))
    for title, lines in tables(rows)[:1]:
        print(f"\n{title}\n{plain_text(lines)}")
    print(f"\n{output}", flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP", help=str(GROUPS))
    parser.add_argument("--methods", nargs="+", default=[], help="parts of the names of steps")
    parser.add_argument("--kernels", choices=("torch", "triton"), default="", help="CROSSKD_KERNELS for the whole run")
    parser.add_argument("--no-comparison", action="store_true", help="leave out the torch code beside the kernels")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default_device())
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few repetitions")
    parser.add_argument("--output", type=Path, help="CSV file")
    parser.add_argument("--minutes", type=float, default=8, help="after that the run ends with what it has")
    parser.add_argument("--commit", default="", help="named in the rows where git is not there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    started = time.monotonic()
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    if options.device == "cuda":
        os.environ.pop("TRITON_INTERPRET", None)
    if options.kernels:
        os.environ["CROSSKD_KERNELS"] = options.kernels
    part = options.quick or bool(options.methods) or options.only != list(GROUPS) or bool(options.kernels)
    output = options.output or RESULTS / file_name("losses", options.device, "_part" if part else "")
    common = machine(options.device, options.commit)
    if options.worker:
        work(options, output, common)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="") as file:
        csv.DictWriter(file, [*COLUMNS, *common], lineterminator="\n").writeheader()
    with tempfile.TemporaryDirectory() as folder:
        watch(given, State(Path(folder) / "state.json"), options.only, started + 60 * options.minutes)
    finish(output, common)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
