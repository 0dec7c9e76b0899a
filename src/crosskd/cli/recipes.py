"""``crosskd recipes``: the experiments of the paper, with the scores that it published."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from crosskd.cli.flags import known_flags
from crosskd.cli.parsing import FlagParser, VerbParser, check_early
from crosskd.errors import UsageError, did_you_mean

DESCRIPTION = """A recipe is a file of flags for `crosskd distill --config`: one for each score that the paper of
MultiLevelOT (arXiv 2412.14528) published, with that score in it. docs/reproduce.md says what a real run needs."""


@dataclass
class ListArguments:
    """Flags of ``crosskd recipes list``."""

    table: int | None = field(default=None, metadata={"help": "table of the paper"})
    student: str | None = field(default=None, metadata={"help": "student, as in the names of recipes: opt-350m"})
    teacher: str | None = field(default=None, metadata={"help": "teacher, likewise: llama2"})
    dataset: str | None = field(default=None, metadata={"help": "data, likewise: qed"})
    json: bool = field(default=False, metadata={"help": "print JSON, for a script"})


@dataclass
class ShowArguments:
    """Flags of ``crosskd recipes show``."""

    name: str = field(metadata={"help": "name of a recipe"})


@dataclass
class CopyArguments:
    """Flags of ``crosskd recipes copy``."""

    name: str = field(metadata={"help": "name of a recipe"})
    output: str = field(metadata={"help": "file to write"})
    overwrite: bool = field(default=False, metadata={"help": "replace the file"})


@dataclass
class RunArguments:
    """Flags of ``crosskd recipes run``."""

    name: str = field(metadata={"help": "name of a recipe"})
    output: str = field(metadata={"help": "folder to write"})
    data: str | None = field(
        default=None, metadata={"help": "data for `crosskd prepare`; default: where the recipe looks"}
    )
    model_override: Literal["tiny"] | None = field(
        default=None,
        metadata={
            "help": "put tiny random models in place of the recipe's, to try it without downloads; "
            "16 examples a split, 2 steps and answers of 16 tokens, unless flags say otherwise"
        },
    )
    split: str | None = field(default=None, metadata={"help": "split to score; default: the recipe's"})
    limit: int | None = field(default=None, metadata={"help": "keep at most so many examples of each split"})
    max_steps: int | None = field(default=None, metadata={"help": "stop training after so many steps"})
    max_new_tokens: int | None = field(default=None, metadata={"help": "longest answer, in tokens [150]"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run the code that a model brings"})
    allow_pickle: bool = field(default=False, metadata={"help": "read weights in pickle format, which can run code"})
    resume: bool = field(default=False, metadata={"help": "go on with a run that was interrupted"})
    overwrite: bool = field(default=False, metadata={"help": "replace what the output folder holds"})


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
