"""Cleaning: rows become examples, and what is dropped is counted by reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from crosskd.data.columns import find_columns
from crosskd.data.readers import Row
from crosskd.text.tasks import Task

OVER_LIMIT = "over limit"
REASONS = ("empty answer", "empty context", "empty question", "too long", "duplicate", OVER_LIMIT)

# Columns are looked for in so many rows: a row of JSON Lines may lack some.
_HEADER_ROWS = 100


@dataclass(frozen=True)
class Rules:
    """What makes an example of a row.

    Attributes:
        task: Says which fields are needed.
        mapping: Column to field, for columns that are not found by their names.
        max_characters: Longest context, in characters; None for any.
        unlabelled: Keep rows without an answer.
    """

    task: Task
    mapping: Mapping[str, str] | None = None
    max_characters: int | None = None
    unlabelled: bool = False

    def why_dropped(self, example: Row) -> str | None:
        """The reason, out of `REASONS`, why an example cannot be used by itself; None if it can."""
        if not example["answers"] and not self.unlabelled:
            return "empty answer"
        for field in ("context", "question"):
            if field in self.task.fields and not example[field]:
                return f"empty {field}"
        if self.max_characters is not None and len(example["context"]) > self.max_characters:
            return "too long"
        return None


def read_split(
    rows: Iterable[Row], rules: Rules, where: str, limit: int | None = None, *, answers_needed: bool = True
) -> tuple[list[Row], dict[str, Any]]:
    """Turn the rows of one split into examples.

    A row that repeats the context and question of an earlier one is dropped as a duplicate; its answers become further
    references of the example that is there, as in data that write one reference a row.

    Args:
        rows: The rows; no more are read than the limit needs.
        rules: What makes an example of a row.
        where: What messages call the split.
        limit: Keep at most so many.
        answers_needed: It is an error if no column holds answers; else all rows are then dropped.

    Returns:
        The examples, and counts: ``rows`` read, ``examples`` kept, ``dropped`` by reason (``rows`` is the sum of both),
        ``joined_answers`` (references that came from duplicates), and the ``columns`` used.

    Raises:
        UsageError: A column is missing, or a cell is of a wrong kind.
    """
    rows = iter(rows)
    first = list(itertools.islice(rows, min(_HEADER_ROWS, limit or _HEADER_ROWS)))
    counts: dict[str, Any] = {"rows": 0, "examples": 0, "dropped": dict.fromkeys(REASONS, 0), "joined_answers": 0}
    if not first:
        return [], {**counts, "columns": {}}
    header = list(dict.fromkeys(name for row in first for name in row))
    columns = find_columns(header, rules.task, rules.mapping, where, answers_needed=answers_needed)
    kept: dict[tuple[str, str], Row] = {}
    present: set[str] = set()
    for row in itertools.chain(first, rows):
        example = columns.example(row, f"{where}, row {counts['rows'] + 1}")
        key = (example["context"], example["question"])
        reason = rules.why_dropped(example) or ("duplicate" if key in kept else None)
        if reason is None and len(kept) == limit:
            break
        counts["rows"] += 1
        present.update(row)
        if reason is None:
            kept[key] = example
            continue
        counts["dropped"][reason] += 1
        if reason == "duplicate":
            counts["joined_answers"] += _join_answers(kept[key], example)
    examples = list(kept.values())
    _name_examples(examples)
    taken = {**columns.fields, "answers": [name for name in columns.answers if name in present]}
    return examples, {**counts, "examples": len(examples), "columns": taken}


def _join_answers(example: Row, repeated: Row) -> int:
    new = [answer for answer in repeated["answers"] if answer not in example["answers"]]
    example["answers"] += new
    return len(new)


def _name_examples(examples: list[Row]) -> None:
    """Number examples that have no id; those that share one get ``#2``, ``#3``, ... behind it."""
    taken: set[str] = set()
    for index, example in enumerate(examples):
        name = given = example["id"] or str(index)
        for number in itertools.count(2):
            if name not in taken:
                break
            name = f"{given}#{number}"
        taken.add(name)
        example["id"] = name
