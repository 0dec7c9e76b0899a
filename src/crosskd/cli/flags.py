"""The flags of every verb, known before anything large is imported.

A verb's flags are the fields of its dataclasses. Those of ``distill`` derive from `transformers.TrainingArguments`,
whose import takes torch and ten seconds: too long for ``--help`` or to hear of a typing mistake. So ``python -m
crosskd.cli.flags`` writes what the dataclasses say into ``flags.jsonl``: a line for each verb, followed by one for each
of its flags. The file is believed where the dataclasses and the version of transformers are those that it was made
from; elsewhere the verb is imported first. Help texts of transformers are not in it: they are read from the installed
source.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from crosskd.cli.verbs import VERBS

FILE = Path(__file__).with_name("flags.jsonl")
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class VerbFlags:
    """What a parser of a verb's command line must know.

    Attributes:
        verb: The verb, such as ``"distill"`` or ``"recipes list"``.
        description: What it does, for a stranger.
        flags: For each flag the arguments of ``add_argument``: ``options`` (its spellings), ``kind`` (``"int"``,
            ``"float"``, ``"text"``, ``"truth"``, or ``"off"`` for one that sets its ``dest`` to False), ``dest``,
            ``help``, and, where they are not None, ``default``, ``choices``, ``nargs``, ``const`` and ``required``.
        hidden: Names of the flags that ``--help`` leaves to ``--help_all``.
        positional: Flags that may be given without their names, in this order.
        epilog: Printed under the flags.
    """

    verb: str
    description: str
    flags: Sequence[dict[str, Any]]
    hidden: frozenset[str] = frozenset()
    positional: tuple[str, ...] = ()
    epilog: str | None = None


def declared_flags(
    verb: str,
    description: str,
    types: Iterable[type],
    hidden: frozenset[str] = frozenset(),
    positional: tuple[str, ...] = (),
    epilog: str | None = None,
) -> VerbFlags:
    """The flags of a verb as its dataclasses declare them; see `VerbFlags`."""
    return VerbFlags(verb, description, flags_of(types), hidden, positional, epilog)


def flags_of(types: Iterable[type]) -> list[dict[str, Any]]:
    """The fields of dataclasses as flags; imports transformers, which knows how to read them."""
    from transformers import HfArgumentParser

    parser = HfArgumentParser(list(types), add_help=False)  # pyright: ignore[reportArgumentType]
    return [_flag(action) for action in parser._actions]


def known_flags(verb: str) -> VerbFlags | None:
    """The flags of a verb as `FILE` has them; None where it has none, or was made from something else."""
    lines = _lines().get(verb, [])
    if not lines:
        return None
    about, flags = lines[0], [dict(flag) for flag in lines[1:]]
    if about["made_from"] != {name: _version(name) for name in about["made_from"]}:
        return None
    helps = _transformers_helps() if "transformers" in about["made_from"] else {}
    hidden = frozenset(flag["dest"] for flag in flags if flag.pop("hidden", False))
    for flag in flags:
        flag.pop("verb")
        if "help" not in flag:
            flag["help"] = helps.get(flag["dest"])
    return VerbFlags(verb, about["description"], flags, hidden, tuple(about["positional"]), about["epilog"])


def described(flags: VerbFlags, types: Sequence[type]) -> list[dict[str, Any]]:
    """The lines of `FILE` for one verb whose flags are the fields of dataclasses."""
    modules = {name for each in types for base in each.__mro__ for name in [base.__module__] if name != "builtins"}
    sources = {_source_of(name) for name in modules}
    about = {
        "verb": flags.verb,
        "description": flags.description,
        "epilog": flags.epilog,
        "positional": list(flags.positional),
        "made_from": {name: _version(name) for name in sorted(sources)},
    }
    inherited = {field.name for each in types for field in dataclasses.fields(each) if _is_foreign(each, field.name)}
    return [about, *(_line(flags, flag, flag["dest"] in inherited) for flag in flags.flags)]


def _line(flags: VerbFlags, flag: dict[str, Any], inherited: bool) -> dict[str, Any]:
    hidden = {"hidden": True} if flag["dest"] in flags.hidden else {}
    return {"verb": flags.verb, **{key: flag[key] for key in flag if not (inherited and key == "help")}, **hidden}


def _flag(action: argparse.Action) -> dict[str, Any]:
    if isinstance(action, argparse._StoreFalseAction):
        kind = "off"
    elif action.choices is not None:
        kind = "int" if all(isinstance(choice, int) for choice in action.choices) else "text"
    else:
        name = getattr(action.type, "__name__", "")
        kind = {"int": "int", "float": "float", "string_to_bool": "truth"}.get(name, "text")
    told = {name: getattr(action, name) for name in ("default", "choices", "nargs", "const") if kind != "off"}
    told |= {"required": action.required or None}
    given = {name: list(value or ()) or None if name == "choices" else value for name, value in told.items()}
    return {
        "options": list(action.option_strings),
        "dest": action.dest,
        "kind": kind,
        "help": action.help,
        **{name: value for name, value in given.items() if value is not None},
    }


def _is_foreign(dataclass_type: type, name: str) -> bool:
    owner = next(each for each in dataclass_type.__mro__ if name in inspect.get_annotations(each))
    return not owner.__module__.startswith("crosskd")


def _source_of(module: str) -> str:
    """A file of this package, or another package by its name."""
    parts = module.split(".")
    return "/".join(parts[1:]) + ".py" if parts[0] == "crosskd" else parts[0]


@cache
def _version(source: str) -> str | None:
    """Of a package its version; of a file of ours a digest of all but its imports and functions."""
    if not source.endswith(".py"):
        try:
            return metadata.version(source)
        except metadata.PackageNotFoundError:
            return None
    text = (_PACKAGE / source).read_text(encoding="utf-8")
    lines = text.split("\n")
    kept = [
        "\n".join(lines[node.lineno - 1 : node.end_lineno])
        for node in ast.parse(text).body
        if not isinstance(node, ast.FunctionDef | ast.Import | ast.ImportFrom)
    ]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


@cache
def _lines() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    if FILE.is_file():
        for line in FILE.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.setdefault(row["verb"], []).append(row)
    return found


def _transformers_helps() -> dict[str, str]:
    """What `transformers.TrainingArguments` says of its fields, read from its source without importing it."""
    spec = importlib.util.find_spec("transformers")
    path = Path(spec.origin).with_name("training_args.py") if spec and spec.origin else None
    if path is None or not path.is_file():
        return {}
    helps: dict[str, str] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call):
            for text in _constants_under(node.value, "help"):
                helps.setdefault(node.target.id, text)
    return helps


def _constants_under(call: ast.Call, key: str) -> Iterable[str]:
    for word in call.keywords:
        if word.arg == "metadata" and isinstance(word.value, ast.Dict):
            for name, value in zip(word.value.keys, word.value.values, strict=True):
                if isinstance(name, ast.Constant) and name.value == key and isinstance(value, ast.Constant):
                    yield str(value.value)


def file_text() -> str:
    """What `FILE` must hold for the dataclasses as they are."""
    rows = []
    for verb in VERBS:
        for parser in importlib.import_module(f"crosskd.cli.{verb}").parsers():
            rows += described(parser.declared(), parser.dataclasses)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    from crosskd.files import write_text

    write_text(FILE, file_text())
    sys.exit(0)
