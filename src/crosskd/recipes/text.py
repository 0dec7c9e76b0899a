"""A recipe as a YAML file for ``crosskd distill --config``."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from crosskd.recipes.grid import METRICS, PAPER, Recipe


def recipe_text(recipe: Recipe) -> str:
    """The whole file: what it is and how to run it in a comment, the flags, and the key ``about``."""
    flags = yaml.safe_dump(dict(recipe.flags), sort_keys=False)
    about = yaml.safe_dump({"about": dict(recipe.about)}, sort_keys=False, width=118, allow_unicode=True)
    return f"{_header(recipe)}\n{flags}\n# facts for readers, not flags\n{about}"


def command_line(verb: str, flags: Mapping[str, Any]) -> list[str]:
    """A verb and its flags as the words of a command line."""
    return [verb, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]


def _header(recipe: Recipe) -> str:
    student, teacher, data, setting = (recipe.labels[key] for key in ("student", "teacher", "data", "setting"))
    answered = "answer" in recipe.about
    asks_teacher = answered or "teacher" in recipe.flags
    of = f" with teacher {teacher}" if asks_teacher else ""
    answers = "the teacher's answers" if answered else "labels"
    untouched = recipe.about.get("untouched_student")
    beside = f"teacher {recipe.about['teacher']['published_score']}"
    beside += f", untouched student {untouched['published_score']}" if untouched else ""
    sentences = [
        f"{student} learns {data}{of}: {setting}, trained on {answers}. Table {recipe.table} of {PAPER}.",
        f"Published {METRICS[recipe.metric]}: {recipe.score} ({beside}). crosskd has not reproduced it yet.",
    ]
    if "same_run_as" in recipe.about:
        sentences.append(f"The settings are those of {recipe.about['same_run_as']}: one run serves both.")
    commands = [command_line(verb, recipe.about[verb]) for verb in ("prepare", "answer") if verb in recipe.about]
    commands += [["distill", "--config", "THIS_FILE"], command_line("evaluate", recipe.about["evaluate"])]
    comment = [line for sentence in sentences for line in textwrap.wrap(sentence, 116)]
    comment += ["", "To run it, with this file as THIS_FILE:", "", *(f"  crosskd {shlex.join(c)}" for c in commands)]
    return "".join(f"# {line}".rstrip() + "\n" for line in comment)
