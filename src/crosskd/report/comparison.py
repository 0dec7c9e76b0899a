"""Models compared on the same examples: for the terminal, for papers, and as a record for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from crosskd.evaluation.bootstrap import Difference
from crosskd.evaluation.compare import Paired
from crosskd.evaluation.score_names import HEADINGS
from crosskd.report.tables import csv_rows, latex_rows, markdown_rows, markdown_text, percent, points


@dataclass(frozen=True)
class Comparison:
    """What `crosskd compare` found.

    Attributes:
        names: What the models are called, the baseline first.
        paired: Their scores, example by example.
        differences: For each model but the baseline, by metric.
    """

    names: list[str]
    paired: Paired
    differences: list[dict[str, Difference]]

    @property
    def sample(self) -> Difference:
        """Any of the differences: all have the same number of examples, resamples, confidence and seed."""
        return next(iter(self.differences[0].values()))


def comparison_table(comparison: Comparison) -> Table:
    """The table that the terminal shows: under each metric the baseline, then the others with their differences."""
    table = Table(caption=Text(_caption(comparison)), caption_justify="left")
    table.add_column("model", overflow="fold")
    for heading in _headings(comparison)[2:]:
        table.add_column(heading, justify="right", no_wrap=True)
    last = ""
    for metric, *row in _rows(comparison):
        if metric != last:
            table.add_section()
            table.add_row(Text(metric, style="bold"))
        # Text, not str: a model's name in square brackets is no markup.
        table.add_row(*map(Text, row))
        last = metric
    return table


def examples_table(comparison: Comparison, metric: str, count: int) -> Table:
    """The ``count`` examples where the models' scores differ most: references, and each answer with its score."""
    table = Table(title=f"Largest differences in {HEADINGS[metric]}", show_header=False, title_justify="left")
    table.add_column("model", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("text", ratio=1)
    for example in _examples(comparison, metric, count):
        table.add_row(Text(example["id"]), "", Text(example["question"], style="bold"))
        table.add_row("references", "", Text(" | ".join(example["references"])))
        for answer in example["answers"]:
            text = Text(answer["prediction"]) if answer["prediction"] else Text("(no answer)", style="dim")
            table.add_row(Text(answer["model"]), f"{100 * answer['score']:.0f}", text)
        table.add_section()
    return table


def comparison_record(comparison: Comparison, metric: str | None = None, count: int = 0) -> dict[str, Any]:
    """All numbers, unrounded and in [-1, 1], as JSON can hold them; with ``count`` examples if asked."""
    sample = comparison.sample
    record: dict[str, Any] = {
        "base": comparison.names[0],
        "examples": sample.examples,
        "confidence": sample.confidence,
        "resamples": sample.resamples,
        "seed": sample.seed,
        "notes": comparison.paired.notes,
        "models": [
            {"name": name, "metrics": {metric: _numbers(each) for metric, each in found.items()}}
            for name, found in zip(comparison.names[1:], comparison.differences, strict=True)
        ],
    }
    if metric is not None and count:
        record["most_different"] = {"metric": metric, "examples": _examples(comparison, metric, count)}
    return record


def comparison_csv(comparison: Comparison) -> str:
    """One row a model and metric, unrounded."""
    head = ["metric", "base", "model", "base_score", "score", "difference", "low", "high", "excludes_zero"]
    rows = [
        [metric, comparison.names[0], name, *_numbers(each).values()]
        for name, found in zip(comparison.names[1:], comparison.differences, strict=True)
        for metric, each in found.items()
    ]
    sample = comparison.sample
    settings = {"examples": sample.examples, "confidence": sample.confidence, "resamples": sample.resamples}
    return csv_rows([*head, *settings, "seed"], [[*row, *settings.values(), sample.seed] for row in rows])


def comparison_markdown(comparison: Comparison) -> str:
    """The terminal's table in Markdown, with what the interval is below it."""
    caption = markdown_text(_caption(comparison))
    return markdown_rows(_headings(comparison), _rows(comparison), texts=2) + f"\n{caption}\n"


def comparison_latex(comparison: Comparison) -> str:
    """The terminal's table as a LaTeX ``tabular`` (``booktabs``)."""
    return latex_rows(_headings(comparison), _rows(comparison), texts=2)


def comparison_json(comparison: Comparison) -> str:
    """`comparison_record` as text."""
    return json.dumps(comparison_record(comparison), indent=2, ensure_ascii=False) + "\n"


#: What a file becomes, by its ending.
WRITERS: Mapping[str, Callable[[Comparison], str]] = {
    ".md": comparison_markdown,
    ".csv": comparison_csv,
    ".tex": comparison_latex,
    ".json": comparison_json,
}


def _headings(comparison: Comparison) -> list[str]:
    share = f"{100 * comparison.sample.confidence:g} % interval"
    return ["metric", "model", "score", "difference", share, "excludes 0"]


def _rows(comparison: Comparison) -> list[list[str]]:
    rows: list[list[str]] = []
    for metric in comparison.differences[0]:
        rows.append(
            [HEADINGS[metric], comparison.names[0], percent(comparison.differences[0][metric].first), "", "", ""]
        )
        for name, found in zip(comparison.names[1:], comparison.differences, strict=True):
            each = found[metric]
            interval = f"{points(each.low)} to {points(each.high)}"
            verdict = "yes" if each.excludes_zero else "no"
            rows.append([HEADINGS[metric], name, percent(each.second), points(each.difference), interval, verdict])
    return rows


def _numbers(difference: Difference) -> dict[str, Any]:
    return {
        "base_score": difference.first,
        "score": difference.second,
        "difference": difference.difference,
        "low": difference.low,
        "high": difference.high,
        "excludes_zero": difference.excludes_zero,
    }


def _examples(comparison: Comparison, metric: str, count: int) -> list[dict[str, Any]]:
    paired = comparison.paired
    return [
        {
            "id": paired.evaluations[0].predictions[index].id,
            "question": paired.evaluations[0].predictions[index].question,
            "references": paired.evaluations[0].predictions[index].answers,
            "answers": [
                {"model": name, "prediction": each.predictions[index].prediction, "score": scores[metric][index]}
                for name, each, scores in zip(comparison.names, paired.evaluations, paired.scores, strict=True)
            ],
        }
        for index in paired.most_different(metric, count)
    ]


def _caption(comparison: Comparison) -> str:
    sample = comparison.sample
    told = (
        f"Scores times 100 on {sample.examples:,} examples; differences to {comparison.names[0]} in points, paired "
        f"bootstrap with {sample.resamples:,} resamples, seed {sample.seed}."
    )
    return " ".join([told, *comparison.paired.notes])
