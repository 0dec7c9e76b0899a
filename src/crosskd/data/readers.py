"""Readers: rows of a JSON, JSON Lines, CSV, TSV, Parquet or Arrow file, the text files also in gzip."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from crosskd.data.tables import table_rows
from crosskd.errors import UsageError, first_line

Row = dict[str, Any]
Reader = Callable[[Path], Iterator[Row]]

_BATCH = 1000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def kind_of(path: Path) -> str:
    """Ending that says how a file is read, in lower case: ``.jsonl`` for ``train.JSONL`` and ``train.jsonl.gz``."""
    return Path(path.stem if _is_packed(path) else path.name).suffix.lower()


def reader_of(path: Path) -> Reader | None:
    """How to read a file, by its ending; None where the ending is unknown."""
    kind = kind_of(path)
    return None if _is_packed(path) and kind in (".parquet", ".arrow") else READERS.get(kind)


def json_parts(path: Path) -> dict[str | None, Callable[[], Iterator[Row]]]:
    """Rows of a JSON file by the name of their split; the one name is None where the file names no splits.

    The file is a list of objects, ``{"data": [...]}``, ``{id: {...}, ...}``, ``{"train": [...], "test": [...]}`` or
    JSON Lines under the wrong ending. It is parsed once.

    Raises:
        UsageError: The file cannot be read, is not JSON, or holds something other than objects.
    """
    text = _read_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if not _begins_with_object(text):
            raise UsageError(f"{path}, line {error.lineno} is not JSON: {error.msg}") from error
        return {None: lambda: _read_json_lines(path)}
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise UsageError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    lists = {name: rows for name, rows in value.items() if _is_rows(rows)} if isinstance(value, dict) else {}
    if "data" in lists:
        return {None: _iterator(lists["data"])}
    if len(lists) > 1 or "train" in lists:
        return {name: _iterator(rows) for name, rows in lists.items()}
    if len(lists) == 1 and len(value) == 1:
        return {None: _iterator(next(iter(lists.values())))}
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        value = [{"id": key, **row} for key, row in value.items()]
    rows = value if isinstance(value, list) else [value]
    return {None: _iterator([_object(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1)])}


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if _is_packed(path) else path.open("rb")  # pyright: ignore[reportReturnType]


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """What goes wrong inside names the file."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}") from error


def _read_text(path: Path) -> str:
    with _named_errors(path), _open(path) as file:
        content = file.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{path}, byte {error.start}") from error


def _not_utf8(place: str) -> UsageError:
    return UsageError(f"{place} is not UTF-8", expected="a text file in UTF-8", fix="save the file as UTF-8")


def _read_json_lines(path: Path) -> Iterator[Row]:
    # Lines end at line feeds only: str.splitlines would also break at characters that JSON allows inside texts.
    with _named_errors(path), _open(path) as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line.strip():
                yield _parse_line(line, place)


def _parse_line(line: bytes, place: str) -> Row:
    try:
        return _object(json.loads(line.decode("utf-8")), place)
    except UnicodeDecodeError as error:
        raise _not_utf8(place) from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{place} is not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} cannot be read as JSON: {first_line(error)}") from error


def _read_json(path: Path) -> Iterator[Row]:
    parts = json_parts(path)
    if None not in parts:
        raise UsageError(f"{path} holds the splits {', '.join(map(str, parts))}", expected="the rows of one split")
    return parts[None]()


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _iterator(rows: list[Row]) -> Callable[[], Iterator[Row]]:
    return lambda: iter(rows)


def _begins_with_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text.lstrip().split("\n", 1)[0]), dict)
    except (ValueError, RecursionError):
        return False


def _object(row: object, place: str) -> Row:
    if not isinstance(row, dict):
        raise UsageError(f"{place} is a {type(row).__name__}", expected="a JSON object with a key for each column")
    return row


def _read_table(path: Path, delimiter: str) -> Iterator[Row]:
    with _named_errors(path), _open(path) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            yield from table_rows(lines, delimiter, str(path))
        except UnicodeDecodeError as error:
            raise _not_utf8(str(path)) from error


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is not a whole Parquet file: {first_line(error)}") from error


def _read_arrow(path: Path) -> Iterator[Row]:
    try:
        with pa.memory_map(str(path)) as source:
            for batch in _record_batches(source):
                for start in range(0, batch.num_rows, _BATCH):
                    yield from batch.slice(start, _BATCH).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is not a whole Arrow file: {first_line(error)}") from error


def _record_batches(source: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    """Batches of the stream format, or else of the file format."""
    try:
        return iter(pa.ipc.open_stream(source))
    except pa.ArrowInvalid:
        source.seek(0)
        file = pa.ipc.open_file(source)
        return (file.get_batch(index) for index in range(file.num_record_batches))


READERS: dict[str, Reader] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".jsonlines": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".csv": lambda path: _read_table(path, ","),
    ".tsv": lambda path: _read_table(path, "\t"),
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
"""How each kind of file is read, by its ending: from a path to its rows, one mapping of columns to cells a row."""
