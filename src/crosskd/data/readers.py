"""Readers: rows of a JSON, JSON Lines, CSV, TSV, Parquet or Arrow file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from crosskd.errors import UsageError

Row = dict[str, Any]


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def json_splits(path: Path) -> dict[str, list[Row]] | None:
    """Rows by name, where a JSON file holds one object of nothing but lists of objects; else None."""
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError:
        return None
    if not isinstance(value, dict) or not value or set(value) == {"data"}:
        return None
    if not all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in value.values()):
        return None
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text file in UTF-8 (byte {error.start})") from error


def _read_json_lines(path: Path) -> Iterator[Row]:
    # Lines end at line feeds only: str.splitlines would also break at characters that JSON allows inside texts.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path}, line {number} is not JSON: {error.msg}") from error
        yield _object(row, f"{path}, line {number}")


def _read_json(path: Path) -> Iterator[Row]:
    text = _read_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if not _begins_with_object(text):
            raise UsageError(f"{path}, line {error.lineno} is not JSON: {error.msg}") from error
        yield from _read_json_lines(path)
        return
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        value = [{"id": key, **row} for key, row in value.items()]
    for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
        yield _object(row, f"{path}, row {number}")


def _begins_with_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text.lstrip().split("\n", 1)[0]), dict)
    except json.JSONDecodeError:
        return False


def _object(row: object, place: str) -> Row:
    if not isinstance(row, dict):
        raise UsageError(f"{place} is a {type(row).__name__}", expected="a JSON object with a key for each column")
    return row


def _read_table(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 kB is less than some documents
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UsageError(
                    f"{path}, line {reader.line_num} has more or fewer cells than the header",
                    expected=f"{len(reader.fieldnames or [])} cells",
                    fix="quote cells that hold the separator or line breaks",
                )
            yield row
    except csv.Error as error:
        raise UsageError(f"{path}, after line {reader.line_num}: {error}") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise UsageError(f"{path} is not a Parquet file: {first_line(error)}") from error


def _read_arrow(path: Path) -> Iterator[Row]:
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)
            batches: Iterator[pa.RecordBatch] = iter(reader)
        except pa.ArrowInvalid:
            source.seek(0)
            batches = _record_batches(source, path)
        for batch in batches:
            yield from batch.to_pylist()


def _record_batches(source: pa.NativeFile, path: Path) -> Iterator[pa.RecordBatch]:
    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid as error:
        raise UsageError(f"{path} is not an Arrow file: {first_line(error)}") from error
    return (file.get_batch(index) for index in range(file.num_record_batches))


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".csv": lambda path: _read_table(path, ","),
    ".tsv": lambda path: _read_table(path, "\t"),
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
"""How each kind of file is read, by its ending: from a path to its rows, one mapping of columns to cells a row."""
