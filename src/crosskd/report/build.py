"""Scores, loss curves and predictions on one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from crosskd import __version__
from crosskd.errors import UsageError, did_you_mean
from crosskd.evaluation.results import Evaluation
from crosskd.evaluation.score_names import HEADINGS, how_computed, shown_scores
from crosskd.files import write_text
from crosskd.report.collect import Collection, collect
from crosskd.report.curves import SERIES, dash_pattern, loss_curves
from crosskd.report.differences import DifferenceRow, difference_rows
from crosskd.report.predictions import PredictionCard, prediction_cards
from crosskd.report.tables import best_scores, csv_table, latex_table, markdown_table, markdown_text, percent, points

#: Endings of files that hold tables alone.
TABLES = (".md", ".tex", ".csv")

_BASELINE_WORDS = ("untouched", "baseline")


@dataclass(frozen=True)
class Section:
    """The evaluations of one task on the same examples, with what the page shows of them."""

    task: str
    examples: int
    evaluations: list[Evaluation]
    columns: list[tuple[str, str]]
    note: str
    best: dict[str, float]
    baseline: str | None
    differences: list[DifferenceRow]
    unpaired: list[str]
    cards: list[PredictionCard]


def build_report(
    folders: Sequence[str | Path],
    output: str | Path,
    title: str = "Distillation report",
    *,
    baseline: str | None = None,
) -> Path:
    """Write one HTML file about everything found under ``folders``.

    It holds the table of results, each model's difference to the baseline with its bootstrap interval, the loss
    curves, ten predictions side by side, and where the numbers come from. It needs no network, no script and no other
    file; whatever it quotes is escaped.

    Args:
        folders: Folders with ``scores.json``, ``predictions.jsonl``, ``metrics.jsonl`` and ``provenance.json`` at any
            depth.
        output: The file to write; an existing one is replaced in one step.
        title: Heading of the page.
        baseline: Name of the evaluation that the others are compared with; None takes the first whose name says
            "untouched" or "baseline", if any.

    Returns:
        The file.

    Raises:
        UsageError: Nothing to report, a broken file, an ``output`` that is a folder, or an unknown ``baseline``.
    """
    path = Path(output)
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder", expected="a file name such as report.html")
    found = collect(folders)
    names = [evaluation.name for evaluation in found.evaluations]
    if baseline is not None and baseline not in names:
        raise UsageError("--baseline", got=baseline, expected="a model's name", fix=did_you_mean(baseline, names))
    return write_text(path, _render(found, title, baseline))


def build_tables(folders: Sequence[str | Path], output: str | Path) -> Path:
    """Write the tables of results alone, as Markdown, LaTeX or CSV.

    Args:
        folders: As for `build_report`.
        output: A file that ends in ``.md``, ``.tex`` or ``.csv``. CSV is one table, the others have one for each task
            and set of examples.

    Returns:
        The file.

    Raises:
        UsageError: No evaluation is found, a broken file, or another ending.
    """
    path = Path(output)
    if path.suffix not in TABLES:
        raise UsageError(f"--output {path}", got=f"the ending {path.suffix!r}", expected=", ".join(TABLES))
    evaluations = collect(folders).evaluations
    if not evaluations:
        raise UsageError("there is no evaluation below " + ", ".join(map(str, folders)), expected="a scores.json")
    if path.suffix == ".csv":
        return write_text(path, csv_table(evaluations))
    make, start = {".md": (markdown_table, ""), ".tex": (latex_table, "% ")}[path.suffix]
    escaped = markdown_text if path.suffix == ".md" else lambda text: " ".join(text.split())
    parts = []
    for group in _groups(evaluations):
        title = f"Task {group[0].task}, {group[0].examples} examples. {how_computed(group)}".strip()
        parts.append(f"{start}{escaped(title)}\n\n{make(group)}")
    return write_text(path, "\n".join(parts))


def _render(found: Collection, title: str, baseline: str | None) -> str:
    environment = Environment(
        loader=PackageLoader("crosskd.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["points"] = points
    runs = [
        {"name": log.name, "series": index % SERIES + 1, "dashes": dash_pattern(index)}
        for index, log in enumerate(found.logs)
    ]
    return environment.get_template("report.html.jinja").render(
        title=title,
        version=__version__,
        sections=[_section(group, baseline) for group in _groups(found.evaluations)],
        runs=runs,
        # The SVG is made here, from numbers and escaped titles, and the only markup that is not escaped.
        curves=[(curve, Markup(curve.svg)) for curve in loss_curves(found.logs)],
        provenance=[(name, list(_flat(record))) for name, record in found.provenance],
    )


def _section(evaluations: list[Evaluation], baseline: str | None) -> Section:
    reference = _baseline(evaluations, baseline)
    rows, unpaired = difference_rows(reference, evaluations) if reference else ([], [])
    return Section(
        task=evaluations[0].task,
        examples=evaluations[0].examples,
        evaluations=evaluations,
        columns=[(name, HEADINGS[name]) for name in shown_scores(evaluations)],
        note=how_computed(evaluations),
        best=best_scores(evaluations),
        baseline=reference.name if reference else None,
        differences=rows,
        unpaired=unpaired,
        cards=prediction_cards(evaluations),
    )


def _groups(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """Evaluations that may stand in one table: the same task, and as far as is known the same examples."""
    groups: dict[tuple[str, object], list[Evaluation]] = {}
    for each in evaluations:
        ids = frozenset(prediction.id for prediction in each.predictions)
        groups.setdefault((each.task, ids or each.examples), []).append(each)
    return list(groups.values())


def _baseline(evaluations: Sequence[Evaluation], name: str | None) -> Evaluation | None:
    if name is not None:
        return next((each for each in evaluations if each.name == name), None)
    named = [each for each in evaluations if any(word in each.name.lower() for word in _BASELINE_WORDS)]
    return named[0] if named else None


def _flat(record: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, str]]:
    """Keys and values of nested objects, one a line: ``machine, cores``."""
    for key, value in record.items():
        name = f"{start}, {key}" if start else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif value not in (None, "", []):
            yield name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value)
