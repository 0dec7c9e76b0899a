"""The rows of `helpers_data`, or others, in every kind of file and folder that data are read from."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from helpers_data import ROWS, write_lines


def write_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_table(path: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_arrow(path: Path, make: Callable[..., Any]) -> None:
    table = pa.Table.from_pylist(ROWS)
    with make(str(path), table.schema) as writer:
        writer.write_table(table)


def pack(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file and leave only its gzip."""
    plain = path.with_suffix("")
    write(plain)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()


def save(path: Path, **splits: Sequence[dict[str, Any]]) -> Path:
    """A data set with splits, as ``save_to_disk`` writes it."""
    datasets.DatasetDict({name: datasets.Dataset.from_list(list(rows)) for name, rows in splits.items()}).save_to_disk(
        str(path)
    )
    return path


def without_ids(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["id"]: {name: value for name, value in row.items() if name != "id"} for row in rows}


WRITERS: dict[str, Callable[[Path], object]] = {
    "rows.json": lambda path: write_json(path, ROWS),
    "lines.json": lambda path: write_lines(path, ROWS),
    "data.json": lambda path: write_json(path, {"version": "1", "data": ROWS}),
    "named.json": lambda path: write_json(path, {"examples": ROWS}),
    "by_id.json": lambda path: write_json(path, without_ids(ROWS)),
    "by_split.json": lambda path: write_json(path, {"train": ROWS, "version": "1"}),
    "rows.json.gz": lambda path: pack(path, lambda plain: write_json(plain, ROWS)),
    "rows.jsonl": lambda path: write_lines(path, ROWS),
    "ROWS.JSONL": lambda path: write_lines(path, ROWS),
    "rows.jsonlines": lambda path: write_lines(path, ROWS),
    "rows.ndjson": lambda path: write_lines(path, ROWS),
    "rows.jsonl.gz": lambda path: pack(path, lambda plain: write_lines(plain, ROWS)),
    "rows.csv": lambda path: write_table(path, ROWS),
    "rows.csv.gz": lambda path: pack(path, lambda plain: write_table(plain, ROWS)),
    "rows.tsv": lambda path: write_table(path, ROWS, "\t"),
    "rows.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "stream.arrow": lambda path: write_arrow(path, pa.ipc.new_stream),
    "file.arrow": lambda path: write_arrow(path, pa.ipc.new_file),
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(str(path)),
    "saved_splits": lambda path: save(path, train=ROWS),
    "folder": lambda path: (path.mkdir(), write_lines(path / "anything.jsonl", ROWS)),
    "shards": lambda path: (
        path.mkdir(),
        write_lines(path / "train-00000-of-00002.jsonl", ROWS[:4]),
        write_lines(path / "train-00001-of-00002.jsonl", ROWS[4:]),
    ),
    "hub_cache": lambda path: (
        path.mkdir(),
        write_arrow(path / "own-set-train-00000-of-00001.arrow", pa.ipc.new_stream),
        write_json(path / "dataset_info.json", {"features": {}}),
    ),
}
"""File or folder name to a function that writes `ROWS` there, all as the split ``train``."""
