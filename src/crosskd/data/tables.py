"""Tables: rows of CSV and TSV, where every cell is text, also the cells that stand for lists."""

from __future__ import annotations

import ast
import csv
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from crosskd.errors import UsageError

logger = logging.getLogger(__name__)

MISSING = frozenset({"nan", "NaN", "None", "<NA>"})
"""Cells that Python and pandas write where a value is missing."""

_KEYS_OF_LISTS = ("text", "string", "contexts")


def table_rows(lines: Iterable[str], delimiter: str, where: str) -> Iterator[dict[str, Any]]:
    """Rows of a table with a header.

    A cell that reads ``nan``, ``NaN``, ``None`` or ``<NA>`` is how Python and pandas write a missing value: it is None,
    and how many there are is logged.

    Args:
        lines: The text, with its line breaks as they are.
        delimiter: What separates cells.
        where: What messages call the table.

    Raises:
        UsageError: Two columns have the same name, or a row has more or fewer cells than the header.
    """
    csv.field_size_limit(2**31 - 1)  # the default of 128 kB is less than some documents
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    missing: Counter[str] = Counter()
    try:
        _check_header(reader.fieldnames or [], where)
        for row in reader:
            if None in row or None in row.values():
                raise UsageError(
                    f"{where}, line {reader.line_num} has more or fewer cells than the header",
                    expected=f"{len(reader.fieldnames or [])} cells",
                    fix="quote cells that hold the separator or line breaks",
                )
            missing.update(text for text in row.values() if text in MISSING)
            yield {name: _cell(text) for name, text in row.items()}
    except csv.Error as error:
        raise UsageError(f"{where}, after line {reader.line_num}: {error}") from error
    finally:
        if missing:
            forms = ", ".join(f"{count} {form!r}" for form, count in sorted(missing.items()))
            logger.info("%s: cells read as missing values: %s", where, forms)


def _check_header(names: Iterable[str], where: str) -> None:
    for name, count in Counter(names).items():
        if name and count > 1:
            raise UsageError(f"{where} has {count} columns named {name!r}", expected="names that differ")


def _cell(text: str) -> Any:
    """A cell: text, the list that its text stands for, or None for a missing value.

    Lists of texts, and mappings with such a list under ``text``, ``string`` or ``contexts``, are written into tables as
    JSON or the way Python shows them (as pandas does).
    """
    if text in MISSING:
        return None
    if text[:1] not in ("[", "{"):
        return text
    value = _parsed(text)
    if _is_list_of_texts(value):
        return value
    if isinstance(value, dict) and any(_is_list_of_texts(value.get(key)) for key in _KEYS_OF_LISTS):
        return value
    return text


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    # what Python would write differently (['a' 'b'] is read as ['ab']) was not written by Python
    return value if repr(value) == text else None
