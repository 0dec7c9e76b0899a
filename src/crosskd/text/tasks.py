"""Tasks: what a model is told, how a request looks, and the examples it may be shown first."""

from __future__ import annotations

import logging
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from crosskd.errors import UsageError, did_you_mean
from crosskd.files import parse_yaml

logger = logging.getLogger(__name__)

FIELDS = ("title", "context", "question")
METRICS = ("f1", "exact_match", "rouge", "bert_score")
TASK_KEYS = ("name", "system", "format", "shots", "metrics")
USUAL_SHOTS = 5
"""Shots in a teacher's prompt unless a number is given."""
SHOT_KEYS = ("title", "context", "question", "answer")
ALIASES = {"qed": "qa", "fairytaleqa": "qa_generative", "dialogsum": "summary_dialogue", "pubmedqa": "qa_medical"}
"""Data sets to the tasks that they are for; `load_task` takes these names too."""


@dataclass(frozen=True)
class Shot:
    """An example with its answer, shown to the model before the request.

    Attributes:
        context: Passage, dialogue or document.
        answer: The answer that the model should imitate.
        question: The question; empty for summaries.
        title: Title of the passage; may be empty.
    """

    context: str
    answer: str
    question: str = ""
    title: str = ""


@dataclass(frozen=True)
class Task:
    """A task: system text, request format, shots and metrics.

    Attributes:
        name: What the task is called.
        system: Instruction for chat models and for few-shot prompts.
        request_format: Text with the placeholders ``{title}``, ``{context}`` and ``{question}`` (``{{`` and ``}}`` are
            braces); it ends in the answer cue.
        shots: Examples that may be put before a request, in this order.
        metrics: Scores of interest, the most telling first, out of `METRICS`.
        answer_cue: The fixed text at the end of the format, ``"Answer:"``; taken from the format where it is empty.

    Raises:
        UsageError: The format has no placeholder, an unknown one, or no fixed text at its end; a metric is unknown.
    """

    name: str
    system: str
    request_format: str
    shots: tuple[Shot, ...] = ()
    metrics: tuple[str, ...] = ("f1", "exact_match", "rouge")
    answer_cue: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "request_format", self.request_format.rstrip())
        cue = _check_format(self.name, self.request_format)
        object.__setattr__(self, "answer_cue", self.answer_cue or cue)
        if not cue.endswith(self.answer_cue):
            raise UsageError(
                f"task {self.name}: answer_cue", got=self.answer_cue, expected=f"the format's end, {cue!r}"
            )
        for metric in self.metrics:
            if metric not in METRICS:
                raise UsageError(f"task {self.name}: unknown metric {metric!r}", fix=did_you_mean(metric, METRICS))

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Placeholders of the format, each once, in the order of `FIELDS`."""
        return tuple(name for name in FIELDS if name in _placeholders(self.request_format))

    def number_of_shots(self, wanted: int | None, *, tell: bool = True) -> int:
        """How many shots a prompt gets: as many as are wanted; if nobody said, `USUAL_SHOTS` or all that there are.

        Args:
            wanted: The number, or None for the usual one.
            tell: Whether the log says that the task has fewer than the usual number.

        Raises:
            UsageError: More are wanted than the task has, or fewer than none.
        """
        if wanted is None:
            if tell and len(self.shots) < USUAL_SHOTS:
                logger.info(
                    "task %s has %d shots: prompts get these, not %d", self.name, len(self.shots), USUAL_SHOTS
                )  # fmt: skip
            return min(USUAL_SHOTS, len(self.shots))
        if not 0 <= wanted <= len(self.shots):
            fix = f"give at most {len(self.shots)}, or leave it out" if wanted > 0 else None
            expected = f"0 to {len(self.shots)}, the shots of task {self.name}"
            raise UsageError("--number_few_shot", got=wanted, expected=expected, fix=fix)
        return wanted

    def request(self, fields: Mapping[str, Any]) -> str:
        """Fill the request format in; a line whose fields are all empty is left out.

        Args:
            fields: ``title``, ``context`` and ``question``; a missing one or None counts as empty. Braces in them stay
                as they are. Other keys are ignored.

        Returns:
            The request, from the first line of the format to the answer cue.

        Example:
            >>> TASKS["qa"].request({"context": "Ann lives in Rome.", "question": "Where is Ann?"})
            'Context: Ann lives in Rome.\\nQuestion: Where is Ann?\\nAnswer:'
        """
        values = {name: str(fields.get(name) or "") for name in FIELDS}
        lines = []
        for line in self.request_format.split("\n"):
            names = _placeholders(line)
            if not names or any(values[name] for name in names):
                lines.append(line.format_map(values))
        return "\n".join(lines)


def load_task(name_or_path: str | Path) -> Task:
    """Find a task by its name, or read a user's own from a YAML file.

    The file has the keys ``system`` and ``format``, and may have ``name`` (default: the file's name), ``shots`` (a
    list of mappings with ``answer`` and the fields of the format; ``title`` may be left out) and ``metrics``.

    Args:
        name_or_path: A name out of `TASKS` or `ALIASES`, in upper or lower case, or the path of a file that ends in
            ``.yaml`` or ``.yml``.

    Returns:
        The task.

    Raises:
        UsageError: The name is unknown, the file is missing or not YAML, a key is unknown or missing, the format has no
            placeholder or no answer cue, or a shot lacks a field that the format names.
    """
    name = str(name_or_path)
    known = ALIASES.get(name.lower(), name.lower())
    if known in TASKS:
        return TASKS[known]
    if not name.lower().endswith((".yaml", ".yml")):
        expected = "the name of a task, or a .yaml file with one of your own"
        fix = did_you_mean(name.lower(), [*TASKS, *ALIASES])
        raise UsageError(f"unknown task {name!r}", expected=expected, fix=fix)
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"there is no task file {name}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"task file {name} is not a text file in UTF-8") from error
    return _parse_task(text, name, default_name=Path(name).stem)


def _parse_task(text: str, source: str, default_name: str) -> Task:
    values = _mapping(_parse_yaml(text, source), TASK_KEYS, f"task file {source}")
    for key in ("system", "format"):
        if key not in values:
            raise UsageError(f"task file {source} has no {key!r}", expected="the keys " + ", ".join(TASK_KEYS))
    name, system, request_format = (
        _text(values.get(key, default), f"task file {source}: {key}")
        for key, default in (("name", default_name), ("system", ""), ("format", ""))
    )
    metrics = values.get("metrics", list(Task.metrics))
    shots = values.get("shots") or []
    for key, value in (("metrics", metrics), ("shots", shots)):
        if not isinstance(value, list):
            raise UsageError(f"task file {source}: {key}", got=type(value).__name__, expected="a list")
    if not metrics:
        raise UsageError(f"task file {source}: metrics", got="none", expected="at least one of " + ", ".join(METRICS))
    task = Task(name, system.strip(), request_format, metrics=tuple(map(str, metrics)))
    read = tuple(_shot(shot, task.fields, f"task file {source}: shot {n}") for n, shot in enumerate(shots, start=1))
    return Task(task.name, task.system, task.request_format, read, task.metrics)


def _shot(value: object, fields: tuple[str, ...], where: str) -> Shot:
    given = {key: _text(text, f"{where}: {key}") for key, text in _mapping(value, SHOT_KEYS, where).items()}
    for key in ("answer", *fields):
        if key != "title" and not given.get(key, "").strip():
            raise UsageError(f"{where} has no {key!r}", expected="text for " + ", ".join([*fields, "answer"]))
    return Shot(**{"context": "", **given})


def _parse_yaml(text: str, source: str) -> object:
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise UsageError(f"task file {source}{place} is not YAML: {problem}") from error


def _mapping(value: object, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(where, got=type(value).__name__, expected="a mapping with the keys " + ", ".join(keys))
    for key in value:
        if key not in keys:
            raise UsageError(f"{where}: unknown key {key!r}", fix=did_you_mean(str(key), keys))
    return value


def _text(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(where, got=type(value).__name__, expected="text (put it in quotes)")
    return str(value)


def _placeholders(text: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]


def _check_format(task: str, text: str) -> str:
    """The answer cue of a request format, once the format is known to be right."""
    where = f"task {task}: format"
    try:
        parts = [part for line in text.split("\n") for part in string.Formatter().parse(line)]
    except ValueError as error:
        raise UsageError(where, got=str(error), fix="write {{ and }} for braces that are no placeholders") from error
    names = [name for _, name, _, _ in parts if name is not None]
    if not names:
        raise UsageError(f"{where} has no placeholder", expected="{title}, {context} or {question} in it")
    for _, name, specification, conversion in parts:
        if name is not None and (name not in FIELDS or specification or conversion):
            raise UsageError(f"{where}: unknown placeholder {{{name}}}", fix=did_you_mean(name, FIELDS))
    cue = text.split("\n")[-1]
    last = list(string.Formatter().parse(cue))
    cue = last[-1][0].strip() if last and last[-1][1] is None else ""
    if not cue:
        raise UsageError(f"{where} ends in a placeholder", expected="a cue at its end, such as 'Answer:'")
    return cue


def _built_in() -> dict[str, Task]:
    folder = resources.files("crosskd.text") / "task_files"
    names = ("qa", "qa_generative", "qa_medical", "summary_dialogue", "summary")
    files = {name: folder / f"{name}.yaml" for name in names}
    return {name: _parse_task(file.read_text(encoding="utf-8"), str(file), name) for name, file in files.items()}


TASKS: dict[str, Task] = _built_in()
"""The named tasks: ``qa``, ``qa_generative``, ``qa_medical``, ``summary_dialogue`` and ``summary``."""
