"""Scores as the published script writes them: its names, times 100, two decimals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

from rouge_score.rouge_scorer import RougeScorer

from crosskd.evaluation.checks import mean
from crosskd.evaluation.metrics import ROUGE_TYPES, exact_match, f1, normalize

_BERT_SCORE = {"f1_bert": "bert_score_f1", "precision_bert": "bert_score_precision", "recall_bert": "bert_score_recall"}


def published_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], measured: Mapping[str, float]
) -> dict[str, float]:
    """All scores of a run, by their published names.

    ``f1``, ``precision`` and ``recall`` of words, each the best over the references for itself; ``em``; ``squad``, the
    mean of F1 and exact match; the F-measures of ROUGE, without stemmer and with each text as one sentence, the best
    over the references; and BERTScore where ``measured`` has it.

    Args:
        predictions: N texts.
        references: N sequences of at least one reference each.
        measured: Scores in [0, 1] by our names; only those of BERTScore are taken.

    Returns:
        Scores in [0, 100], rounded to two decimals.
    """
    pairs = list(zip(predictions, references, strict=True))
    scores = {
        "f1": f1(predictions, references),
        "precision": mean([max(_share(text, each) for each in several) for text, several in pairs]),
        "recall": mean([max(_share(each, text) for each in several) for text, several in pairs]),
        "em": exact_match(predictions, references),
    }
    scores["squad"] = (scores["f1"] + scores["em"]) / 2
    scores |= _rouge(pairs)
    scores |= {name: measured[ours] for name, ours in _BERT_SCORE.items() if ours in measured}
    return {name: round(100 * value, 2) for name, value in scores.items()}


def _share(text: str, other: str) -> float:
    """Share of the words of ``text`` that ``other`` has too; without words on either side 1 if neither has any."""
    words, others = normalize(text).split(), normalize(other).split()
    if not words or not others:
        return float(words == others)
    return sum((Counter(words) & Counter(others)).values()) / len(words)


def _rouge(pairs: Sequence[tuple[str, Sequence[str]]]) -> dict[str, float]:
    found = [_scorer().score_multi(list(several), text) for text, several in pairs]
    return {name: mean([each[name].fmeasure for each in found]) for name in ROUGE_TYPES}


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(list(ROUGE_TYPES), use_stemmer=False)
