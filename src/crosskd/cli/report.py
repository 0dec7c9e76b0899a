"""``crosskd report``: scores, curves and predictions on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crosskd.cli.console import say, start_logging
from crosskd.cli.parsing import VerbParser
from crosskd.errors import UsageError
from crosskd.files import check_writable
from crosskd.report.build import TABLES, build_report, build_tables

DESCRIPTION = """Put every scores.json, predictions.jsonl and metrics.jsonl found under some folders into one HTML file
that needs nothing else: results, differences to a baseline, loss curves, predictions side by side."""


@dataclass
class ReportArguments:
    """Flags of ``crosskd report``."""

    runs: list[str] = field(metadata={"help": "folders to look into; the words without a flag"})
    output: str = field(
        default="report.html",
        metadata={"help": "HTML file to write; .md, .tex or .csv writes the table of results alone"},
    )
    baseline: str | None = field(
        default=None, metadata={"help": "name of the model to compare the others with; default: one named untouched"}
    )
    title: str = field(default="Distillation report", metadata={"help": "title of the page"})
    overwrite: bool = field(default=False, metadata={"help": "replace an existing file"})


def parsers() -> list[VerbParser]:
    """What reads the command line."""
    return [VerbParser("report", DESCRIPTION, [ReportArguments], positional=("runs",))]


def run(words: Sequence[str]) -> None:
    """Write the page and say where it is."""
    (arguments,) = parsers()[0].parse(words)
    start_logging()
    path = Path(arguments.output)
    if path.exists() and not arguments.overwrite:
        raise UsageError(f"--output {path}", got="a file that exists", fix="give --overwrite or another name")
    check_writable(path, "--output")
    if path.suffix in TABLES:
        build_tables(arguments.runs, path)
    else:
        build_report(arguments.runs, path, title=arguments.title, baseline=arguments.baseline)
    say(f"report: {path.resolve()}")
