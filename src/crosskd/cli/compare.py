"""``crosskd compare``: by how much do models differ on the same examples?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from crosskd.cli.console import output, say_json, start_logging
from crosskd.cli.parsing import VerbParser
from crosskd.errors import UsageError
from crosskd.evaluation.compare import open_evaluation, pair_evaluations
from crosskd.evaluation.results import Evaluation
from crosskd.files import write_text
from crosskd.report.comparison import WRITERS, Comparison, comparison_record, comparison_table, examples_table
from crosskd.report.tables import check_file

DESCRIPTION = """Compare models on the examples that all of them answered: the first is the baseline, and each other
gets its difference with the interval of a paired bootstrap. Reads what `crosskd evaluate` wrote, no models."""


@dataclass
class CompareArguments:
    """Flags of ``crosskd compare``."""

    runs: list[str] = field(
        metadata={"help": "folders that evaluate wrote, or predictions.jsonl files: the baseline, then the others"}
    )
    metrics: list[str] | None = field(
        default=None,
        metadata={"help": "scores to compare, such as f1 rougeLsum bert_score_f1; default: those that tables show"},
    )
    rouge_aggregate: Literal["best", "mean"] | None = field(
        default=None, metadata={"help": "over the references of an example, for ROUGE; default: as they were evaluated"}
    )
    rouge_variant: Literal["standard", "plain"] | None = field(
        default=None, metadata={"help": "ROUGE with stemmer and sentences, or without; default: as they were evaluated"}
    )
    resamples: int = field(default=10_000, metadata={"help": "resamples of the bootstrap"})
    confidence: float = field(default=0.95, metadata={"help": "of the intervals"})
    seed: int = field(default=0, metadata={"help": "seed of the resampling"})
    examples: int = field(default=0, metadata={"help": "show so many examples where the models differ most"})
    json: bool = field(default=False, metadata={"help": "print JSON, for a script"})
    output: str | None = field(
        default=None, metadata={"help": "write the table, too: a file that ends in .md, .csv, .tex or .json"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace an existing file"})


def parsers() -> list[VerbParser]:
    """What reads the command line."""
    return [VerbParser("compare", DESCRIPTION, [CompareArguments], positional=("runs",))]


def run(words: Sequence[str]) -> None:
    """Compare, show, and write if asked."""
    (arguments,) = parsers()[0].parse(words)
    start_logging()
    path = Path(arguments.output) if arguments.output else None
    ending = check_file(path, WRITERS, overwrite=arguments.overwrite) if path else ""
    comparison = compare(arguments)
    if path:
        write_text(path, WRITERS[ending](comparison))
    headline = next(iter(comparison.differences[0]))
    if arguments.json:
        say_json(comparison_record(comparison, headline, arguments.examples))
        return
    output.print(comparison_table(comparison))
    if arguments.examples:
        output.print(examples_table(comparison, headline, arguments.examples))


def compare(arguments: CompareArguments) -> Comparison:
    """Read what the models answered, and compare it."""
    if len(arguments.runs) < 2:
        raise UsageError("--runs", got=f"only {arguments.runs[0]}", expected="a baseline and at least one other")
    evaluations = [open_evaluation(place) for place in arguments.runs]
    paired = pair_evaluations(
        evaluations,
        metrics=arguments.metrics,
        rouge_aggregate=arguments.rouge_aggregate,
        rouge_variant=arguments.rouge_variant,
        labels=arguments.runs,
    )
    differences = paired.differences(
        resamples=arguments.resamples, confidence=arguments.confidence, seed=arguments.seed
    )
    return Comparison(_names(evaluations, arguments.runs), paired, differences)


def _names(evaluations: Sequence[Evaluation], places: Sequence[str]) -> list[str]:
    """What the evaluations are called; where two have one name, their places as well."""
    counts = Counter(each.name for each in evaluations)
    return [
        f"{each.name} ({place})" if counts[each.name] > 1 else each.name
        for each, place in zip(evaluations, places, strict=True)
    ]
