"""Is one model better than another on the same examples? Differences with paired bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from crosskd.errors import UsageError
from crosskd.evaluation.bootstrap import Difference, paired_bootstrap
from crosskd.evaluation.metrics import (
    ROUGE_TYPES,
    ROUGE_VARIANTS,
    Aggregate,
    RougeVariant,
    exact_match_scores,
    f1_scores,
    rouge_scores,
)
from crosskd.evaluation.pairing import open_evaluation, pair_predictions
from crosskd.evaluation.results import Evaluation, Prediction
from crosskd.evaluation.score_names import score_name, shown_scores

__all__ = [
    "Difference",
    "Paired",
    "compare_predictions",
    "example_scores",
    "open_evaluation",
    "pair_evaluations",
    "pair_predictions",
    "paired_bootstrap",
]


@dataclass(frozen=True)
class Paired:
    """Several models' answers to the same examples, in one order, with a score an example.

    Attributes:
        evaluations: The models', the one that the others are compared with first; N predictions each.
        scores: For each evaluation N scores in [0, 1] by metric.
        rouge_aggregate: Over the references of an example, for ROUGE.
        rouge_variant: ROUGE with stemmer and sentences (``"standard"``), or without both (``"plain"``).
    """

    evaluations: list[Evaluation]
    scores: list[dict[str, list[float]]]
    rouge_aggregate: Aggregate
    rouge_variant: RougeVariant

    @property
    def notes(self) -> list[str]:
        """How scores were computed that can be in several ways."""
        notes: list[str] = []
        way = self.evaluations[0].computed_by("f1")
        if way and any(metric in ("f1", "exact_match") for metric in self.scores[0]):
            notes.append(f"F1 and EM: {way}.")
        if any(metric in ROUGE_TYPES for metric in self.scores[0]):
            how = {
                **self.evaluations[0].settings,
                "rouge_aggregate": self.rouge_aggregate,
                "rouge_variant": self.rouge_variant,
            }
            notes.append(f"ROUGE: {replace(self.evaluations[0], settings=how).computed_by('rouge')}.")
        measured = [metric for metric in self.scores[0] if metric.startswith("bert_score")]
        return [*notes, *(f"BERTScore: {self.evaluations[0].computed_by(metric)}." for metric in measured[:1])]

    def differences(
        self, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
    ) -> list[dict[str, Difference]]:
        """How each evaluation but the first differs from it, by metric; arguments as for `paired_bootstrap`."""
        base, *others = self.scores
        return [
            {
                metric: paired_bootstrap(base[metric], scores, resamples=resamples, confidence=confidence, seed=seed)
                for metric, scores in other.items()
            }
            for other in others
        ]

    def most_different(self, metric: str, count: int) -> list[int]:
        """Places of the ``count`` examples where any model's score differs most from the first's, largest first."""
        base, *others = [scores[metric] for scores in self.scores]
        gaps = [max(abs(other[index] - base[index]) for other in others) for index in range(len(base))]
        return sorted(range(len(gaps)), key=lambda index: -gaps[index])[:count]


def pair_evaluations(
    evaluations: Sequence[Evaluation],
    *,
    metrics: Sequence[str] | None = None,
    rouge_aggregate: Aggregate | None = None,
    rouge_variant: RougeVariant | None = None,
    labels: Sequence[str] | None = None,
) -> Paired:
    """Bring the predictions of several evaluations together, example by example, and score them in one way.

    Args:
        evaluations: At least two.
        metrics: Names or short names of scores (:mod:`crosskd.evaluation.score_names`); None takes what tables show,
            the task's most telling first, with BERTScore where all have it.
        rouge_aggregate: Over the references of an example, for ROUGE; None takes the one that they were evaluated with.
        rouge_variant: ``"standard"`` or ``"plain"`` ROUGE; None likewise.
        labels: What errors call the evaluations; None takes "the first", "the second", ...

    Returns:
        The pairs. F1, exact match and ROUGE are computed again from the texts, BERTScore is taken from the files.

    Raises:
        UsageError: An evaluation without predictions; other examples or references than the first's; an unknown metric;
            ROUGE with other aggregates or variants, or BERTScore of other encoders or absent from an evaluation.
    """
    names = list(labels or ("the first", "the second", *(f"the {n}th" for n in range(3, len(evaluations) + 1))))
    first = evaluations[0].predictions
    pairs = [
        pair_predictions(first, each.predictions, names=(names[0], name))
        for each, name in zip(evaluations[1:], names[1:], strict=True)
    ]
    together = [evaluations[0], *(replace(e, predictions=p) for e, (_, p) in zip(evaluations[1:], pairs, strict=True))]
    chosen = list(dict.fromkeys(map(score_name, metrics))) if metrics is not None else _usual_metrics(together)
    _check_encoders(chosen, together)
    aggregate = cast(Aggregate, rouge_aggregate or _common("rouge_aggregate", ("best", "mean"), chosen, together))
    variant = cast(RougeVariant, rouge_variant or _common("rouge_variant", tuple(ROUGE_VARIANTS), chosen, together))
    scores = [
        example_scores(each.predictions, chosen, rouge_aggregate=aggregate, rouge_variant=variant) for each in together
    ]
    return Paired(together, scores, aggregate, variant)


def compare_predictions(
    first: str | Path | Sequence[Prediction],
    second: str | Path | Sequence[Prediction],
    *,
    metrics: Sequence[str] = ("f1", "exact_match", "rougeLsum"),
    rouge_aggregate: Aggregate | None = None,
    rouge_variant: RougeVariant | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compare two models by their predictions on the same examples.

    Args:
        first: The folder of the first model's evaluation, its ``predictions.jsonl``, or the predictions.
        second: The second model's.
        metrics: As for :func:`pair_evaluations`, like ``rouge_aggregate`` and ``rouge_variant``.
        rouge_aggregate: See there.
        rouge_variant: See there.
        resamples: As for :func:`paired_bootstrap`, like ``confidence`` and ``seed``.
        confidence: See there.
        seed: See there.

    Returns:
        For each metric, the second model's mean minus the first's, with its interval.

    Raises:
        UsageError: As for :func:`pair_evaluations`, or a file is missing or broken.
    """
    sides = [open_evaluation(first), open_evaluation(second)]
    paired = pair_evaluations(sides, metrics=metrics, rouge_aggregate=rouge_aggregate, rouge_variant=rouge_variant)
    return paired.differences(resamples=resamples, confidence=confidence, seed=seed)[0]


def example_scores(
    predictions: Sequence[Prediction],
    metrics: Sequence[str],
    *,
    rouge_aggregate: Aggregate = "best",
    rouge_variant: RougeVariant = "standard",
) -> dict[str, list[float]]:
    """One score a prediction for each metric, by its name in ``scores.json``.

    Scores that took another model are taken from the predictions, which must have them; the rest is computed.
    """
    texts = [prediction.prediction for prediction in predictions]
    references = [prediction.answers for prediction in predictions]
    found = {
        metric: [prediction.scores[metric] for prediction in predictions]
        for metric in metrics
        if metric.startswith("bert_score")
    }
    if any(metric in ROUGE_TYPES for metric in metrics):
        found |= rouge_scores(texts, references, aggregate=rouge_aggregate, **ROUGE_VARIANTS[rouge_variant])
    if "f1" in metrics:
        found["f1"] = f1_scores(texts, references)
    if "exact_match" in metrics:
        found["exact_match"] = exact_match_scores(texts, references)
    return {metric: found[metric] for metric in metrics}


def _usual_metrics(evaluations: Sequence[Evaluation]) -> list[str]:
    ways = {each.computed_by("bert_score_f1") for each in evaluations}
    with_encoder = len(ways) == 1 and _all_have("bert_score_f1", evaluations)
    return [metric for metric in shown_scores(evaluations[:1]) if metric != "bert_score_f1" or with_encoder]


def _check_encoders(metrics: Sequence[str], evaluations: Sequence[Evaluation]) -> None:
    for metric in metrics:
        if not metric.startswith("bert_score"):
            continue
        ways = dict.fromkeys(each.computed_by(metric) or "none" for each in evaluations)
        if not _all_have(metric, evaluations) or len(ways) > 1:
            raise UsageError(
                f"{metric} cannot be compared",
                got="encoders " + "; ".join(ways) if len(ways) > 1 else "predictions without it",
                fix="evaluate all with the same --bert_score_model and --bert_score_layer",
            )


def _all_have(metric: str, evaluations: Sequence[Evaluation]) -> bool:
    return all(metric in prediction.scores for each in evaluations for prediction in each.predictions)


def _common(setting: str, values: tuple[str, ...], metrics: Sequence[str], evaluations: Sequence[Evaluation]) -> str:
    """The setting of ROUGE that the evaluations were made with; a bare ``predictions.jsonl`` goes with any."""
    found = dict.fromkeys(str(each.settings.get(setting, values[0])) for each in evaluations if each.scores)
    if len(found) > 1 and any(metric in ROUGE_TYPES for metric in metrics):
        raise UsageError(
            f"the evaluations were made with different --{setting}",
            got=" and ".join(found),
            fix=f"give --{setting} {' or '.join(values)}: ROUGE is then computed again for all",
        )
    return next(iter(found), values[0])
