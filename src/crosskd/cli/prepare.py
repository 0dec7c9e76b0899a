"""``crosskd prepare``: a data file becomes examples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from crosskd.cli.console import output, start_logging
from crosskd.cli.parsing import VerbParser
from crosskd.data.prepare import prepare_examples, save_prepared
from crosskd.errors import UsageError
from crosskd.files import prepare_output_folder
from crosskd.text.tasks import load_task

logger = logging.getLogger(__name__)

DESCRIPTION = """Turn a data file into examples that the other verbs read: an arrow data set with the columns id, title,
context, question and answers, split into train and validation. Says what it dropped and why."""


@dataclass
class PrepareArguments:
    """Flags of ``crosskd prepare``."""

    data: str = field(
        metadata={
            "help": "JSON, JSON Lines, CSV, TSV, Parquet or Arrow file, a folder of them, a hub id, or sample:qed"
        }
    )
    output: str = field(metadata={"help": "folder to write"})
    task: str = field(default="qa", metadata={"help": "name of a task, or a YAML file with one of your own"})
    map: list[str] | None = field(
        default=None, metadata={"help": "columns under other names, as old=new: --map body=context headline=title"}
    )
    split: str | None = field(default=None, metadata={"help": "take this split only"})
    limit: int | None = field(default=None, metadata={"help": "keep at most so many examples of each split"})
    validation_fraction: float | None = field(
        default=None, metadata={"help": "share of the training split to hold out, where there is no validation split"}
    )
    seed: int = field(default=42, metadata={"help": "seed of the hold-out"})
    max_characters: int | None = field(default=None, metadata={"help": "longest context, in characters"})
    answers: str | None = field(
        default=None,
        metadata={"help": "file with a teacher's answers that another tool made: by id, or a row of --data each"},
    )
    unlabelled: bool = field(default=False, metadata={"help": "keep rows without an answer, for a teacher to answer"})
    overwrite: bool = field(default=False, metadata={"help": "replace what the output folder holds"})


def run(words: Sequence[str]) -> None:
    """Prepare the examples, write them, and show what was kept and dropped."""
    (arguments,) = VerbParser("prepare", DESCRIPTION, [PrepareArguments]).parse(words)
    start_logging()
    prepared = prepare_examples(
        arguments.data,
        load_task(arguments.task),
        mapping=parse_mapping(arguments.map or []),
        split=arguments.split,
        limit=arguments.limit,
        validation_fraction=arguments.validation_fraction,
        seed=arguments.seed,
        max_characters=arguments.max_characters,
        answers=arguments.answers,
        unlabelled=arguments.unlabelled,
    )
    folder = prepare_output_folder(arguments.output, overwrite=arguments.overwrite)
    save_prepared(prepared, folder)
    _show(prepared.summary, folder)


def parse_mapping(pairs: Sequence[str]) -> dict[str, str]:
    """Read ``old=new`` pairs."""
    mapping: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise UsageError("--map", got=pair, expected="old=new")
        mapping[old] = new
    return mapping


def _show(summary: dict, folder: Path) -> None:
    table = Table("split", "examples", "dropped", title=f"examples in {folder}", title_justify="left")
    for split, counts in summary["splits"].items():
        dropped = ", ".join(f"{count} {reason}" for reason, count in counts["dropped"].items() if count) or "none"
        if counts.get("without_teacher_answer"):
            logger.warning("%s: %d examples have no answer of the teacher", split, counts["without_teacher_answer"])
        table.add_row(split, str(counts["examples"]), dropped)
    output.print(table)
