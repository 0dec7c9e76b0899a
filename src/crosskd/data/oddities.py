"""What misleads in examples that are otherwise fine: said in a sentence each, before hours are spent on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LONG_CONTEXT = 200_000
"""Characters: no model reads so much at once, so nearly all of such a context would be cut away."""

_SHOWN = 60


def multi_line_answers(examples: Sequence[Mapping[str, Any]]) -> str | None:
    """Say how many examples have an answer with a line break, or None: models write, and are scored on, one line.

    Args:
        examples: Mappings with ``id`` and ``answers``.
    """
    found = [(row["id"], text) for row in examples for text in _of_several_lines(row["answers"])[:1]]
    if not found:
        return None
    name, text = found[0]
    return (
        f"{len(found)} of {len(examples)} examples have answers of several lines, such as {name!r} ({_short(text)}): "
        "a student is trained on all lines, but only the first line of what a model writes is kept and scored; put "
        "answers on one line"
    )


def long_contexts(examples: Sequence[Mapping[str, Any]]) -> str | None:
    """Say how many examples have a context of more than `LONG_CONTEXT` characters, or None.

    Args:
        examples: Mappings with ``id`` and ``context``.
    """
    found = [(len(row["context"]), row["id"]) for row in examples if len(row["context"]) > LONG_CONTEXT]
    if not found:
        return None
    length, name = max(found)
    return (
        f"{len(found)} of {len(examples)} contexts have more than {LONG_CONTEXT:,} characters, the longest {length:,} "
        f"(id {name!r}): they lose their front to fit a model; --max_characters drops such rows"
    )


def _of_several_lines(answers: Sequence[str]) -> list[str]:
    return [text for text in answers if "\n" in text or "\r" in text]


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
