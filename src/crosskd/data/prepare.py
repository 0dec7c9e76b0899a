"""Examples from any data: found, renamed, cleaned, split, counted and written."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Features, Value

from crosskd import __version__
from crosskd.data.answers_merge import GivenAnswers, read_answers
from crosskd.data.cleaning import REASONS, read_split
from crosskd.data.quiet import without_progress_bars
from crosskd.data.readers import Row
from crosskd.data.sources import Splits, open_source
from crosskd.errors import UsageError, did_you_mean
from crosskd.files import write_json
from crosskd.text.tasks import TASKS, Task

SUMMARY_FILE = "prepare_summary.json"
_TEXTS = ("id", "title", "context", "question")


@dataclass(frozen=True)
class Prepared:
    """Examples, and how they came about.

    Attributes:
        examples: Splits with the columns ``id``, ``title``, ``context``, ``question`` (text), ``answers`` (list of
            text, the training label first) and, where the data have it, ``teacher_answer``.
        summary: Source, settings and, under ``splits``, for each split ``rows`` read, ``examples`` kept, rows
            ``dropped`` by reason, and the ``columns`` that the fields were taken from.
    """

    examples: DatasetDict
    summary: dict[str, Any]


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
    an earlier row of their split, and rows with a longer context than ``max_characters`` are dropped and counted. Text
    is left as it is, but for white space at both ends.

    Args:
        source: File, folder, ``sample:<name>`` or hub id (see `crosskd.data.sources.open_source`).
        task: The task that the examples are for; it says which fields are needed.
        mapping: Column to field, for columns that are not found by their names: ``{"body": "context"}``.
        split: Take this split only; it also names the rows of a lone file that is not named after a split.
        limit: Keep at most so many examples of each split, the first ones; reading stops there.
        max_characters: Longest context, in characters.
        validation_fraction: Share of the training split to hold out at random, in (0, 1), where there is no
            ``validation`` split.
        seed: Seed of the hold-out.
        answers: File with answers that another tool made (see `crosskd.data.answers_merge.read_answers`): by ``id``, or
            one for each row of the training split (or of the only one), in order. They become ``teacher_answer``.
        unlabelled: Keep rows without an answer, with an empty list of ``answers``.

    Returns:
        Examples and summary. A split that loses all its rows (such as a test split without labels) is left out.

    Raises:
        UsageError: The source or one of its columns or splits is missing or cannot be read, a cell is of a wrong kind,
            an option is out of range, or no example remains.
    """
    _check_options(limit, max_characters, validation_fraction)
    splits = _chosen(open_source(source, split), split, str(source))
    held_out = validation_fraction is not None and "train" in splits and "validation" not in splits
    given = None if answers is None else read_answers(answers)
    splits = _with_answers(splits, given)
    kept: dict[str, list[Row]] = {}
    counts: dict[str, dict[str, Any]] = {}
    for name, rows in splits.items():
        where = f"{source} ({name})"
        stop = None if held_out and name == "train" else limit
        kept[name], counts[name] = read_split(rows(), task, mapping, where, stop, max_characters, unlabelled=unlabelled)
    if not any(kept.values()):
        raise _nothing_left(str(source), counts)
    _give_answers(kept, given)
    if validation_fraction is not None and held_out:
        _hold_out(kept, counts, validation_fraction, seed)
    examples = DatasetDict({name: _dataset(rows[:limit]) for name, rows in kept.items() if rows})
    _count(examples, counts)
    settings = {"mapping": dict(mapping or {}), "split": split, "limit": limit, "max_characters": max_characters}
    settings |= {"validation_fraction": validation_fraction, "seed": seed, "unlabelled": unlabelled}
    settings |= {"answers": None if answers is None else str(answers)}
    summary = {"source": str(source), "task": task.name, **settings, "splits": counts, "crosskd_version": __version__}
    return Prepared(examples, summary)


def save_prepared(prepared: Prepared, output: str | Path) -> Path:
    """Write examples as an Arrow data set that ``datasets.load_from_disk`` reads, with its summary beside it.

    All is written into a sibling folder that takes the place of ``output`` at the end.

    Args:
        prepared: What `prepare_examples` returned.
        output: The folder; it must be absent or empty.

    Returns:
        ``output``.

    Raises:
        UsageError: ``output`` is a file, or a folder that is not empty.
    """
    folder = Path(output)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"output {folder} exists", expected="a new or an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        with without_progress_bars():
            prepared.examples.save_to_disk(str(beside))
        write_json(beside / SUMMARY_FILE, prepared.summary)
        if folder.is_dir():
            folder.rmdir()
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


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
    if split not in examples:
        raise UsageError(f"{name} has no split {split!r}", fix=did_you_mean(split, map(str, examples)))
    dataset = examples[split]
    missing = [column for column in (*_TEXTS, "answers") if column not in dataset.column_names]
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
    return _prepared_sample(name) if name.startswith("sample:") else _saved_examples(Path(name))


def _saved_examples(folder: Path) -> DatasetDict:
    if not folder.exists():
        raise UsageError(f"there is no folder {folder}", expected="examples written by `crosskd prepare`")
    if not (folder / "dataset_dict.json").exists():
        raise UsageError(f"{folder} does not hold prepared examples", fix="run `crosskd prepare` on it first")
    try:
        with without_progress_bars():
            saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{folder} cannot be read: {error}", fix="run `crosskd prepare` again") from error
    assert isinstance(saved, DatasetDict)
    return saved


def _prepared_sample(name: str) -> DatasetDict:
    task = {"sample:qed": "qa", "sample:fairytaleqa": "qa_generative"}.get(name, "qa")
    return prepare_examples(name, TASKS[task]).examples


def _check_options(limit: int | None, max_characters: int | None, validation_fraction: float | None) -> None:
    for flag, value in (("--limit", limit), ("--max_characters", max_characters)):
        if value is not None and value < 1:
            raise UsageError(flag, got=value, expected="an integer of at least 1")
    if validation_fraction is not None and not 0 < validation_fraction < 1:
        raise UsageError("--validation_fraction", got=validation_fraction, expected="a number between 0 and 1")


def _count(examples: DatasetDict, counts: dict[str, dict[str, Any]]) -> None:
    for name, dataset in examples.items():
        counts[str(name)]["examples"] = len(dataset)
        if "teacher_answer" in dataset.column_names:
            counts[str(name)]["without_teacher_answer"] = sum(not answer for answer in dataset["teacher_answer"])


def _with_answers(splits: Splits, given: GivenAnswers | None) -> Splits:
    """The split that answers without ids are for, with them: the training split, or the only one."""
    if given is None or given.ids is not None:
        return splits
    name = next(iter(splits)) if len(splits) == 1 else "train"
    if name not in splits:
        raise UsageError(
            f"--answers {given.path}", got="answers without ids, and no training split", fix="choose one with --split"
        )
    rows = splits[name]
    return {**splits, name: lambda: given.in_order(rows())}


def _give_answers(kept: Mapping[str, list[Row]], given: GivenAnswers | None) -> None:
    if given is None or given.ids is None:
        return
    examples = [row for rows in kept.values() for row in rows]
    if given.by_id(examples) == 0:
        raise UsageError(
            f"--answers {given.path}",
            got=f"no id of an example; the first is {given.ids[0]!r}",
            expected=f"ids such as {examples[0]['id']!r}",
        )


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
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    return UsageError(f"{source}: no example is left of {dropped.total()} rows", got=f"dropped: {reasons}")


def _hold_out(kept: dict[str, list[Row]], counts: dict[str, dict[str, Any]], fraction: float, seed: int) -> None:
    rows = kept["train"]
    if len(rows) < 2:
        raise UsageError("--validation_fraction", got=f"{len(rows)} training examples", expected="at least 2")
    size = min(len(rows) - 1, max(1, round(len(rows) * fraction)))
    held = set(random.Random(seed).sample(range(len(rows)), size))
    kept["validation"] = [row for index, row in enumerate(rows) if index in held]
    kept["train"] = [row for index, row in enumerate(rows) if index not in held]
    counts["validation"] = {**counts["train"], "rows": 0, "dropped": dict.fromkeys(REASONS, 0), "held_out_of": "train"}


def _dataset(rows: list[Row]) -> Dataset:
    names = list(_TEXTS) + (["teacher_answer"] if any(row.get("teacher_answer") for row in rows) else [])
    features = Features({name: Value("string") for name in names} | {"answers": datasets.List(Value("string"))})
    columns = {name: [row.get(name, "") for row in rows] for name in features}
    return Dataset.from_dict(columns, features=features)
