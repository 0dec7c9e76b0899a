"""Flags written as the published command lines write them, read into a dataclass.

Their first script was parsed by python-fire and its successor by argparse, so all of these mean the same:
``--distillation_config.pure_bf16``, ``--distillation_config_pure_bf16``, ``--distillation-config-pure-bf16 True``,
``--distillation_config.pure_bf16=true``; and ``--norun_validation`` is ``--run_validation False``.
"""

from __future__ import annotations

import ast
import logging
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, field, fields
from typing import Any, ClassVar, Protocol, TypeVar

from crosskd.errors import UsageError, did_you_mean

logger = logging.getLogger(__name__)

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "text"}


class FlagSet(Protocol):
    """A dataclass of flags: each field is made by `flag`, one takes what an open group holds."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Flags = TypeVar("Flags", bound=FlagSet)


def flag(
    kind: type, default: Any, text: str, *, name: str | None = None, also: Sequence[str] = (), required: bool = False
) -> Any:
    """A field of a `FlagSet`.

    Args:
        kind: ``bool``, ``int``, ``float`` or ``str``.
        default: Its value where the flag is not given.
        text: What ``--help`` says.
        name: The flag, where it is not the field's name: ``"distillation_config.model_name"``.
        also: Other names of it.
        required: Whether it must be given.
    """
    return field(
        default=default, metadata={"kind": kind, "help": text, "name": name, "also": also, "required": required}
    )


def read_flags(
    words: Sequence[str], kind: type[Flags], no_effect: Mapping[str, str], *, open_group: str | None = None
) -> Flags:
    """Read a command line.

    Args:
        words: The words after the script's name.
        kind: The dataclass of its flags.
        no_effect: Flags that are accepted and change nothing here, with the reason. Those given are said in the log.
        open_group: A group whose flags may have any name, ``"dataset"`` for ``--dataset.anything``; they become a
            mapping in the field of that name.

    Raises:
        UsageError: An unknown flag (the nearest is suggested), a value of a wrong kind or none, a missing flag, or a
            word that belongs to no flag.
    """
    known = {spelling: item for item in fields(kind) for spelling in _spellings(item)}
    without = {spelling: name for name in no_effect for spelling in (name, name.replace(".", "_"))}
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    ignored: list[str] = []
    queue = list(words)
    while queue:
        name, value = _next_flag(queue)
        item, negated = _find(name, known)
        if item is not None:
            values[item.name] = False if negated and value is None else _value(item, name, value, queue)
        elif name in without:
            _optional_value(value, queue)
            ignored.append(without[name])
        elif open_group is not None and name.startswith(f"{open_group}."):
            extra[name.partition(".")[2]] = _literal(_optional_value(value, queue))
        else:
            raise UsageError(f"flag --{name}", fix=_suggestion(name, [*map(_name, fields(kind)), *no_effect]))
    _require(kind, values)
    for name in dict.fromkeys(ignored):
        logger.info("--%s has no effect: %s", name, no_effect[name])
    return kind(**values, **({open_group: extra} if open_group else {}))


def help_text(script: str, about: str, kind: type[FlagSet], no_effect: Iterable[str]) -> str:
    """What ``--help`` shows: every flag with its default, and those without effect."""
    lines = [f"usage: python {script} [flags]", "", *textwrap.wrap(about, 100), ""]
    for item in fields(kind):
        if item.metadata:
            default = item.default
            shown = f" [{default}]" if default not in (None, False, "") else ""
            shown = " (required)" if item.metadata["required"] else shown
            lines.append(f"  --{_name(item):<38} {item.metadata['help']}{shown}")
    lines += ["", *textwrap.wrap("Accepted without effect: " + ", ".join(f"--{name}" for name in no_effect), 100)]
    lines += ["", "A dot in a flag may be written as an underscore. More: docs/published.md", ""]
    return "\n".join(lines)


def _name(item: Field[Any]) -> str:
    return item.metadata.get("name") or item.name


def _spellings(item: Field[Any]) -> list[str]:
    names = [_name(item), *item.metadata.get("also", ())] if item.metadata else []
    return [spelling for name in names for spelling in (name, name.replace(".", "_"))]


def _next_flag(queue: list[str]) -> tuple[str, str | None]:
    word = queue.pop(0)
    if not word.startswith("-") or not word.lstrip("-"):
        raise UsageError(f"argument {word!r}", expected="flags only", fix="put -- before its name, or quote its value")
    name, equals, value = word.lstrip("-").partition("=")
    return name.replace("-", "_"), value if equals else None


def _find(name: str, known: Mapping[str, Field[Any]]) -> tuple[Field[Any] | None, bool]:
    """The flag of that name; true where it is the ``--noflag`` of a switch."""
    if name in known:
        return known[name], False
    item = known.get(name[2:]) if name.startswith("no") else None
    return (item, True) if item is not None and item.metadata["kind"] is bool else (None, False)


def _value(item: Field[Any], name: str, value: str | None, queue: list[str]) -> Any:
    kind = item.metadata["kind"]
    if kind is bool:
        if value is None and queue and queue[0].lower() in _TRUTH:
            value = queue.pop(0)
        if value is None:
            return True
    elif value is None and queue and not queue[0].startswith("--"):
        value = queue.pop(0)
    if value is None:
        raise UsageError(f"--{name} has no value", expected=_KINDS[kind])
    try:
        return _TRUTH[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError) as error:
        raise UsageError(f"--{name}", got=value, expected=_KINDS[kind]) from error


def _optional_value(value: str | None, queue: list[str]) -> str | None:
    return queue.pop(0) if value is None and queue and not queue[0].startswith("--") else value


def _literal(value: str | None) -> Any:
    """The Python value that a word stands for, as python-fire reads it; text where it is none."""
    if value is None:
        return True
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return _TRUTH[value.lower()] if value.lower() in ("true", "false") else value


def _require(kind: type[FlagSet], values: Mapping[str, Any]) -> None:
    for item in fields(kind):
        if item.metadata.get("required") and values.get(item.name) in (None, ""):
            raise UsageError(f"--{_name(item)} is missing", expected=item.metadata["help"])


def _suggestion(name: str, choices: Iterable[str]) -> str:
    text = did_you_mean(name, choices)
    return text.replace("'", "'--", 1) if text.startswith("did you mean") else "`--help` lists the flags"
