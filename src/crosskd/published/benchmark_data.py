"""The data of ``benchmark.py``: found, renamed, and turned into examples."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crosskd.data.columns import TARGETS, find_columns
from crosskd.data.sources import open_source, split_name
from crosskd.errors import UsageError
from crosskd.files import read_json
from crosskd.published.benchmark_flags import BenchmarkFlags
from crosskd.text.tasks import Task

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
NOT_ANSWERED = [""]
"""References of a question that has no answer: an empty prediction is the right one."""


def read_examples(flags: BenchmarkFlags, task: Task) -> tuple[list[dict[str, Any]], bool]:
    """Examples of the split, and whether they have a title that is to be shown.

    Args:
        flags: Where the data are and how their columns are called.
        task: Says which fields are needed.

    Raises:
        UsageError: The data, the split or a column is missing; the mapping names one that is; a cell is of a wrong
            kind.
    """
    rows = _rows(flags)
    where = f"{flags.dataset_id} ({flags.split_name})"
    if not rows:
        raise UsageError(f"{where} has no rows")
    header = list(dict.fromkeys(name for row in rows for name in row))
    try:
        columns = find_columns(header, task, _mapping(flags, header, where), where)
    except UsageError as error:
        raise UsageError(
            str(error).replace("name yours with --map <column>=", "map yours, by --mapping, to ")
        ) from error
    titled = flags.title and "title" in columns.fields
    examples = []
    for number, row in enumerate(rows):
        cells = {name: _inside(row.get(name), flags.mapping_dict, f"{where}, row {number}") for name in columns.answers}
        example = columns.example({**row, **cells}, f"{where}, row {number}")
        example["title"] = example["title"] if titled else ""
        example["answers"] = example["answers"] or NOT_ANSWERED
        examples.append(example)
    unanswered = sum(example["answers"] == NOT_ANSWERED for example in examples)
    if unanswered:
        logger.info("%d of %d examples have no answer: an empty one is right for them", unanswered, len(examples))
    return examples, titled


def _rows(flags: BenchmarkFlags) -> list[Row]:
    folder = Path(flags.dataset_id).expanduser()
    if flags.from_disk and not folder.is_dir():
        raise UsageError(f"--dataset_id {flags.dataset_id}", got="no such folder", expected="one, with --from_disk")
    splits = open_source(folder if folder.exists() else flags.dataset_id)
    if (folder / "state.json").is_file() or not flags.split_name:  # saved without splits
        if len(splits) != 1:
            raise UsageError("--split_name", got="none", expected="one of " + ", ".join(splits))
        return list(next(iter(splits.values()))())
    name = next((name for name in (flags.split_name, split_name(flags.split_name)) if name in splits), None)
    if name is None:
        raise UsageError(
            f"--split_name {flags.split_name}", got=flags.dataset_id, expected="one of " + ", ".join(splits)
        )
    return list(splits[name]())


def _mapping(flags: BenchmarkFlags, header: list[str], where: str) -> dict[str, str]:
    if not flags.mapping:
        return {}
    mapping = read_json(flags.mapping)
    for old, new in mapping.items():
        if old not in header:
            raise UsageError(
                f"--mapping {flags.mapping}: {where} has no column {old!r}", expected="one of " + ", ".join(header)
            )
        if new not in TARGETS:
            logger.info("--mapping %s: %r has no part in prompts or scores, and is ignored", flags.mapping, new)
    return {old: new for old, new in mapping.items() if new in TARGETS}


def _inside(cell: Any, key: str, where: str) -> Any:
    """The text, or texts, under ``key`` where answers are mappings; other cells as they are."""
    if isinstance(cell, Mapping) and key in cell:
        return cell[key]
    items = cell if isinstance(cell, list) else [cell]
    mappings = [item for item in items if isinstance(item, Mapping)]
    if mappings and all(key in item for item in mappings):
        return [item[key] for item in mappings]
    if mappings and key != "text":
        found = ", ".join(map(str, mappings[0]))
        raise UsageError(f"--mapping_dict {key}: answers of {where} have no such key", expected=f"one of {found}")
    return cell
