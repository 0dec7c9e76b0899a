"""Cleaning: rows become examples, and what is dropped is counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from crosskd.data.columns import Columns, find_columns
from crosskd.data.readers import Row
from crosskd.errors import UsageError
from crosskd.text.tasks import Task

REASONS = ("empty answer", "empty context", "empty question", "too long", "duplicate")


def read_split(
    rows: Iterable[Row],
    task: Task,
    mapping: Mapping[str, str] | None,
    where: str,
    limit: int | None,
    max_characters: int | None,
    *,
    unlabelled: bool = False,
) -> tuple[list[Row], dict[str, Any]]:
    """Turn the rows of one split into examples.

    Args:
        rows: The rows; no more are read than the limit needs.
        task: Says which fields are needed.
        mapping: Column to field, for columns that are not found by their names.
        where: What messages call the split.
        limit: Keep at most so many.
        max_characters: Longest context, in characters.
        unlabelled: Keep rows without an answer.

    Returns:
        The examples, and counts: ``rows`` read, ``examples`` kept, ``dropped`` by reason, and the ``columns`` used.

    Raises:
        UsageError: There are no rows, a column is missing, or a cell is of a wrong kind.
    """
    kept: list[Row] = []
    dropped: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    seen: set[tuple[str, str]] = set()
    columns: Columns | None = None
    present: set[str] = set()
    read = 0
    for read, row in enumerate(rows, start=1):
        present.update(row)
        columns = columns or find_columns(row, task, mapping, where, unlabelled=unlabelled)
        example = _cleaned(columns.example(row, f"{where}, row {read}"))
        reason = _why_dropped(example, task, seen, max_characters, unlabelled)
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add((example["context"], example["question"]))
        kept.append(example)
        if limit is not None and len(kept) == limit:
            break
    if columns is None:
        raise UsageError(f"{where} holds no rows")
    _name_examples(kept)
    taken = {**columns.fields, "answers": [name for name in columns.answers if name in present]}
    return kept, {"rows": read, "examples": len(kept), "dropped": dict(dropped), "columns": taken}


def _cleaned(example: Row) -> Row:
    return {name: value.strip() if isinstance(value, str) else value for name, value in example.items()}


def _why_dropped(
    example: Row, task: Task, seen: set[tuple[str, str]], max_characters: int | None, unlabelled: bool
) -> str | None:
    if not example["answers"] and not unlabelled:
        return "empty answer"
    for field in ("context", "question"):
        if field in task.fields and not example[field]:
            return f"empty {field}"
    if max_characters is not None and len(example["context"]) > max_characters:
        return "too long"
    return "duplicate" if (example["context"], example["question"]) in seen else None


def _name_examples(examples: list[Row]) -> None:
    """Number examples that have no id; those that share one get ``#2``, ``#3``, ... behind it."""
    taken: Counter[str] = Counter()
    for index, example in enumerate(examples):
        name = example["id"] or str(index)
        taken[name] += 1
        example["id"] = name if taken[name] == 1 else f"{name}#{taken[name]}"
