"""Some predictions of all models, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crosskd.evaluation.compare import example_scores
from crosskd.evaluation.metrics import exact_match_scores
from crosskd.evaluation.results import Evaluation, Prediction
from crosskd.evaluation.score_names import HEADINGS, shown_scores

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
        The cards, in the order of the examples. Answers carry the score that is the task's most telling; where that
        is not known, F1 if there is a question, else ROUGE-Lsum.
    """
    answered = [each for each in evaluations if each.predictions]
    if not answered:
        return []
    by_id = [{prediction.id: prediction for prediction in each.predictions} for each in answered]
    shared = [each for each in answered[0].predictions if all(each.id in found for found in by_id)]
    chosen = [shared[index * len(shared) // count] for index in range(count)] if len(shared) > count else shared
    return [_card(example, answered, [found[example.id] for found in by_id]) for example in chosen]


def _card(example: Prediction, evaluations: Sequence[Evaluation], predictions: Sequence[Prediction]) -> PredictionCard:
    metric = _metric(example, evaluations[0], predictions)
    settings = evaluations[0].settings
    how = {"rouge_aggregate": settings.get("rouge_aggregate", "best")}
    how |= {"rouge_variant": settings.get("rouge_variant", "standard")}
    scores = example_scores(predictions, [metric], **how)[metric]
    texts = [prediction.prediction for prediction in predictions]
    exact = exact_match_scores(texts, [prediction.answers for prediction in predictions])
    answers = [
        Answer(each.name, text, score, same == 1.0)
        for each, text, score, same in zip(evaluations, texts, scores, exact, strict=True)
    ]
    return PredictionCard(example.id, example.question, example.answers, HEADINGS[metric], answers)


def _metric(example: Prediction, first: Evaluation, predictions: Sequence[Prediction]) -> str:
    if first.settings.get("metrics"):
        for metric in shown_scores([first]):
            if not metric.startswith("bert_score") or all(metric in each.scores for each in predictions):
                return metric
    return "f1" if example.question else "rougeLsum"
