"""``crosskd prepare``: a data file becomes examples."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from crosskd.cli.checks import check_apart
from crosskd.cli.console import output, say, start_logging
from crosskd.cli.parsing import VerbParser
from crosskd.data.prepare import prepare_examples, save_prepared
from crosskd.errors import UsageError
from crosskd.files import check_output_folder
from crosskd.text.tasks import load_task

logger = logging.getLogger(__name__)

DESCRIPTION = """Turn a data file into examples that the other verbs read: an arrow data set with the columns id, title,
context, question and answers, split into train and validation. Says what it dropped and why."""


@dataclass
class PrepareArguments:
    """Flags of ``crosskd prepare``."""

    data: str = field(
        metadata={
            "help": "JSON, JSON Lines, CSV, TSV, Parquet or Arrow file, a folder of them, a hub id (owner/name or "
            "owner/name:configuration), or sample:qed"
        }
    )
    output: str = field(metadata={"help": "folder to write"})
    task: str = field(
        default="qa", metadata={"help": "name of a task or of its data set, or a YAML file with one of your own"}
    )
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


def parsers() -> list[VerbParser]:
    """What reads the command line."""
    return [VerbParser("prepare", DESCRIPTION, [PrepareArguments])]


def run(words: Sequence[str]) -> None:
    """Prepare the examples, write them, and show what was kept and dropped."""
    (arguments,) = parsers()[0].parse(_with_one_map(words))
    start_logging("datasets")
    check_output_folder(arguments.output, overwrite=arguments.overwrite)
    _check_not_here(arguments.output)
    check_apart(arguments.data, arguments.output)
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
    folder = save_prepared(prepared, arguments.output, overwrite=arguments.overwrite)
    _show(prepared.summary, folder)


def parse_mapping(pairs: Sequence[str]) -> dict[str, str]:
    """Read ``old=new`` pairs, or JSON objects of them (what a mapping in a YAML file becomes).

    Raises:
        UsageError: A pair is neither, or a column is mapped to two fields.
    """
    mapping: dict[str, str] = {}
    for pair in pairs:
        for old, new in _pairs(pair):
            if mapping.setdefault(old, new) != new:
                raise UsageError(f"--map {old}={new}: {old!r} is mapped to {mapping[old]!r} already")
    return mapping


def _pairs(word: str) -> list[tuple[str, str]]:
    if word.startswith("{"):
        try:
            pairs = [(str(old), str(new)) for old, new in json.loads(word).items()]
        except json.JSONDecodeError as error:
            raise UsageError("--map", got=word, expected="old=new") from error
    else:
        old, _, new = word.rpartition("=")
        pairs = [(old.strip(), new.strip())]
    if not all(old and new for old, new in pairs):
        raise UsageError("--map", got=word, expected="old=new")
    return pairs


def _with_one_map(words: Sequence[str]) -> list[str]:
    """Gather ``--map a=b --map c=d`` into one flag: argparse would keep the last one only."""
    others: list[str] = []
    pairs: list[str] = []
    mapping = False
    for word in words:
        if word.startswith("-"):
            mapping = word.split("=")[0] == "--map"
            if not mapping:
                others.append(word)
            elif "=" in word:
                pairs.append(word.partition("=")[2])
        else:
            (pairs if mapping else others).append(word)
    return [*others, "--map", *pairs] if pairs else list(words)


def _check_not_here(output: str) -> None:
    here, folder = Path.cwd(), Path(output).resolve()
    if folder == here or folder in here.parents:  # the folder is moved into place as a whole
        raise UsageError(f"--output {output}", got="the current folder or one above it", expected="a folder in it")


def _show(summary: Mapping[str, Any], folder: Path) -> None:
    say(f"examples in {folder}")
    table = Table("split", "rows", "examples", "dropped")
    for split, counts in summary["splits"].items():
        if counts.get("without_teacher_answer"):
            logger.warning("%s: %d examples have no answer of the teacher", split, counts["without_teacher_answer"])
        table.add_row(split, str(counts["rows"]), str(counts["examples"]), _dropped(counts))
    output.print(table)
    say(_columns(summary["splits"]))


def _dropped(counts: Mapping[str, Any]) -> str:
    """What was dropped and why, in words."""
    reasons = {reason: f"{count} {reason}" for reason, count in counts["dropped"].items() if count}
    if counts["joined_answers"]:
        reasons["duplicate"] += f" (answers kept as references: {counts['joined_answers']})"
    return ", ".join(reasons.values()) or "none"


def _columns(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Which columns of the data the fields of the examples were taken from."""
    taken: dict[str, dict[str, None]] = {}
    for counts in splits.values():
        for name, columns in counts["columns"].items():
            taken.setdefault(name, {}).update(dict.fromkeys([columns] if isinstance(columns, str) else columns))
    return "columns: " + ", ".join(f"{name} from {' and '.join(columns)}" for name, columns in taken.items() if columns)
