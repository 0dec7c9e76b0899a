"""Is one model better than another on the same examples? Differences with paired bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crosskd.errors import UsageError
from crosskd.evaluation.metrics import metric_scores
from crosskd.evaluation.results import PREDICTIONS, Prediction, read_predictions
from crosskd.files import read_jsonl

_CHUNK = 4_000_000  # resampled entries held at once: 32 MB of indices


@dataclass(frozen=True)
class Difference:
    """Mean difference of two models over paired examples, second minus first.

    Attributes:
        difference: The mean, in [-1, 1].
        low: Lower end of the interval.
        high: Upper end of the interval.
        examples: Number of pairs.
        confidence: Share of intervals made this way that cover the true difference, in (0, 1).
        resamples: Bootstrap resamples drawn.
        seed: Seed they were drawn with.
    """

    difference: float
    low: float
    high: float
    examples: int
    confidence: float
    resamples: int
    seed: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Percentile interval of ``mean(second) - mean(first)`` by resampling examples.

    Both models are scored on the same examples, so examples are drawn in pairs: what makes an example hard for both
    cancels. The interval tells how far the choice of examples moves the difference; it knows nothing of training seeds.

    Args:
        first: N scores of the first model, one an example.
        second: N scores of the second model on the same examples.
        resamples: Number of resamples, at least 1.
        confidence: In (0, 1).
        seed: Seed of the resampling; the same seed gives the same interval.

    Returns:
        The difference and its interval.

    Raises:
        UsageError: The lengths differ, nothing was given, or a number is out of its range.
    """
    if len(first) != len(second):
        raise UsageError(f"{len(first)} scores of the first model, {len(second)} of the second", expected="pairs")
    if not first:
        raise UsageError("there are no examples to compare")
    if resamples < 1:
        raise UsageError("resamples", got=resamples, expected="at least 1")
    if not 0 < confidence < 1:
        raise UsageError("confidence", got=confidence, expected="between 0 and 1")
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    means = _resampled_means(differences, resamples, seed)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Difference(float(differences.mean()), float(low), float(high), len(differences), confidence, resamples, seed)


def compare_predictions(
    first: str | Path | Sequence[Prediction],
    second: str | Path | Sequence[Prediction],
    *,
    metrics: Sequence[str] = ("f1", "exact_match", "rougeLsum"),
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compare two models by their predictions on the same examples.

    Args:
        first: The first model's ``predictions.jsonl``, the folder it is in, or the predictions.
        second: The second model's.
        metrics: ``f1``, ``exact_match``, ``rouge1``, ``rouge2``, ``rougeL``, ``rougeLsum``.
        resamples: As for :func:`paired_bootstrap`, like ``confidence`` and ``seed``.
        confidence: See there.
        seed: See there.

    Returns:
        For each metric, the second model's mean minus the first's, with its interval.

    Raises:
        UsageError: The examples of the two differ (which, is said), a file is missing or broken, or a metric is
            unknown.
    """
    ones, others = pair_predictions(_predictions(first), _predictions(second))
    references = [prediction.answers for prediction in ones]
    answers = [[prediction.prediction for prediction in side] for side in (ones, others)]
    return {
        metric: paired_bootstrap(
            metric_scores(metric, answers[0], references),
            metric_scores(metric, answers[1], references),
            resamples=resamples,
            confidence=confidence,
            seed=seed,
        )
        for metric in metrics
    }


def pair_predictions(
    first: Sequence[Prediction], second: Sequence[Prediction]
) -> tuple[list[Prediction], list[Prediction]]:
    """Bring the second predictions into the order of the first, example by example.

    Raises:
        UsageError: An id occurs twice, one side lacks an example, or the same id has other references.
    """
    by_id = {prediction.id: prediction for prediction in second}
    ids = {prediction.id for prediction in first}
    for side, unique, name in ((first, ids, "first"), (second, by_id, "second")):
        if len(unique) != len(side):
            raise UsageError(f"the {name} predictions hold an id twice", expected="one prediction an example")
    if ids != set(by_id):
        only = [sorted(ids - set(by_id)), sorted(set(by_id) - ids)]
        raise UsageError(
            "the two models answered different examples: "
            f"{len(only[0])} only the first, {len(only[1])} only the second, such as {(only[0] or only[1])[0]!r}",
            fix="evaluate both on the same split",
        )
    paired = [by_id[prediction.id] for prediction in first]
    for one, other in zip(first, paired, strict=True):
        if one.answers != other.answers:
            raise UsageError(
                f"example {one.id!r} has other references in the second predictions",
                fix="evaluate both on the same data",
            )
    return list(first), paired


def _predictions(source: str | Path | Sequence[Prediction]) -> list[Prediction]:
    if not isinstance(source, str | Path):
        return list(source)
    path = Path(source) / PREDICTIONS if Path(source).is_dir() else Path(source)
    try:
        return read_predictions(read_jsonl(path))
    except KeyError as error:
        raise UsageError(f"{path} has a line without {error}", expected="a predictions.jsonl of crosskd") from error


def _resampled_means(differences: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    count = len(differences)
    step = max(1, _CHUNK // count)
    chunks = [
        differences[generator.integers(0, count, size=(min(step, resamples - start), count))].mean(axis=1)
        for start in range(0, resamples, step)
    ]
    return np.concatenate(chunks)
