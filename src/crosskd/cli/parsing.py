"""Flags and YAML keys: from the fields of dataclasses, checked before anything large is imported."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import yaml

from crosskd.cli.checks import check_values
from crosskd.cli.flags import VerbFlags, declared_flags, known_flags
from crosskd.errors import UsageError, did_you_mean, first_line
from crosskd.files import parse_yaml

ABOUT = "about"
"""A key that files of flags may have: facts for readers, not a flag."""


class FlagParser(argparse.ArgumentParser):
    """Checks a command line against the flags of a verb: ``--config``, help that can be read, errors of one line.

    Args:
        verb_flags: The verb and its flags.
    """

    def __init__(self, verb_flags: VerbFlags) -> None:
        super().__init__(
            prog=f"crosskd {verb_flags.verb}",
            description=verb_flags.description,
            epilog=verb_flags.epilog,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
            usage=" ".join(["crosskd", verb_flags.verb, *map(str.upper, verb_flags.positional), "[flags]"]),
        )
        self.verb_flags = verb_flags
        self._positional = verb_flags.positional
        for flag in verb_flags.flags:
            _add(self, flag)
        self.add_argument("--config", metavar="FILE", help="YAML file of flags, without their dashes")
        if verb_flags.hidden:
            self.add_argument("--help_all", action="store_true", help="show every flag")

    def check(self, words: Sequence[str]) -> argparse.Namespace:
        """Read the values of all flags: command line over YAML over defaults.

        Raises:
            UsageError: An unknown flag or key (the nearest is suggested), a value of a wrong kind, a missing flag.
            SystemExit: Help was asked for, and is printed.
        """
        if "--help_all" in words:
            self.print_help()
            sys.exit(0)
        self._hide()
        for word in words:  # before argparse complains that a flag is missing: it may be mistyped
            if word.startswith("--") and word.split("=")[0] not in self._option_string_actions:
                self._refuse(word)
        words = [*self._words_of_file(words), *self._name_positional(words)]
        namespace, unknown = self.parse_known_args(words)
        if unknown:
            self._refuse(unknown[0])
        return namespace

    def error(self, message: str) -> NoReturn:
        """Argparse found a value of a wrong kind or misses a flag."""
        raise UsageError(message, fix=f"`{self.prog} --help` lists the flags")

    def _flags(self) -> dict[str, argparse.Action]:
        return {action.dest: action for action in self._actions if action.dest not in ("help", "help_all", "config")}

    def _refuse(self, word: str) -> NoReturn:
        if not word.startswith("-"):
            expected = f"{' '.join(map(str.upper, self._positional))} and flags" if self._positional else "flags only"
            raise UsageError(f"argument {word!r}", expected=expected, fix=f"`{self.prog} --help` lists them")
        name = word.lstrip("-").split("=")[0].replace("-", "_")
        raise UsageError(
            f"flag {word.split('=')[0]}", expected="a flag of this verb", fix=_suggestion(name, self._flags(), "--")
        )

    def _name_positional(self, words: Sequence[str]) -> list[str]:
        """Put names before words that stand alone, so that a file of flags and the command line meet as equals."""
        if not self._positional:
            return list(words)
        named = {word.split("=")[0] for word in words if word.startswith("--")}
        free = [name for name in self._positional if f"--{name}" not in named]
        given: list[str] = []
        value_of: argparse.Action | None = None
        for word in words:
            if word.startswith("-"):
                value_of = None if "=" in word else self._option_string_actions.get(word)
                given.append(word)
            elif value_of is not None and _takes(value_of, word):
                given.append(word)
                value_of = value_of if value_of.nargs in ("+", "*") else None
            elif free:
                flag = f"--{free.pop(0)}"
                value_of = self._option_string_actions[flag]
                given += [flag, word]
                value_of = value_of if value_of.nargs == "+" else None  # such a flag takes the words that follow, too
            else:
                self._refuse(word)
        return given

    def _words_of_file(self, words: Sequence[str]) -> list[str]:
        """The flags that a YAML file stands for; they come first, so that the command line wins."""
        before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        before.add_argument("--config")
        before.error = self.error  # pyright: ignore[reportAttributeAccessIssue]
        path = before.parse_known_args(words)[0].config
        if path is None:
            return []
        flags = self._flags()
        given: list[str] = []
        for key, value in _read_mapping(path).items():
            if key == ABOUT:
                continue
            if key not in flags:
                raise UsageError(
                    f"--config {path}: key {key!r}", expected="a flag of this verb", fix=_suggestion(key, flags, "")
                )
            if isinstance(value, list) and flags[key].nargs not in ("+", "*"):
                raise UsageError(f"--config {path}: key {key!r}", got="a list", expected="one value")
            given += _as_words(key, value)
        return given

    def _hide(self) -> None:
        for action in self._actions:
            if action.dest in self.verb_flags.hidden:
                action.help = argparse.SUPPRESS


class VerbParser(FlagParser):
    """A `FlagParser` whose flags are the fields of dataclasses, and that makes them.

    Args:
        verb: The verb, for help.
        description: What it does, for a stranger.
        dataclasses: Whose fields become flags.
        hidden: Flags that ``--help`` leaves to ``--help_all``.
        epilog: Printed under the flags.
        positional: Flags that may be given without their names, in this order: ``crosskd inspect TEACHER STUDENT``;
            one that takes several values takes all words in a row.
    """

    def __init__(
        self,
        verb: str,
        description: str,
        dataclasses: Sequence[type],
        *,
        hidden: Iterable[str] = (),
        epilog: str | None = None,
        positional: Sequence[str] = (),
    ) -> None:
        self.dataclasses = list(dataclasses)
        self.declared = partial(
            declared_flags, verb, description, self.dataclasses, frozenset(hidden), tuple(positional), epilog
        )
        super().__init__(known_flags(verb) or self.declared())

    def parse(self, words: Sequence[str]) -> tuple[Any, ...]:
        """Make the dataclasses: command line over YAML over defaults.

        Raises:
            UsageError: As for `check`, or a dataclass refused its values.
        """
        values = vars(self.check(words))
        check_values(values)
        try:
            return tuple(self._made(each, values) for each in self.dataclasses)
        except UsageError:
            raise
        except (ValueError, TypeError, ImportError) as error:
            raise UsageError(first_line(error)) from error

    def _made(self, dataclass_type: Any, values: dict[str, Any]) -> Any:
        names = [name for name, field in dataclass_type.__dataclass_fields__.items() if field.init]
        return dataclass_type(**{name: values[name] for name in names if name in values})


def _add(parser: argparse.ArgumentParser, flag: Mapping[str, Any]) -> None:
    """One flag as `crosskd.cli.flags` describes it."""
    given = {name: value for name, value in flag.items() if name not in ("options", "kind")}
    if flag["kind"] == "off":
        parser.add_argument(*flag["options"], action="store_false", **given)
    else:
        parser.add_argument(*flag["options"], type=_KINDS[flag["kind"]], **given)


def _truth(word: str) -> bool:
    if word.lower() in ("true", "t", "yes", "y", "1"):
        return True
    if word.lower() in ("false", "f", "no", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"got {word!r}, expected true or false")


_KINDS = {"int": int, "float": float, "text": str, "truth": _truth}


class _HelpFormatter(argparse.HelpFormatter):
    """One spelling of each flag, its choices and its default."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        option = action.option_strings[-1] if action.dest == "help" else action.option_strings[0]
        if action.nargs == 0 or isinstance(action.const, bool):
            return option
        return f"{option} {action.metavar or '|'.join(map(str, action.choices or [])) or action.dest.upper()}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = (action.help or "").replace("%", "%%")
        shown = action.default not in (None, argparse.SUPPRESS, False, "") and action.dest != "help"
        return f"{text} [{action.default}]".replace("%%(default)", "") if shown else text


def _takes(action: argparse.Action, word: str) -> bool:
    """Whether a word after a flag is its value: a switch takes none but a truth value."""
    if action.nargs == "?":
        return word.lower() in ("true", "false", "yes", "no", "1", "0")
    return action.nargs != 0


def _suggestion(name: str, flags: Iterable[str], dashes: str) -> str:
    text = did_you_mean(name, flags)
    if text.startswith("did you mean"):
        return text.replace("'", f"'{dashes}", 1)
    return "`--help` lists the flags"


def _read_mapping(path: str) -> dict[str, Any]:
    try:
        value = parse_yaml(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"--config {path}", got=error.strerror, expected="a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        told = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"--config {path}{place}: {told}", expected="a YAML file") from error
    if not isinstance(value, dict):
        raise UsageError(f"--config {path}", got=f"a YAML {type(value).__name__}", expected="a mapping of flags")
    return {str(key): item for key, item in value.items()}


def _as_words(key: str, value: Any) -> list[str]:
    flag = f"--{key}"
    if value is None:
        return []
    if isinstance(value, list):
        return [flag, *(_as_word(item) for item in value)]
    return [f"{flag}={_as_word(value)}"]


def _as_word(value: Any) -> str:
    if isinstance(value, bool | dict | list):
        return json.dumps(value)
    return str(value)
