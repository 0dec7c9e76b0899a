"""Columns: which column of a user's data holds which field of an example, and how its cells become text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crosskd.errors import UsageError, did_you_mean
from crosskd.text.tasks import Task

Row = Mapping[str, Any]

TARGETS = ("id", "title", "context", "question", "answers", "answer", "teacher_answer")
"""Names that a mapping may give to columns."""

# Column names of SQuAD, QED (raw and on the hub), FairytaleQA, DialogSum, PubMedQA and common summarization data.
_KNOWN: dict[str, tuple[str, ...]] = {
    "id": ("id", "example_id", "fname", "gem_id", "pubid"),
    "title": ("title", "title_text", "story_name"),
    "context": (
        "context", "paragraph_text", "content", "story_section", "dialogue", "CONTEXTS", "document", "article",
        "passage", "text",
    ),
    "question": ("question", "question_text", "QUESTION"),
    "teacher_answer": ("teacher_answer",),
}  # fmt: skip
_ANSWERS = (
    "answer", "answers", "original_nq_answers", "answer1", "answer_1", "answer2", "answer_2", "long_answer",
    "LONG_ANSWER",
)  # fmt: skip
_CONVERSATIONS = ("messages", "conversations", "conversation")
_SEPARATORS = (";", "\t", "|")
_SUMMARIES = ("summary", "summary1", "summary2", "summary3", "highlights")


@dataclass(frozen=True)
class Columns:
    """Where the fields of an example are found in a row.

    Attributes:
        fields: Field to column, for ``id``, ``title``, ``context``, ``question``, ``teacher_answer``.
        answers: Columns with references, where a row has them; the first that is not empty begins with the training
            label.
    """

    fields: dict[str, str]
    answers: tuple[str, ...]

    def example(self, row: Row, place: str) -> dict[str, Any]:
        """The fields of a row, as text without white space at its ends; what is absent is empty.

        ``answers`` lists each reference once.

        Args:
            row: A row of the data.
            place: What messages call the row.

        Raises:
            UsageError: A cell is neither text nor a number, or references are nested or of mixed types.
        """
        example: dict[str, Any] = {"id": "", "title": "", "context": "", "question": ""}
        for name, column in self.fields.items():
            value = row.get(column)
            example[name] = value.strip() if isinstance(value, str) else _text(value, f"{place}, column {column!r}")
        answers: list[str] = []
        for column in self.answers:
            if row.get(column) is not None:
                answers += _references(row[column], f"{place}, column {column!r}")
        example["answers"] = list(dict.fromkeys(answers))
        return example


def find_columns(
    header: Sequence[str], task: Task, mapping: Mapping[str, str] | None, where: str, *, answers_needed: bool = True
) -> Columns:
    """Decide which column holds what.

    A mapping goes before the field's own name, and that before the names that well-known data sets use. Tasks with a
    question take answers; tasks without one take summaries, or answers where there are none.

    Args:
        header: Names of the columns.
        task: Says which fields are needed.
        mapping: Column to field, out of `TARGETS`; several columns may be ``answers``.
        where: What messages call the data.
        answers_needed: It is an error if no column holds answers.

    Raises:
        UsageError: The mapping names a column that is missing or a field that does not exist, or gives one field
            twice; or a needed column is missing.
    """
    mapped = _mapped(header, mapping or {}, where)
    fields: dict[str, str] = {}
    for field, names in _KNOWN.items():
        found = mapped.get(field) or [name for name in names if name in header and name not in (mapping or {})]
        if found:
            fields[field] = found[0]
        elif field in task.fields and field != "title":
            raise _missing(field, names, header, where)
    answers = _answer_columns([name for name in header if name not in (mapping or {})], task, mapped, mapping or {})
    if not answers and answers_needed:
        raise _missing("answers", [name for group in _answer_groups(task) for name in group], header, where)
    return Columns(fields, answers)


def _answer_groups(task: Task) -> tuple[tuple[str, ...], ...]:
    return (_ANSWERS,) if "question" in task.fields else (_SUMMARIES, _ANSWERS)


def _answer_columns(
    free: Sequence[str], task: Task, mapped: Mapping[str, list[str]], mapping: Mapping[str, str]
) -> tuple[str, ...]:
    if "answer" in mapped or "answers" in mapped:
        own = {name: [name] if name in free else [] for name in ("answer", "answers")}
        return tuple(column for name in own for column in mapped.get(name, own[name]))
    for group in _answer_groups(task):
        if any(name in free for name in group):
            # Rows of JSON Lines may have further references under names that the first rows lack.
            return tuple(name for name in group if name not in mapping)
    return ()


def _mapped(header: Sequence[str], mapping: Mapping[str, str], where: str) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {}
    for old, new in mapping.items():
        if new not in TARGETS:
            raise UsageError(f"--map {old}={new}: there is no field {new!r}", fix=did_you_mean(new, TARGETS))
        if old not in header:
            expected = "one of " + ", ".join(header)
            raise UsageError(f"--map {old}={new}: {where} has no column {old!r}", expected=expected)
        if columns.get(new) and new != "answers":
            raise UsageError(f"--map {old}={new}: {columns[new][0]!r} is mapped to {new!r} already")
        columns.setdefault(new, []).append(old)
    return columns


def _missing(field: str, names: Sequence[str], header: Sequence[str], where: str) -> UsageError:
    conversations = [name for name in _CONVERSATIONS if name in header]
    if conversations:
        return UsageError(
            f"{where} holds conversations (column {conversations[0]!r}), which are not supported yet",
            expected="columns for context, question and answers",
            fix="write the request and its answer into columns of their own",
        )
    return UsageError(
        f"{where} has no column for {field!r}",
        expected=f"one named {' or '.join(names)}; the columns there are: {', '.join(header) or 'none'}",
        fix=_how_to_name(field, header),
    )


def _how_to_name(field: str, header: Sequence[str]) -> str:
    separator = next((sign for sign in _SEPARATORS if len(header) == 1 and sign in header[0]), None)
    if separator is not None:
        return f"cells seem to be separated by {separator!r}: save the file with commas, or with tabs as .tsv"
    if {"prompt", "completion"} <= set(header):
        return "take a --task without a question, and --map prompt=context completion=answer"
    return f"name yours with --map <column>={field}"


def _text(value: object, place: str) -> str:
    """A cell of text: PubMedQA's sections are joined by spaces, numbers are written out, None is empty."""
    if isinstance(value, Mapping) and "contexts" in value:
        value = value["contexts"]
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(value).strip()
    if value is None or value != value:  # not a number: how data frames write an empty cell
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(place, got=_kind(value), expected="text")
    return str(value).strip()


def _references(value: object, place: str) -> list[str]:
    """References of a cell, without empty ones.

    A cell may be a text, a list of texts, SQuAD's ``{"text": [...]}``, or QED's list of answers, each a list of spans
    ``{"string": ...}`` that are joined by ``", "``; a flat list of spans is a list of answers.
    """
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("text", "string") if key in value), [value])
    if not isinstance(value, list):
        value = [_text(value, place)]
    given = [item for item in value if item is not None]
    texts = [_spans(item) for item in given]
    if any(text is None for text in texts):
        raise UsageError(place, got=_kinds(given), expected="references that are all text")
    return [text.strip() for text in texts if text and text.strip()]


def _spans(item: object) -> str | None:
    if isinstance(item, str):
        return item
    if isinstance(item, Mapping) and isinstance(item.get("string"), str):
        return item["string"]
    if isinstance(item, list) and item and all(isinstance(part, Mapping) for part in item):
        parts = [_spans(part) for part in item]
        return None if None in parts else ", ".join(part for part in parts if part)
    return None


def _kinds(values: Iterable[object]) -> str:
    return "a list of " + " and ".join(sorted({_kind(value) for value in values}))


def _kind(value: object) -> str:
    names = {dict: "mapping", str: "text", type(None): "nothing", bool: "true/false"}
    return names.get(type(value), "number" if isinstance(value, int | float) else type(value).__name__)
