"""The models of a run as the user names them: what can be wrong before one of them is loaded."""

from __future__ import annotations

from pathlib import Path

from crosskd.errors import UsageError
from crosskd.models.files import find_model


def no_teacher_error(method: str) -> UsageError:
    """What is said where a method asks a teacher and none is there."""
    return UsageError(
        "--teacher",
        got="none",
        expected=f"a teacher, since method {method} asks one",
        fix="give --teacher or --teacher_cache, or choose --method sft",
    )


def check_distinct(student: object, teacher: object) -> None:
    """Refuse a teacher that is the student itself, by name or by folder."""
    names = [source for source in (student, teacher) if isinstance(source, str | Path)]
    if len(names) < 2:
        return
    same = str(names[0]) == str(names[1]) or _folder(names[0]) == _folder(names[1])
    if same:
        raise UsageError(
            "--teacher",
            got=f"the student itself ({names[1]})",
            expected="another model: one that equals its student has nothing to teach",
        )


def _folder(source: str | Path) -> str:
    location = find_model(source)
    return str(source) if location is None else str(location.resolve())
