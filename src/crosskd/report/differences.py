"""How each model differs from the baseline, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crosskd.errors import UsageError
from crosskd.evaluation.compare import Difference, compare_predictions
from crosskd.evaluation.results import Evaluation
from crosskd.report.tables import SCORE_COLUMNS


@dataclass(frozen=True)
class Whisker:
    """A difference and its interval as places on a horizontal axis, in percent of the axis' width."""

    difference: Difference
    point: float
    low: float
    high: float
    zero: float


@dataclass(frozen=True)
class DifferenceRow:
    """One model against the baseline; a whisker for each column of the results."""

    name: str
    whiskers: list[Whisker]


def difference_rows(baseline: Evaluation, evaluations: Sequence[Evaluation]) -> tuple[list[DifferenceRow], list[str]]:
    """Compare all of ``evaluations`` but ``baseline`` with it.

    Returns:
        A row for each evaluation whose predictions pair up with the baseline's, all on one axis a column; and the
        names of the others.
    """
    metrics = [metric for metric, _ in SCORE_COLUMNS]
    found: list[tuple[str, list[Difference]]] = []
    unpaired: list[str] = []
    for each in evaluations:
        if each is baseline:
            continue
        try:
            compared = compare_predictions(baseline.predictions, each.predictions, metrics=metrics)
        except UsageError:
            unpaired.append(each.name)
        else:
            found.append((each.name, [compared[metric] for metric in metrics]))
    axes = [_axis([differences[column] for _, differences in found]) for column in range(len(metrics))]
    rows = [
        DifferenceRow(name, [_whisker(difference, *axis) for difference, axis in zip(differences, axes, strict=True)])
        for name, differences in found
    ]
    return rows, unpaired


def _axis(differences: Sequence[Difference]) -> tuple[float, float]:
    """Ends of an axis that shows zero and all intervals, with some air."""
    low = min([0.0, *(each.low for each in differences)])
    high = max([0.0, *(each.high for each in differences)])
    air = 0.06 * (high - low) or 0.01
    return low - air, high + air


def _whisker(difference: Difference, start: float, end: float) -> Whisker:
    def place(value: float) -> float:
        return round(100 * (value - start) / (end - start), 2)

    return Whisker(difference, place(difference.difference), place(difference.low), place(difference.high), place(0.0))
