"""``crosskd recipes``: the experiments of the paper, with the scores that it published."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from crosskd.cli.early import check_early
from crosskd.cli.flags import known_flags
from crosskd.cli.parsing import FlagParser, VerbParser
from crosskd.cli.recipes_flags import CopyArguments, ListArguments, RunArguments, ShowArguments
from crosskd.errors import UsageError, did_you_mean

DESCRIPTION = """A recipe is a file of flags for `crosskd distill --config`: one for each score that the paper of
MultiLevelOT (arXiv 2412.14528) published, with that score in it. docs/reproduce.md says what a real run needs."""


def run(words: Sequence[str]) -> None:
    """Do what the first word says."""
    action = words[0] if words else None
    if action in ("-h", "--help"):
        sys.stdout.write(_help())
        sys.exit(0)
    if action not in ACTIONS:
        raise UsageError(
            "first word after `crosskd recipes`",
            got=action,
            expected="list, show, copy or run",
            fix=did_you_mean(action, ACTIONS) if action else "`crosskd recipes --help` explains them",
        )
    check_early(f"recipes {action}", words[1:])
    (arguments,) = _parser(action).parse(words[1:])
    # what it needs takes seconds to import, which help and typing mistakes need not wait for
    from crosskd.cli.recipes_actions import DO

    DO[action](arguments)


@dataclass(frozen=True)
class Action:
    """What may stand after ``crosskd recipes``."""

    text: str
    arguments: type
    positional: tuple[str, ...]


ACTIONS: dict[str, Action] = {
    "list": Action("Show the recipes and the published scores.", ListArguments, ()),
    "show": Action("Print a recipe.", ShowArguments, ("name",)),
    "copy": Action("Write a recipe into a file of yours.", CopyArguments, ("name",)),
    "run": Action(
        "Go the whole way of a recipe: prepare, answer where it trains on the teacher's answers, distill, evaluate. "
        "Each step is a verb whose command line is shown; the score stands beside the published one at the end.",
        RunArguments,
        ("name",),
    ),
}


def _parser(name: str) -> VerbParser:
    action = ACTIONS[name]
    return VerbParser(f"recipes {name}", action.text, [action.arguments], positional=action.positional)


def parsers() -> list[VerbParser]:
    """What reads the command line of each action."""
    return [_parser(name) for name in ACTIONS]


def _help() -> str:
    known = [known_flags(f"recipes {name}") for name in ACTIONS]
    found = [FlagParser(flags) if flags else _parser(name) for name, flags in zip(ACTIONS, known, strict=True)]
    parts = [f"usage: crosskd recipes {'|'.join(ACTIONS)} [flags]\n\n{DESCRIPTION}\n"]
    return "\n".join([*parts, *(parser.format_help() for parser in found)])
