"""Paired bootstrap: how far the choice of examples moves the difference of two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crosskd.errors import UsageError

_CHUNK = 4_000_000  # resampled entries held at once: 32 MB of indices


@dataclass(frozen=True)
class Difference:
    """Mean difference of two models over paired examples, second minus first.

    Attributes:
        first: Mean score of the first model.
        second: Mean score of the second model.
        low: Lower end of the interval.
        high: Upper end of the interval.
        examples: Number of pairs.
        confidence: Share of intervals made this way that cover the true difference, in (0, 1).
        resamples: Bootstrap resamples drawn.
        seed: Seed they were drawn with.
    """

    first: float
    second: float
    low: float
    high: float
    examples: int
    confidence: float
    resamples: int
    seed: int

    @property
    def difference(self) -> float:
        """Second minus first, in [-1, 1]."""
        return self.second - self.first

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
    ones, others = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    means = _resampled_means(others - ones, resamples, seed)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Difference(
        float(ones.mean()), float(others.mean()), float(low), float(high), len(ones), confidence, resamples, seed
    )


def _resampled_means(differences: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    count = len(differences)
    step = max(1, _CHUNK // count)
    chunks = [
        differences[generator.integers(0, count, size=(min(step, resamples - start), count))].mean(axis=1)
        for start in range(0, resamples, step)
    ]
    return np.concatenate(chunks)
