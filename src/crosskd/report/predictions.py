"""Some predictions of all models, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crosskd.evaluation.metrics import exact_match_scores, metric_scores
from crosskd.evaluation.results import Evaluation, Prediction

SHOWN = 10


@dataclass(frozen=True)
class Answer:
    """One model's answer to one example; ``score`` in [0, 1] by the metric of the card, ``exact`` after normalizing."""

    model: str
    text: str
    score: float
    exact: bool


@dataclass(frozen=True)
class PredictionCard:
    """One example with its references and all models' answers."""

    id: str
    question: str
    references: list[str]
    metric: str
    answers: list[Answer]


def prediction_cards(evaluations: Sequence[Evaluation], count: int = SHOWN) -> list[PredictionCard]:
    """``count`` examples at even distances, so that the choice flatters nobody.

    Args:
        evaluations: Evaluations of the same examples; those without predictions are left out.
        count: Cards at most.

    Returns:
        The cards, in the order of the examples. Answers to questions carry F1, summaries ROUGE-Lsum.
    """
    answered = [each for each in evaluations if each.predictions]
    if not answered:
        return []
    by_id = [{prediction.id: prediction for prediction in each.predictions} for each in answered]
    shared = [each for each in answered[0].predictions if all(each.id in found for found in by_id)]
    chosen = [shared[index * len(shared) // count] for index in range(count)] if len(shared) > count else shared
    names = [each.name for each in answered]
    return [_card(example, names, [found[example.id] for found in by_id]) for example in chosen]


def _card(example: Prediction, names: Sequence[str], predictions: Sequence[Prediction]) -> PredictionCard:
    metric, heading = ("f1", "F1") if example.question else ("rougeLsum", "ROUGE-Lsum")
    texts = [prediction.prediction for prediction in predictions]
    references = [prediction.answers for prediction in predictions]
    scores = metric_scores(metric, texts, references)
    exact = exact_match_scores(texts, references)
    answers = [
        Answer(name, text, score, same == 1.0)
        for name, text, score, same in zip(names, texts, scores, exact, strict=True)
    ]
    return PredictionCard(example.id, example.question, example.answers, heading, answers)
