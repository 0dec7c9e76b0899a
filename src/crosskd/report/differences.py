"""How each model differs from the baseline, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crosskd.errors import UsageError
from crosskd.evaluation.compare import Difference, pair_evaluations
from crosskd.evaluation.results import Evaluation
from crosskd.evaluation.score_names import shown_scores


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
    """One model against the baseline; a whisker for each column of the results, or None where there is none."""

    name: str
    whiskers: list[Whisker | None]

    @property
    def sample(self) -> Difference | None:
        """Any of the differences: all have the same number of examples and resamples."""
        return next((whisker.difference for whisker in self.whiskers if whisker), None)


def difference_rows(baseline: Evaluation, evaluations: Sequence[Evaluation]) -> tuple[list[DifferenceRow], list[str]]:
    """Compare all of ``evaluations`` but ``baseline`` with it.

    Returns:
        A row for each evaluation whose predictions pair up with the baseline's, all on one axis a column; and the
        names of the others. A score that the two computed in different ways, or that one lacks, has no difference.
    """
    metrics = shown_scores(evaluations)
    found: list[tuple[str, dict[str, Difference]]] = []
    unpaired: list[str] = []
    for each in evaluations:
        if each is baseline:
            continue
        alike = [metric for metric in metrics if _can_compare(metric, baseline, each)]
        try:
            found.append((each.name, pair_evaluations([baseline, each], metrics=alike).differences()[0]))
        except UsageError:
            unpaired.append(each.name)
    axes = {metric: _axis([compared[metric] for _, compared in found if metric in compared]) for metric in metrics}
    rows = [
        DifferenceRow(name, [_whisker(compared[m], *axes[m]) if m in compared else None for m in metrics])
        for name, compared in found
    ]
    return rows, unpaired


def _can_compare(metric: str, baseline: Evaluation, other: Evaluation) -> bool:
    if baseline.computed_by(metric) != other.computed_by(metric):
        return False
    rows = [*baseline.predictions, *other.predictions]
    return not metric.startswith("bert_score") or all(metric in row.scores for row in rows)


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
