"""Predictions of several models, read from files and brought together example by example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crosskd.errors import UsageError
from crosskd.evaluation.results import PREDICTIONS, SCORES, Evaluation, Prediction, read_predictions
from crosskd.files import read_jsonl


def open_evaluation(source: str | Path | Sequence[Prediction]) -> Evaluation:
    """Read an evaluation for its predictions.

    Args:
        source: A folder that ``evaluate`` wrote, its ``predictions.jsonl`` (also where no ``scores.json`` stands beside
            it), or predictions.

    Raises:
        UsageError: A file is missing or broken.
    """
    if not isinstance(source, str | Path):
        return Evaluation("predictions", "", {}, list(source), len(source), 0.0)
    path = Path(source)
    file = path / PREDICTIONS if path.is_dir() else path
    if not path.exists():
        raise UsageError(f"there is no file or folder {path}", expected=f"a folder of `evaluate`, or a {PREDICTIONS}")
    if file.name == PREDICTIONS and (file.parent / SCORES).is_file():
        return Evaluation.load(file.parent)
    try:
        predictions = read_predictions(read_jsonl(file))
    except (KeyError, TypeError) as error:
        wrong = f"without {error}" if isinstance(error, KeyError) else f"with {error}"
        raise UsageError(f"{file} has a line {wrong}", expected="a predictions.jsonl of crosskd") from error
    name = file.resolve().parent.name if file.name == PREDICTIONS else file.stem
    return Evaluation(name, "", {}, predictions, len(predictions), 0.0)


def pair_predictions(
    first: Sequence[Prediction], second: Sequence[Prediction], *, names: tuple[str, str] = ("the first", "the second")
) -> tuple[list[Prediction], list[Prediction]]:
    """Bring the second predictions into the order of the first, example by example.

    Args:
        first: One prediction an example.
        second: Likewise.
        names: What errors call the two.

    Raises:
        UsageError: There are none, an id occurs twice, one side lacks an example, or the same id has other references.
    """
    by_id = {prediction.id: prediction for prediction in second}
    ids = {prediction.id for prediction in first}
    for side, unique, name in zip((first, second), (ids, by_id), names, strict=True):
        if not side:
            raise UsageError(f"{name} holds no predictions")
        if len(unique) != len(side):
            raise UsageError(f"{name} holds an id twice", expected="one prediction an example")
    if ids != set(by_id):
        only = [sorted(ids - set(by_id)), sorted(set(by_id) - ids)]
        counts = ", ".join(f"{len(ids)} only in {name}" for ids, name in zip(only, names, strict=True))
        raise UsageError(
            f"the two models answered different examples: {counts}, such as {(only[0] or only[1])[0]!r}",
            fix="evaluate both on the same split",
        )
    paired = [by_id[prediction.id] for prediction in first]
    for one, other in zip(first, paired, strict=True):
        if one.answers != other.answers:
            raise UsageError(
                f"example {one.id!r} has other references in {names[1]}", fix="evaluate both on the same data"
            )
    return list(first), paired
