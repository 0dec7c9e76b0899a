"""Prepared examples on disk: an Arrow data set that ``datasets.load_from_disk`` reads, and its summary."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict
from datasets.table import InMemoryTable

from crosskd.data.prepared_folder import check_is_prepared
from crosskd.data.quiet import without_progress_bars
from crosskd.data.readers import Row
from crosskd.data.sources import check_split_name
from crosskd.errors import UsageError, first_line
from crosskd.files import check_output_folder, write_json

SUMMARY_FILE = "prepare_summary.json"
TEXTS = ("id", "title", "context", "question")
"""Columns of text that all examples have, beside the list ``answers``."""

_CHUNK = 10_000


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


def save_prepared(prepared: Prepared, output: str | Path, *, overwrite: bool = False) -> Path:
    """Write examples as an Arrow data set that ``datasets.load_from_disk`` reads, with its summary beside it.

    All is written into a sibling folder that takes the place of ``output`` at the end.

    Args:
        prepared: What `prepare_examples` returned.
        output: The folder.
        overwrite: It may hold something, which is gone once the examples are whole, and not before.

    Returns:
        ``output``.

    Raises:
        UsageError: ``output`` is a file, or a folder that is not empty and may not be overwritten.
    """
    folder = check_output_folder(output, overwrite=overwrite).resolve()  # a link stays one
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        with without_progress_bars():
            prepared.examples.save_to_disk(str(beside))
        write_json(beside / SUMMARY_FILE, prepared.summary)
        _put_in_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Path(output)


def _put_in_place(beside: Path, folder: Path) -> None:
    """Give a whole folder its name; what had it goes, and comes back if that fails."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.is_dir():
        folder.rename(aside)
    try:
        beside.replace(folder)
    except BaseException:
        if aside.is_dir():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def examples_dataset(rows: list[Row], where: str) -> Dataset:
    """Examples as a data set in memory; ``teacher_answer`` is a column of it if one example has it.

    Raises:
        UsageError: A text holds half of a surrogate pair, which JSON can write and UTF-8 cannot.
    """
    names = list(TEXTS) + (["teacher_answer"] if any(row.get("teacher_answer") for row in rows) else [])
    schema = pa.schema([*((name, pa.string()) for name in names), ("answers", pa.list_(pa.string()))])
    try:
        table = pa.concat_tables(
            pa.table(
                {name: [row.get(name, "") for row in rows[start : start + _CHUNK]] for name in schema.names}, schema
            )
            for start in range(0, len(rows), _CHUNK)
        )
    except UnicodeEncodeError as error:
        raise _not_unicode(rows, where) from error
    return Dataset(InMemoryTable(table), fingerprint=_fingerprint(table))


def _fingerprint(table: pa.Table) -> str:
    """What `datasets` tells data apart by, here the content: by itself it would pickle the whole table for that."""
    content = hashlib.sha256(str(table.schema).encode())
    for chunk in (chunk for column in table.columns for chunk in column.chunks):
        for buffer in filter(None, chunk.buffers()):
            content.update(buffer)
    return content.hexdigest()[:16]


def _not_unicode(rows: list[Row], where: str) -> UsageError:
    for row in rows:
        texts = [row[name] for name in TEXTS] + row["answers"] + [row.get("teacher_answer", "")]
        half = next((letter for letter in "".join(texts) if "\ud800" <= letter <= "\udfff"), None)
        if half is not None:
            return UsageError(
                f"{where}, id {row['id']!r}", got=f"half of a character, {half!r}", expected="Unicode text"
            )
    return UsageError(where, expected="Unicode text")


def saved_examples(folder: Path) -> DatasetDict:
    """All splits of the examples that `save_prepared` wrote into a folder.

    Raises:
        UsageError: There is no such folder, or it does not hold prepared examples that can be read.
    """
    check_is_prepared(folder)
    try:
        with without_progress_bars():
            saved = datasets.load_from_disk(str(folder))
    # whatever a damaged file makes of the libraries that read it
    except Exception as error:
        raise UsageError(f"{folder} cannot be read: {first_line(error)}", fix="run `crosskd prepare` again") from error
    for name in saved if isinstance(saved, DatasetDict) else ():
        check_split_name(str(name), str(folder))
    if not isinstance(saved, DatasetDict):
        raise UsageError(f"{folder} holds a data set without splits", fix="run `crosskd prepare` on it first")
    return saved
