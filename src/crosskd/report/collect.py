"""What there is to report: evaluations, training logs and provenance found under some folders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeGuard

from crosskd.errors import UsageError
from crosskd.evaluation.results import SCORES, Evaluation
from crosskd.files import read_json, read_jsonl
from crosskd.training.run_files import PROVENANCE

METRICS = "metrics.jsonl"
# Numbers of a training log that are no terms of the loss.
_NO_TERMS = frozenset({"step", "epoch", "learning_rate", "grad_norm", "total_flos"})
_NO_TERM_STARTS = ("train_", "eval_runtime", "eval_samples", "eval_steps", "num_input_tokens")


@dataclass(frozen=True)
class TrainingLog:
    """One run's losses: for each term the steps at which it was logged, and its values."""

    name: str
    terms: dict[str, tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Collection:
    """Everything found; ``provenance`` pairs a folder's name with its record."""

    evaluations: list[Evaluation]
    logs: list[TrainingLog]
    provenance: list[tuple[str, dict[str, Any]]]


def collect(folders: Sequence[str | Path]) -> Collection:
    """Find every ``scores.json``, ``metrics.jsonl`` and ``provenance.json`` under ``folders``.

    Evaluations come in the order in which they were made, the rest by name.

    Args:
        folders: Folders to look into, at any depth.

    Returns:
        What was found.

    Raises:
        UsageError: A folder does not exist, a file is broken, or there is neither an evaluation nor a training log.
    """
    roots = [Path(folder) for folder in folders]
    for root in roots:
        if not root.is_dir():
            raise UsageError(f"there is no folder {root}")
    scored = sorted((_finished(path), path.as_posix(), path.parent) for _, path in _find(roots, SCORES))
    logs = [_read_log(_name(root, path), path) for root, path in _find(roots, METRICS)]
    records = [(_name(root, path), read_json(path)) for root, path in _find(roots, PROVENANCE)]
    found = Collection([Evaluation.load(folder) for *_, folder in scored], [log for log in logs if log.terms], records)
    if not found.evaluations and not found.logs:
        places = ", ".join(map(str, roots)) or "no folder"
        raise UsageError(f"nothing to report in {places}", expected=f"a {SCORES} or {METRICS} somewhere below")
    return found


def _find(roots: Sequence[Path], name: str) -> list[tuple[Path, Path]]:
    found: dict[Path, tuple[Path, Path]] = {}
    for root in roots:
        for path in sorted(root.rglob(name)):
            found.setdefault(path.resolve(), (root, path))
    return list(found.values())


def _finished(path: Path) -> str:
    """When an evaluation was made: as it says, or when its file was written."""
    settings = read_json(path).get("settings")
    stated = settings.get("finished") if isinstance(settings, dict) else None
    if isinstance(stated, str):
        return stated
    return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")


def _name(root: Path, path: Path) -> str:
    inside = path.parent.relative_to(root).as_posix()
    return root.resolve().name if inside == "." else inside


def _read_log(name: str, path: Path) -> TrainingLog:
    terms: dict[str, tuple[list[float], list[float]]] = {}
    for row in read_jsonl(path, unfinished=True):
        step = row.get("step")
        if not _is_number(step):
            continue
        for term, value in row.items():
            if _is_number(value) and term not in _NO_TERMS and not term.startswith(_NO_TERM_STARTS):
                steps, values = terms.setdefault(term, ([], []))
                steps.append(float(step))
                values.append(float(value))
    # A term that is 0 throughout is one that the run's method does not have.
    return TrainingLog(name, {term: series for term, series in terms.items() if any(series[1])})


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
