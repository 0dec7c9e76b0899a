"""Answers that another tool made, brought to the examples they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosskd.data.readers import READERS, Row, reader_of
from crosskd.data.sources import Splits
from crosskd.errors import UsageError

_IDS = ("id", "example_id")
_ANSWERS = ("teacher_answer", "answer", "prediction_text", "prediction")


@dataclass(frozen=True)
class GivenAnswers:
    """Answers of another tool.

    Attributes:
        path: Where they were read.
        texts: The answers, in the order of the file.
        ids: The examples they belong to, or None where the order says it.
    """

    path: Path
    texts: list[str]
    ids: list[str] | None

    def in_order(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Rows of the data with ``teacher_answer``: the n-th answer belongs to the n-th row.

        Raises:
            UsageError: There are more or fewer answers than rows. More are fine where a limit ends the reading early:
                this iterator is then left before its end.
        """
        read = 0
        for read, row in enumerate(rows, start=1):
            if read > len(self.texts):
                raise self._wrong_number(f"more than {len(self.texts)} rows")
            yield {**row, "teacher_answer": self.texts[read - 1]}
        if read < len(self.texts):
            raise self._wrong_number(f"{read} rows")

    def by_id(self, examples: Iterable[Row]) -> int:
        """Give each example the answer of its id, or none (``""``); returns how many were given.

        The examples are changed in place.
        """
        assert self.ids is not None
        known = dict(zip(self.ids, self.texts, strict=True))
        given = 0
        for example in examples:
            given += example["id"] in known
            example["teacher_answer"] = known.get(example["id"], "")
        return given

    def _wrong_number(self, rows: str) -> UsageError:
        return UsageError(
            f"--answers {self.path}",
            got=f"{len(self.texts)} answers without ids for {rows} of data",
            expected="one for each row, in their order",
            fix="give each answer the id of its example",
        )


def read_answers(path: str | Path) -> GivenAnswers:
    """Read answers from JSON Lines (or any other kind of file that data are read from).

    Args:
        path: A file with ``teacher_answer``, ``answer``, ``prediction_text`` or ``prediction`` in each row, and
            ``id`` or ``example_id`` in all of them or in none.

    Raises:
        UsageError: There is no such file, or a row lacks its answer or its id, or an id occurs twice with different
            answers.
    """
    path = Path(path)
    read = reader_of(path)
    if read is None or not path.is_file():
        raise UsageError(
            f"--answers {path}", got="no such file" if read else f"a file of the kind {path.suffix!r}",
            expected="a file of " + ", ".join(READERS),
        )  # fmt: skip
    rows = list(read(path))
    if not rows:
        raise UsageError(f"--answers {path}", got="no rows", expected="answers")
    texts = [_cell(row, _ANSWERS, f"{path}, row {number}") for number, row in enumerate(rows, start=1)]
    if not any(name in row for row in rows for name in _IDS):
        return GivenAnswers(path, texts, None)
    ids = [_cell(row, _IDS, f"{path}, row {number}") for number, row in enumerate(rows, start=1)]
    _check_unambiguous(path, ids, texts)
    return GivenAnswers(path, texts, ids)


def with_answers(splits: Splits, given: GivenAnswers | None) -> Splits:
    """Splits whose rows have the answers without ids: those of the training split, or of the only one.

    Raises:
        UsageError: There are several splits, and none to train on.
    """
    if given is None or given.ids is not None:
        return splits
    name = next(iter(splits)) if len(splits) == 1 else "train"
    if name not in splits:
        raise UsageError(
            f"--answers {given.path}", got="answers without ids, and no training split", fix="choose one with --split"
        )
    rows = splits[name]
    return {**splits, name: lambda: given.in_order(rows())}


def give_answers(kept: Mapping[str, list[Row]], given: GivenAnswers | None) -> None:
    """Give examples the answers that have ids; see `GivenAnswers.by_id`.

    Raises:
        UsageError: No answer belongs to an example.
    """
    if given is None or given.ids is None:
        return
    examples = [row for rows in kept.values() for row in rows]
    if given.by_id(examples) == 0:
        raise UsageError(
            f"--answers {given.path}",
            got=f"no id of an example; the first is {given.ids[0]!r}",
            expected=f"ids such as {examples[0]['id']!r}",
        )


def _cell(row: Row, names: tuple[str, ...], place: str) -> str:
    value: Any = next((row[name] for name in names if name in row), None)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise UsageError(f"--answers {place}", got=f"the keys {', '.join(row)}", expected="text under " + names[0])
    return value.strip()


def _check_unambiguous(path: Path, ids: list[str], texts: list[str]) -> None:
    known: dict[str, str] = {}
    for name, text in zip(ids, texts, strict=True):
        if known.setdefault(name, text) != text:
            raise UsageError(f"--answers {path}", got=f"two different answers for id {name!r}", expected="one")
