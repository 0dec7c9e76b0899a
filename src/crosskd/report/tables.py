"""Result tables: for the terminal, and as Markdown, LaTeX and CSV for papers and spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from crosskd.errors import UsageError
from crosskd.evaluation.results import Evaluation
from crosskd.evaluation.score_names import HEADINGS, how_computed, made_alike, shown_scores
from crosskd.files import check_writable

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--",
}  # fmt: skip


def percent(value: float | None) -> str:
    """A score in [0, 1] times 100 with two decimals, as papers print it; an en dash where there is none."""
    return "–" if value is None else f"{100 * value:.2f}"


def points(value: float) -> str:
    """A difference in [-1, 1] times 100, with its sign (a real minus) and two decimals."""
    return f"{100 * value:+.2f}".replace("-", "−")


def results_table(evaluations: Sequence[Evaluation], *, title: str | None = None) -> Table:
    """The table that the terminal shows: model, scores times 100, examples, seconds.

    The scores are F1, exact match, ROUGE-Lsum and, where any evaluation has it, BERTScore; the task's most telling one
    comes first. The best score of a column is bold where there is more than one row.
    """
    note = how_computed(evaluations)
    table = Table(title=Text(title) if title else None, caption=Text(note) if note else None, caption_justify="left")
    table.add_column("model", overflow="fold")
    for heading in headings(evaluations)[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    best = best_scores(evaluations)
    for evaluation in evaluations:
        scores = [
            Text(percent(value), style="bold" if value is not None and value == best.get(name) else "")
            for name in shown_scores(evaluations)
            for value in [evaluation.scores.get(name)]
        ]
        # Text, not str: a model's name in square brackets is no markup.
        table.add_row(Text(evaluation.name), *scores, *map(Text, _counts(evaluation)))
    return table


def markdown_table(evaluations: Sequence[Evaluation]) -> str:
    """The same table in Markdown."""
    return markdown_rows(headings(evaluations), _rows(evaluations), texts=1)


def latex_table(evaluations: Sequence[Evaluation]) -> str:
    """The same table as a LaTeX ``tabular`` with the rules of the ``booktabs`` package."""
    return latex_rows(headings(evaluations), _rows(evaluations), texts=1)


def csv_table(evaluations: Sequence[Evaluation]) -> str:
    """Everything in ``scores.json`` that is a number, as CSV: all scores in [0, 1] and unrounded, one row a model.

    Says also how ROUGE and BERTScore were computed.
    """
    names = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.scores))
    encoders = ["model", "layer", "version"] if any(name.startswith("bert_score") for name in names) else []
    rows = []
    for each in evaluations:
        scores = [each.scores.get(name, "") for name in names]
        encoder = each.settings.get("bert_score") or {}
        how = [each.settings.get("rouge_aggregate", "best"), each.settings.get("rouge_variant", "standard")]
        how += [each.settings.get("references", "all")]
        how += [encoder.get(fact, "") for fact in encoders]
        counts = [each.examples, each.truncated_examples, each.seconds]
        rows.append([each.name, each.task, each.number_few_shot, *scores, *counts, *how])
    head = ["name", "task", "number_few_shot", *names, "examples", "truncated_examples", "seconds"]
    return csv_rows(
        [*head, "rouge_aggregate", "rouge_variant", "references", *(f"bert_score_{fact}" for fact in encoders)], rows
    )


def headings(evaluations: Sequence[Evaluation]) -> list[str]:
    """Headings of the table's columns."""
    return ["model", *(HEADINGS[name] for name in shown_scores(evaluations)), "examples", "seconds"]


def best_scores(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """The highest score of each column; none where there is nothing to compare, or what cannot be compared."""
    if len(evaluations) < 2:
        return {}
    found = {
        name: [evaluation.scores[name] for evaluation in evaluations if name in evaluation.scores]
        for name in shown_scores(evaluations)
        if made_alike(name, evaluations)
    }
    return {name: max(values) for name, values in found.items() if values}


def markdown_rows(head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """A Markdown table; the first ``texts`` columns are aligned to the left, the rest to the right."""
    rule = ["---"] * texts + ["---:"] * (len(head) - texts)
    return "".join("| " + " | ".join(markdown_text(cell) for cell in row) + " |\n" for row in (head, rule, *rows))


def latex_rows(head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """A LaTeX ``tabular`` (``booktabs``); columns as for `markdown_rows`."""
    lines = [
        rf"\begin{{tabular}}{{{'l' * texts}{'r' * (len(head) - texts)}}}",
        r"\toprule",
        _latex_row(head),
        r"\midrule",
        *map(_latex_row, rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def csv_rows(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Comma-separated values, quoted where they must be."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return stream.getvalue()


def check_file(path: Path, endings: Iterable[str], *, overwrite: bool) -> str:
    """Make sure that a file can be written, before its content is computed.

    Args:
        path: The file.
        endings: Those that it may have.
        overwrite: Whether it may exist.

    Returns:
        Its ending, such as ``".csv"``.

    Raises:
        UsageError: It is a folder, exists, has another ending, or cannot be written.
    """
    known = list(endings)
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder", expected=f"a file name that ends in {' or '.join(known)}")
    if path.suffix.lower() not in known:
        raise UsageError(f"--output {path}", got=f"the ending {path.suffix!r}", expected=", ".join(known))
    if path.exists() and not overwrite:
        raise UsageError(f"--output {path}", got="a file that exists", fix="give --overwrite or another name")
    check_writable(path, "--output")
    return path.suffix.lower()


def _rows(evaluations: Sequence[Evaluation]) -> list[list[str]]:
    names = shown_scores(evaluations)
    return [[each.name, *(percent(each.scores.get(name)) for name in names), *_counts(each)] for each in evaluations]


def _counts(evaluation: Evaluation) -> list[str]:
    return [str(evaluation.examples), f"{evaluation.seconds:.0f}"]


def markdown_text(cell: str) -> str:
    """Text on one line that is no markup of a table or of HTML."""
    escaped = cell.replace("\\", "\\\\").replace("|", "\\|").replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(escaped.split())


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join("".join(_LATEX.get(sign, sign) for sign in cell) for cell in cells) + r" \\"
