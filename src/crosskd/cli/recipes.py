"""``crosskd recipes``: the experiments of the paper, with the scores that it published."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table

from crosskd.cli.console import output, start_logging
from crosskd.cli.parsing import VerbParser
from crosskd.cli.recipes_run import RunSettings, run_recipe
from crosskd.errors import UsageError, did_you_mean
from crosskd.files import check_writable, write_text
from crosskd.recipes.grid import METRICS, Recipe, find_recipe, recipes
from crosskd.recipes.text import recipe_text

DESCRIPTION = """A recipe is a file of flags for `crosskd distill --config`: one for each score that the paper of
MultiLevelOT (arXiv 2412.14528) published, with that score in it. docs/reproduce.md says what a real run needs."""

TINY_SIZES = {"limit": 16, "max_steps": 2, "max_new_tokens": 16}


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
    (arguments,) = _parser(action).parse(words[1:])
    ACTIONS[action].do(arguments)


def show_list(arguments: ListArguments) -> None:
    """Print the recipes that the flags choose, as a table or as JSON."""
    chosen = list(recipes().values())
    for flag, key in (("table", "table"), ("student", "student"), ("teacher", "teacher"), ("dataset", "data")):
        value = getattr(arguments, flag)
        if value is None:
            continue
        known = {str(getattr(recipe, key)) for recipe in recipes().values()}
        if str(value) not in known:
            raise UsageError(
                f"--{flag}", got=value, expected="one that a recipe has", fix=did_you_mean(str(value), known)
            )
        chosen = [recipe for recipe in chosen if getattr(recipe, key) == value]
    if arguments.json:
        sys.stdout.write(json.dumps([dict(recipe.about) for recipe in chosen], indent=2) + "\n")
        return
    # names are there to be copied, also out of a pipe, where no terminal says how wide it is
    output.print(_table(chosen), width=None if output.is_terminal else 120)


def _table(chosen: Sequence[Recipe]) -> Table:
    table = Table(title="published scores, in percent", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("teacher", overflow="fold")
    table.add_column("method", overflow="fold")
    table.add_column("published", no_wrap=True, justify="right")
    for recipe in chosen:
        teacher, setting = recipe.labels["teacher"], recipe.labels["setting"]
        table.add_row(recipe.name, teacher, setting, f"{METRICS[recipe.metric]} {recipe.score:.2f}")
    return table


def show(arguments: ShowArguments) -> None:
    """Print the file of one recipe."""
    sys.stdout.write(recipe_text(find_recipe(arguments.name)))


def copy(arguments: CopyArguments) -> None:
    """Write the file of one recipe."""
    path, text = Path(arguments.output), recipe_text(find_recipe(arguments.name))
    if path.is_dir():
        raise UsageError(f"--output {path}", got="a folder", expected="a file, such as recipe.yaml")
    if path.exists() and not arguments.overwrite:
        raise UsageError(f"--output {path}", got="a file that exists", fix="give --overwrite, or another name")
    check_writable(path, "--output")
    output.print(f"recipe: {write_text(path, text)}", soft_wrap=True)


def run_whole(arguments: RunArguments) -> None:
    """Prepare, answer where the recipe says so, train and score."""
    start_logging()
    recipe = find_recipe(arguments.name)
    tiny = arguments.model_override == "tiny"
    for name in TINY_SIZES:
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UsageError(f"--{name}", got=value, expected="an integer of at least 1")
    sizes: dict[str, int | None] = dict(TINY_SIZES) if tiny else dict.fromkeys(TINY_SIZES)
    settings = RunSettings(
        data=arguments.data or str(recipe.about["prepare"]["data"]),
        folder=Path(arguments.output),
        tiny=tiny,
        split=arguments.split or str(recipe.about["evaluate"]["split"]),
        **{name: value if (value := getattr(arguments, name)) is not None else small for name, small in sizes.items()},
        loading=tuple(f"--{flag}" for flag in ("trust_remote_code", "allow_pickle") if getattr(arguments, flag)),
    )
    output.print(run_recipe(recipe, settings, resume=arguments.resume, overwrite=arguments.overwrite))
    if settings.is_shortened:
        output.print(
            "Do not compare these scores: models, examples, steps or answers of this run were not the recipe's."
        )


@dataclass(frozen=True)
class Action:
    """What may stand after ``crosskd recipes``."""

    text: str
    arguments: type
    positional: tuple[str, ...]
    do: Callable[[Any], None]


ACTIONS: dict[str, Action] = {
    "list": Action("Show the recipes and the published scores.", ListArguments, (), show_list),
    "show": Action("Print a recipe.", ShowArguments, ("name",), show),
    "copy": Action("Write a recipe into a file of yours.", CopyArguments, ("name",), copy),
    "run": Action(
        "Go the whole way of a recipe: prepare, answer where it trains on the teacher's answers, distill, evaluate. "
        "Each step is a verb whose command line is shown; the score stands beside the published one at the end.",
        RunArguments,
        ("name",),
        run_whole,
    ),
}


def _parser(name: str) -> VerbParser:
    action = ACTIONS[name]
    return VerbParser(f"recipes {name}", action.text, [action.arguments], positional=action.positional)


def _help() -> str:
    parts = [f"usage: crosskd recipes {'|'.join(ACTIONS)} [flags]\n\n{DESCRIPTION}\n"]
    return "\n".join([*parts, *(_parser(name).format_help() for name in ACTIONS)])
