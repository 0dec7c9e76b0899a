"""Examples from any data: found, renamed, cleaned, split, counted and written."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from crosskd import __version__
from crosskd.data.answers_merge import give_answers, read_answers, with_answers
from crosskd.data.cleaning import OVER_LIMIT, Rules, read_split
from crosskd.data.hold_out import hold_out, holds_out
from crosskd.data.oddities import long_contexts, multi_line_answers
from crosskd.data.prepared_folder import check_split
from crosskd.data.readers import Row
from crosskd.data.sources import Splits, open_source, split_name
from crosskd.data.storage import SUMMARY_FILE, TEXTS, Prepared, examples_dataset, save_prepared, saved_examples
from crosskd.errors import UsageError
from crosskd.text.tasks import Task, load_task

__all__ = ["SUMMARY_FILE", "Prepared", "load_examples", "load_splits", "prepare_examples", "save_prepared"]

logger = logging.getLogger(__name__)


def prepare_examples(
    source: str | Path,
    task: Task,
    *,
    mapping: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    max_characters: int | None = None,
    validation_fraction: float | None = None,
    seed: int = 42,
    answers: str | Path | None = None,
    unlabelled: bool = False,
) -> Prepared:
    """Turn a user's data into examples.

    Rows without an answer, context or question (where the task has them), rows that repeat the context and question of
    an earlier row of their split, and rows with a longer context than ``max_characters`` are dropped and counted. The
    answers of a repeated row become further references of the example that is there. Text is left as it is, but for
    white space at both ends. Warns of what misleads later (see `crosskd.data.oddities`).

    Args:
        source: File, folder, ``sample:<name>`` or hub id (see `crosskd.data.sources.open_source`).
        task: The task that the examples are for; it says which fields are needed.
        mapping: Column to field, for columns that are not found by their names: ``{"body": "context"}``.
        split: Take this split only; it also names the rows of a lone file that is not named after a split.
        limit: Keep at most so many examples of each split, the first ones; reading stops there.
        max_characters: Longest context, in characters.
        validation_fraction: Share of the training split to hold out at random, in (0, 1), where there is no
            ``validation`` split; all rows of a passage stay together.
        seed: Seed of the hold-out.
        answers: File with answers that another tool made (see `crosskd.data.answers_merge.read_answers`): by ``id``, or
            one for each row of the training split (or of the only one), in order. They become ``teacher_answer``.
        unlabelled: Keep rows without an answer, with an empty list of ``answers``.

    Returns:
        Examples and summary. A split without rows, or that loses all its rows (such as a test split without labels), is
        left out of the examples, and stands in the summary.

    Raises:
        UsageError: The source or one of its columns or splits is missing or cannot be read, a cell is of a wrong kind,
            an option is out of range, or no example remains.
    """
    _check_options(limit, max_characters, validation_fraction)
    split = split_name(split) if split else None
    splits = _chosen(open_source(source, split), split, str(source))
    held_out = validation_fraction is not None and holds_out(splits, str(source))
    given = None if answers is None else read_answers(answers)
    kept, counts = _read(
        with_answers(splits, given),
        Rules(task, mapping, max_characters, unlabelled),
        str(source),
        {name: None if held_out and name == "train" else limit for name in splits},
    )
    give_answers(kept, given)
    if held_out:
        assert validation_fraction is not None
        hold_out(kept, counts, validation_fraction, seed)
    _cut(kept, counts, limit)
    _warn(kept)
    examples = DatasetDict({name: examples_dataset(rows, f"{source} ({name})") for name, rows in kept.items() if rows})
    _count(examples, counts)
    settings = {"mapping": dict(mapping or {}), "split": split, "limit": limit, "max_characters": max_characters}
    settings |= {"validation_fraction": validation_fraction, "seed": seed, "unlabelled": unlabelled}
    settings |= {"answers": None if answers is None else str(answers)}
    summary = {"source": str(source), "task": task.name, **settings, "splits": counts, "crosskd_version": __version__}
    return Prepared(examples, summary)


def load_examples(path_or_sample: str | Path, split: str) -> Dataset:
    """One split of prepared examples.

    Args:
        path_or_sample: A folder that `save_prepared` wrote, or a sample of the package, such as ``sample:qed``.
        split: ``train``, ``validation``, ...

    Returns:
        Its examples.

    Raises:
        UsageError: There is no such folder or split, or the folder does not hold prepared examples.
    """
    name = str(path_or_sample)
    examples = load_splits(name)
    check_split(name, map(str, examples), split)
    dataset = examples[split]
    missing = [column for column in (*TEXTS, "answers") if column not in dataset.column_names]
    if missing:
        raise UsageError(
            f"{name} has no column {missing[0]!r}",
            expected=f"prepared examples; the columns there are: {', '.join(dataset.column_names)}",
            fix="run `crosskd prepare` on it first",
        )
    return dataset


def load_splits(path_or_sample: str | Path) -> DatasetDict:
    """All splits of prepared examples; see `load_examples`."""
    name = str(path_or_sample)
    if name.startswith("sample:"):
        task = "fairytaleqa" if name == "sample:fairytaleqa" else "qed"
        return prepare_examples(name, load_task(task)).examples
    return saved_examples(Path(name))


def _check_options(limit: int | None, max_characters: int | None, validation_fraction: float | None) -> None:
    for flag, value in (("--limit", limit), ("--max_characters", max_characters)):
        if value is not None and value < 1:
            raise UsageError(flag, got=value, expected="an integer of at least 1")
    if validation_fraction is not None and not 0 < validation_fraction < 1:
        raise UsageError("--validation_fraction", got=validation_fraction, expected="a number between 0 and 1")


def _read(
    splits: Splits, rules: Rules, source: str, limits: Mapping[str, int | None]
) -> tuple[dict[str, list[Row]], dict[str, dict[str, Any]]]:
    """Examples and counts of every split."""
    kept: dict[str, list[Row]] = {}
    counts: dict[str, dict[str, Any]] = {}
    for name, rows in splits.items():
        # A test split may lack the column of answers that the splits before it have.
        needed = not any(kept.values()) and not rules.unlabelled
        where = f"{source} ({name})"
        kept[name], counts[name] = read_split(rows(), rules, where, limits[name], answers_needed=needed)
    if not any(kept.values()):
        raise _nothing_left(source, counts)
    return kept, counts


def _warn(kept: Mapping[str, list[Row]]) -> None:
    for name, rows in kept.items():
        for finding in (multi_line_answers(rows), long_contexts(rows)):
            if finding:
                logger.warning("%s: %s", name, finding)


def _count(examples: DatasetDict, counts: dict[str, dict[str, Any]]) -> None:
    for name, dataset in examples.items():
        counts[str(name)]["examples"] = len(dataset)
        if "teacher_answer" in dataset.column_names:
            counts[str(name)]["without_teacher_answer"] = sum(not answer for answer in dataset["teacher_answer"])


def _chosen(splits: Splits, split: str | None, source: str) -> Splits:
    if split is None:
        return splits
    if split not in splits:
        raise UsageError(f"{source} has no split {split!r}", expected="one of " + ", ".join(splits))
    return {split: splits[split]}


def _nothing_left(source: str, counts: Mapping[str, Mapping[str, Any]]) -> UsageError:
    dropped = Counter()
    for split in counts.values():
        dropped.update(split["dropped"])
    if not dropped.total():
        return UsageError(f"{source} ({', '.join(counts)}) holds no rows")
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    return UsageError(f"{source}: no example is left of {dropped.total()} rows", got=f"dropped: {reasons}")


def _cut(kept: dict[str, list[Row]], counts: dict[str, dict[str, Any]], limit: int | None) -> None:
    """Hold the limit also in splits that were read to their end."""
    for name, rows in kept.items():
        if limit is not None and len(rows) > limit:
            counts[name]["dropped"][OVER_LIMIT] += len(rows) - limit
            del rows[limit:]
