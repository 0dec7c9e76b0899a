"""Result tables: for the terminal, and as Markdown, LaTeX and CSV for papers and spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from crosskd.evaluation.results import Evaluation

#: Columns of every table: score's name in ``scores.json``, heading.
SCORE_COLUMNS = (("f1", "F1"), ("exact_match", "EM"), ("rougeLsum", "ROUGE-Lsum"))

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def percent(value: float | None) -> str:
    """A score in [0, 1] times 100 with two decimals, as papers print it; an en dash where there is none."""
    return "–" if value is None else f"{100 * value:.2f}"


def results_table(evaluations: Sequence[Evaluation], *, title: str | None = None) -> Table:
    """The table that the terminal shows: model, F1, EM, ROUGE-Lsum (times 100), examples, seconds.

    The best score of a column is bold where there is more than one row.
    """
    table = Table(title=title)
    table.add_column("model")
    for heading in headings()[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    best = best_scores(evaluations)
    for evaluation in evaluations:
        scores = [
            Text(percent(value), style="bold" if value is not None and value == best.get(name) else "")
            for name, _ in SCORE_COLUMNS
            for value in [evaluation.scores.get(name)]
        ]
        # Text, not str: a model's name in square brackets is no markup.
        table.add_row(Text(evaluation.name), *scores, *map(Text, _counts(evaluation)))
    return table


def markdown_table(evaluations: Sequence[Evaluation]) -> str:
    """The same table in Markdown."""
    rows = [headings(), ["---", *["---:"] * (len(headings()) - 1)], *map(_cells, evaluations)]
    return "".join("| " + " | ".join(_markdown(cell) for cell in row) + " |\n" for row in rows)


def latex_table(evaluations: Sequence[Evaluation]) -> str:
    """The same table as a LaTeX ``tabular`` with the rules of the ``booktabs`` package."""
    columns = "l" + "r" * (len(headings()) - 1)
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_row(headings()),
        r"\midrule",
        *(_latex_row(_cells(evaluation)) for evaluation in evaluations),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def csv_table(evaluations: Sequence[Evaluation]) -> str:
    """Everything in ``scores.json`` that is a number, as CSV: all scores in [0, 1] and unrounded, one row a model."""
    names = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.scores))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["name", "task", "number_few_shot", *names, "examples", "truncated_examples", "seconds"])
    for each in evaluations:
        scores = [each.scores.get(name, "") for name in names]
        writer.writerow(
            [each.name, each.task, each.number_few_shot, *scores, each.examples, each.truncated_examples, each.seconds]
        )
    return stream.getvalue()


def headings() -> list[str]:
    """Headings of the table's columns."""
    return ["model", *(heading for _, heading in SCORE_COLUMNS), "examples", "seconds"]


def best_scores(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """The highest score of each column; empty where there is nothing to compare."""
    if len(evaluations) < 2:
        return {}
    found = {
        name: [evaluation.scores[name] for evaluation in evaluations if name in evaluation.scores]
        for name, _ in SCORE_COLUMNS
    }
    return {name: max(values) for name, values in found.items() if values}


def _cells(evaluation: Evaluation) -> list[str]:
    scores = [percent(evaluation.scores.get(name)) for name, _ in SCORE_COLUMNS]
    return [evaluation.name, *scores, *_counts(evaluation)]


def _counts(evaluation: Evaluation) -> list[str]:
    return [str(evaluation.examples), f"{evaluation.seconds:.0f}"]


def _markdown(cell: str) -> str:
    return " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").split())


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join("".join(_LATEX.get(sign, sign) for sign in cell) for cell in cells) + r" \\"
