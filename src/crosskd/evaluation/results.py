"""What an evaluation found, and the files that keep it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crosskd import __version__
from crosskd.errors import UsageError
from crosskd.files import read_json, read_jsonl, write_json, write_jsonl

SCORES = "scores.json"
PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class Prediction:
    """One answered example.

    Attributes:
        id: The example's.
        question: May be empty.
        answers: All references.
        prediction: The model's answer.
        scores: Scores of this answer that took another model to compute, in [0, 1] (BERTScore); others follow from
            the texts.
    """

    id: str
    question: str
    answers: list[str]
    prediction: str
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        name: What tables call the model.
        task: Name of the task.
        scores: Means over the examples by metric, in [0, 1]: ``f1``, ``exact_match``, ``rouge1``, ``rouge2``,
            ``rougeL``, ``rougeLsum``, and ``bert_score_*`` if asked for.
        predictions: One for each example, in their order; empty where the predictions were not kept.
        examples: How many were answered.
        seconds: Wall-clock time of the generation alone.
        number_few_shot: Shots in the prompt.
        truncated_examples: Examples whose context was shortened to fit.
        settings: What else decides the scores (model, prompt style, limits, dtype, ``rouge_aggregate``,
            ``rouge_variant``, ``references``, encoder of BERTScore, ...), and the task's ``metrics``.
        crosskd_version: Version that computed them.
    """

    name: str
    task: str
    scores: dict[str, float]
    predictions: list[Prediction]
    examples: int
    seconds: float
    number_few_shot: int = 0
    truncated_examples: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    crosskd_version: str = __version__

    def computed_by(self, metric: str) -> str:
        """How a score came about, in words, for those that can be computed in several ways; else an empty string.

        Two scores of the same metric can be compared where this is the same.
        """
        first = "first reference only" if self.settings.get("references", "all") == "first" else ""
        if metric.startswith("rouge"):
            plain = self.settings.get("rouge_variant", "standard") == "plain"
            how = ", without stemmer and sentence split" if plain else ""
            return (first or f"{self.settings.get('rouge_aggregate', 'best')} of the references") + how
        encoder = self.settings.get("bert_score")
        if metric.startswith("bert_score") and encoder:
            how = f"{encoder['model']}, layer {encoder['layer']}, bert-score {encoder['version']}"
            return f"{how}, {first}" if first else how
        return first

    def save(self, folder: str | Path) -> Path:
        """Write ``predictions.jsonl`` and then ``scores.json`` into ``folder``, each in one step.

        Other files of the folder stay. ``scores.json`` comes last: where it stands, the evaluation is complete.

        Returns:
            The folder.
        """
        place = Path(folder)
        record = asdict(self)
        rows = record.pop("predictions")
        write_jsonl(
            place / PREDICTIONS, ({key: row[key] for key in row if key != "scores" or row[key]} for row in rows)
        )
        write_json(place / SCORES, record)
        return place

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Read what :meth:`save` wrote; a missing ``predictions.jsonl`` gives no predictions.

        Raises:
            UsageError: ``scores.json`` is missing, or a file lacks what it should hold.
        """
        place = Path(folder)
        record = read_json(place / SCORES)
        rows = read_jsonl(place / PREDICTIONS) if (place / PREDICTIONS).is_file() else []
        known = {name: value for name, value in record.items() if name in cls.__dataclass_fields__}
        try:
            _check_record(known)
            return cls(**{**known, "predictions": read_predictions(rows)})
        except (TypeError, KeyError) as error:
            raise UsageError(f"{place} does not hold an evaluation: {error}") from error


_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "name": (str, "text"), "task": (str, "text"), "scores": (dict, "an object of numbers"),
    "examples": (int, "a number"), "seconds": ((int, float), "a number"), "number_few_shot": (int, "a number"),
    "truncated_examples": (int, "a number"), "settings": (dict, "an object"),
}  # fmt: skip


def _check_record(record: Mapping[str, Any]) -> None:
    """Refuse a ``scores.json`` whose values are of other types than we wrote (a TypeError)."""
    for name, (kind, words) in _KINDS.items():
        if name in record and (not isinstance(record[name], kind) or isinstance(record[name], bool)):
            raise TypeError(f"{name} is {record[name]!r:.40}, not {words}")
    _check_numbers(record.get("scores", {}))


def _check_numbers(scores: Mapping[str, Any]) -> None:
    for name, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise TypeError(f"score {name} is {value!r:.40}, not a number")


def read_predictions(rows: Iterable[Mapping[str, Any]]) -> list[Prediction]:
    """Rows of ``predictions.jsonl`` as predictions; what else they hold is ignored.

    Raises:
        KeyError: A row lacks a key.
        TypeError: A row's ``answers`` are no list of texts, its ``prediction`` or ``question`` is no text, or its
            ``scores`` are no numbers.
    """
    return [_read_prediction(row) for row in rows]


def _read_prediction(row: Mapping[str, Any]) -> Prediction:
    answers, text, scores = row["answers"], row["prediction"], row.get("scores") or {}
    if not isinstance(answers, list) or not isinstance(text, str):
        raise TypeError("answers that are no list" if isinstance(text, str) else "a prediction that is no text")
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise TypeError("answers that are not all text" if answers else "answers that are an empty list")
    if not isinstance(row["question"], str):
        raise TypeError("a question that is no text")
    if not isinstance(scores, dict):
        raise TypeError("scores that are no object")
    _check_numbers(scores)
    return Prediction(str(row["id"]), row["question"], answers, text, dict(scores))
