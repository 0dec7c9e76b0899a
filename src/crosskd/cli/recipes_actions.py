"""What ``crosskd recipes`` does: a function for each word that may stand after it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from crosskd.cli.console import output, say, start_logging
from crosskd.cli.recipes_flags import CopyArguments, ListArguments, RunArguments, ShowArguments
from crosskd.cli.recipes_run import RunSettings, run_recipe
from crosskd.errors import UsageError, did_you_mean
from crosskd.files import check_writable, write_text
from crosskd.recipes.grid import METRICS, Recipe, find_recipe, recipes
from crosskd.recipes.text import recipe_text

TINY_SIZES = {"limit": 16, "max_steps": 2, "max_new_tokens": 16}
_WIDE = 120


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
    output.print(_table(chosen, output.width))


def _table(chosen: Sequence[Recipe], width: int) -> Table:
    """A line for each recipe; a narrow terminal gets no column for the method, which ends each name.

    Names are there to be copied, and therefore never broken.
    """
    table = Table(title="published scores, in percent", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True, overflow="ignore")
    table.add_column("teacher")
    if width >= _WIDE:
        table.add_column("method")
    table.add_column("published", no_wrap=True, justify="right")
    for recipe in chosen:
        told = [recipe.labels["teacher"], *([recipe.labels["setting"]] if width >= _WIDE else [])]
        table.add_row(recipe.name, *told, f"{METRICS[recipe.metric]} {recipe.score:.2f}")
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
    say(f"recipe: {write_text(path, text)}")


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
        say("Do not compare these scores: models, examples, steps or answers of this run were not the recipe's.")


DO: dict[str, Callable[[Any], None]] = {"list": show_list, "show": show, "copy": copy, "run": run_whole}
