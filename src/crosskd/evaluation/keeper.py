"""Answers of an evaluation, kept as they come, so that one that was broken off goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crosskd.errors import UsageError, list_differences
from crosskd.evaluation.results import SCORES, Evaluation
from crosskd.files import read_jsonl, write_jsonl

UNFINISHED = "unfinished.jsonl"
"""Holds, until the scores are written, the identity and a line for each batch that is answered."""


class AnswerKeeper:
    """Keeps the answers of an evaluation in a file of its folder.

    A line is written for each batch, with the seconds it took. A process that is killed leaves at most half of a line,
    which the next one drops.

    Args:
        folder: The output folder of the evaluation.
        identity: All that decides the answers and scores: answers of an earlier run count if it had the same.
        prepare: Called before the first answer: makes the folder and empties it if need be.

    Attributes:
        seconds_before: What the answers that were there already had taken.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], prepare: Callable[[], object]) -> None:
        self.identity = identity
        self.seconds_before = 0.0
        self._path = Path(folder) / UNFINISHED
        self._prepare = prepare
        self._last = 0.0

    def open(self) -> dict[int, str]:
        """Answers that an earlier run left, by the number of their example."""
        self._prepare()
        rows = read_jsonl(self._path, unfinished=True)[1:] if self._path.is_file() else []
        # whole lines only: what is appended must not continue half of one
        write_jsonl(self._path, [{"made_from": self.identity}, *rows])
        self.seconds_before = sum(row["seconds"] for row in rows)
        self._last = time.perf_counter()
        return {int(index): answer for row in rows for index, answer in row["answers"].items()}

    def keep(self, answers: Mapping[int, str]) -> None:
        """Write the answers of a batch."""
        now = time.perf_counter()
        row = {"seconds": now - self._last, "answers": answers}
        self._last = now
        with self._path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Remove the file, once the scores are written."""
        self._path.unlink(missing_ok=True)


def check_same(folder: str | Path, identity: Mapping[str, Any]) -> None:
    """Refuse to go on with, or to pass off, an evaluation of something else.

    Args:
        folder: The output folder; it need not hold anything.
        identity: What the evaluation would be made from now.

    Raises:
        UsageError: The folder holds an evaluation, finished or not, made from something else; names every field.
    """
    made = _identity_in(Path(folder))
    if made is None:
        return
    differing = [name for name, value in identity.items() if made.get(name) != value]
    if differing:
        raise UsageError(
            f"--resume {folder}: an evaluation of something else ({list_differences(made, identity, differing)})",
            expected="the same model, data and settings",
            fix="set them as they are there, give --overwrite, or another folder",
        )


def _identity_in(folder: Path) -> dict[str, Any] | None:
    if (folder / SCORES).is_file():
        return Evaluation.load(folder).settings.get("made_from", {})
    path = folder / UNFINISHED
    rows = read_jsonl(path, unfinished=True) if path.is_file() else []
    return rows[0].get("made_from", {}) if rows else None
