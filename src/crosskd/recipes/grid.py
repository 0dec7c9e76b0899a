"""One recipe for each score that the paper published, made from ``grid.yaml``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from crosskd.errors import UsageError, did_you_mean

PAPER = "arXiv 2412.14528"
METRICS = {"f1": "F1", "rougeLsum": "ROUGE-Lsum"}
"""The scores that the paper reports, as `crosskd evaluate` names them, and as readers do."""


@dataclass(frozen=True)
class Recipe:
    """One experiment of the paper: the flags of its training, and facts for readers.

    Attributes:
        name: Unique: ``"table1/opt-350m/qed/multilevel_ot"``.
        table: Number of the table in the paper.
        student, teacher, data, setting: Keys of the grid, in the words of the names.
        labels: The same four as the paper writes them.
        metric: Which score was published: a key of `METRICS`.
        score: The published score, in percent.
        flags: Flags of ``crosskd distill``.
        about: Facts for readers; ``prepare``, ``answer`` and ``evaluate`` in it are flags of those verbs.
    """

    name: str
    table: int
    student: str
    teacher: str
    data: str
    setting: str
    labels: Mapping[str, str]
    metric: str
    score: float
    flags: Mapping[str, Any]
    about: Mapping[str, Any]


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name, in the order of the paper's tables."""
    grid = yaml.safe_load((resources.files("crosskd.recipes") / "grid.yaml").read_text(encoding="utf-8"))
    found: dict[str, Recipe] = {}
    runs: dict[str, str] = {}
    for cell in _cells(grid):
        name, flags = cell["name"], _flags(grid, cell)
        # settings that two tables share need one run only
        first = runs.setdefault(yaml.safe_dump(flags), name)
        flags["output_dir"] = f"runs/{name}"
        labels = {key: grid[kind][cell[key]]["label"] for key, kind in _KINDS.items()}
        found[name] = Recipe(
            name,
            cell["table"],
            *(cell[key] for key in _KINDS),
            labels=labels,
            metric=grid["data"][cell["data"]]["metric"],
            score=cell["score"],
            flags=flags,
            about=_about(grid, cell, flags, None if first == name else first),
        )
    return found


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UsageError: There is none; the nearest name is suggested.
    """
    known = recipes()
    if name not in known:
        suggestion = did_you_mean(name, known)
        near = suggestion.startswith("did you mean")
        raise UsageError("recipe", got=name, fix=suggestion if near else "`crosskd recipes list` shows the names")
    return known[name]


_KINDS = {"student": "students", "teacher": "teachers", "data": "data", "setting": "settings"}
_ALONE = ("sft", "seqkd")  # methods that ask no teacher while they train
_DATA_ORDER = ("qed", "fairytaleqa", "dialogsum")


def _cells(grid: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every published score, with the student, teacher, data and setting that it belongs to."""
    for table in grid["tables"]:
        ((axis, values),) = table["across"].items()
        shared = {key: table[key] for key in (*_KINDS, "supervision") if key in table}
        for row in table["scores"]:
            names, scores = row[: len(table["rows"])], row[len(table["rows"]) :]
            for value, score in zip(values, scores, strict=True):
                cell = {**shared, **dict(zip(table["rows"], names, strict=True)), axis: value}
                name = table["name"].format(**cell)
                yield {**cell, "name": name, "table": table["number"], "title": table["title"], "score": score}


def _flags(grid: dict[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    student, teacher, data, setting = (grid[kind][cell[key]] for key, kind in _KINDS.items())
    method = setting["flags"]["method"]
    flags: dict[str, Any] = {"student": student["model"]}
    if method not in _ALONE:
        flags |= {"teacher": teacher["model"], "teacher_dtype": "bfloat16", "number_few_shot": data["number_few_shot"]}
    flags |= {"data": _folder(cell, answered=_is_answered(cell, method)), "task": data["task"]}
    flags["supervision"] = "teacher" if _is_answered(cell, method) else "labels"
    return {**flags, **setting["flags"], **grid["training"]["flags"]}


def _is_answered(cell: Mapping[str, Any], method: str) -> bool:
    """Whether the student learns the teacher's answers: in a table without labels, and always by SeqKD."""
    return cell["supervision"] == "teacher" or method == "seqkd"


def _folder(cell: Mapping[str, Any], *, answered: bool) -> str:
    return f"data/{cell['data']}-{cell['teacher']}" if answered else f"data/{cell['data']}"


def _about(grid: dict[str, Any], cell: Mapping[str, Any], flags: Mapping[str, Any], twin: str | None) -> dict[str, Any]:
    student, teacher, data, setting = (grid[kind][cell[key]] for key, kind in _KINDS.items())
    column = _DATA_ORDER.index(cell["data"])
    plain = _folder(cell, answered=False)
    task = {"task": data["task"]}
    about: dict[str, Any] = {
        "name": cell["name"],
        "paper": PAPER,
        "table": cell["table"],
        "title": cell["title"],
        "row": f"{student['label']}, {data['label']}, {setting['label']}",
        "published": {"metric": data["metric"], "score": cell["score"]},
        "teacher": {"name": teacher["label"], "published_score": teacher["scores"][column]},
    }
    if cell["student"] in grid["untouched"]:
        about["untouched_student"] = {"published_score": grid["untouched"][cell["student"]][column]}
    if twin:
        about["same_run_as"] = twin
    about["prepare"] = {"data": data["source"], **task, "output": plain}
    if flags["supervision"] == "teacher":
        shots = {"number_few_shot": data["number_few_shot"]}
        about["answer"] = {"teacher": teacher["model"], "data": plain, **task, **shots, "output": flags["data"]}
    run = flags["output_dir"]
    scores = {
        **grid["evaluation"]["flags"],
        **data.get("evaluate", {}),
        "split": data["split"],
        "output": f"{run}/scores",
    }
    about["evaluate"] = {"model": run, "data": plain, **task, **scores}
    parts = [setting, student, teacher, data, grid["training"]]
    about["notes"] = [note for part in parts for note in part.get("notes", [])]
    return about
