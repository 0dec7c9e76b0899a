"""Scores of predictions against references: F1, exact match, ROUGE and BERTScore, all in [0, 1].

Every metric comes twice: ``f1`` is the mean over the examples, ``f1_scores`` gives one score an example, which is
what intervals and paired comparisons need. An example may have several references; the best one counts, or for ROUGE
their mean where it is asked for.
"""

from __future__ import annotations

import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypedDict

from crosskd.errors import UsageError
from crosskd.evaluation.bertscore import BertScorer, bert_score, bert_score_scores, bert_score_settings
from crosskd.evaluation.checks import check_references, mean

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

logger = logging.getLogger(__name__)

__all__ = [
    "ROUGE_TYPES",
    "ROUGE_VARIANTS",
    "BertScorer",
    "bert_score",
    "bert_score_scores",
    "bert_score_settings",
    "exact_match",
    "exact_match_scores",
    "f1",
    "f1_scores",
    "metric_scores",
    "normalize",
    "rouge",
    "rouge_scores",
    "split_sentences",
]

Aggregate = Literal["best", "mean"]
RougeVariant = Literal["standard", "plain"]
References = Literal["all", "first"]
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class RougeOptions(TypedDict):
    """Arguments of :func:`rouge_scores`; see there."""

    stemmer: bool
    sentences: bool


ROUGE_VARIANTS: dict[str, RougeOptions] = {
    "standard": {"stemmer": True, "sentences": True},
    "plain": {"stemmer": False, "sentences": False},
}
"""By name of the variant; ``plain`` is how the published script of arXiv 2412.14528 scores."""

_PUNCTUATION = frozenset(string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_SENTENCE_END = re.compile(r"""(?<=[.!?])(["'”’)\]]*)\s+""")


def normalize(text: str) -> str:
    """Normalize an answer the way SQuAD does.

    In order: lower case, ASCII punctuation removed, the articles a, an and the replaced by a space, white space
    collapsed.

    Example:
        >>> normalize("The  Cat's whiskers, please!")
        'cats whiskers please'
    """
    bare = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def f1_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Token F1 of each prediction with its best reference.

    Harmonic mean of precision and recall over the words of :func:`normalize`, counted with multiplicity. Where the
    prediction or the reference has no words left, the score is 1 if neither has and else 0 (SQuAD 2.0).

    Args:
        predictions: N texts.
        references: N sequences of at least one reference each.

    Returns:
        N scores in [0, 1].

    Raises:
        UsageError: The lengths differ, nothing was given, or an example has no reference.
    """
    return _best_scores(_f1, predictions, references)


def f1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean of :func:`f1_scores`, in [0, 1].

    Example:
        >>> f1(["in Paris, France"], [["Paris", "Paris, France"]])
        0.8
    """
    return mean(f1_scores(predictions, references))


def exact_match_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """1.0 for each prediction that equals one of its references after :func:`normalize`, else 0.0.

    Arguments and errors as for :func:`f1_scores`.
    """
    return _best_scores(
        lambda prediction, reference: float(normalize(prediction) == normalize(reference)), predictions, references
    )


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean of :func:`exact_match_scores`, in [0, 1].

    Example:
        >>> exact_match(["the Eiffel Tower.", "1890"], [["Eiffel tower"], ["1889", "in 1889"]])
        0.5
    """
    return mean(exact_match_scores(predictions, references))


def rouge_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    aggregate: Aggregate = "best",
    stemmer: bool = True,
    sentences: bool = True,
) -> dict[str, list[float]]:
    """ROUGE F-measures of each prediction, computed by the ``rouge-score`` package.

    Args:
        predictions: N texts.
        references: N sequences of at least one reference each.
        aggregate: Over the references of one example, ``"best"`` takes the highest F-measure (each ROUGE type for
            itself), ``"mean"`` averages them.
        stemmer: Reduce English words of more than three letters with the Porter stemmer first.
        sentences: Split texts into sentences for ROUGE-Lsum; otherwise only their own line breaks count.

    Returns:
        ``rouge1``, ``rouge2``, ``rougeL`` and ``rougeLsum``, each with N scores in [0, 1].

    Raises:
        UsageError: As for :func:`f1_scores`, or an unknown ``aggregate``.

    Note:
        ROUGE-Lsum compares sentence by sentence. Sentences end at ``.``, ``!`` or ``?`` (and closing quotes or
        brackets) followed by white space, or at a line break; abbreviations are not recognized. This needs no
        download, and equals ROUGE-L where both texts are one sentence. The tokenizer of ``rouge-score`` knows the
        letters a to z and digits only: other scripts score 0, which is said once in the log.
    """
    if aggregate not in ("best", "mean"):
        raise UsageError("aggregate", got=aggregate, expected='"best" or "mean"')
    check_references(predictions, references)
    if any(_has_only_other_letters(reference) for several in references for reference in several):
        logger.warning("ROUGE sees the letters a to z only: references in other scripts score 0.")
    combine: Callable[[list[float]], float] = max if aggregate == "best" else mean
    scorer = _rouge_scorer(stemmer)
    scores: dict[str, list[float]] = {name: [] for name in ROUGE_TYPES}
    lines = split_sentences if sentences else str
    for prediction, several in zip(predictions, references, strict=True):
        measured = [scorer.score(lines(reference), lines(prediction)) for reference in several]
        for name in ROUGE_TYPES:
            scores[name].append(combine([float(result[name].fmeasure) for result in measured]))
    return scores


def rouge(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    aggregate: Aggregate = "best",
    stemmer: bool = True,
    sentences: bool = True,
) -> dict[str, float]:
    """Means of :func:`rouge_scores`: ``rouge1``, ``rouge2``, ``rougeL``, ``rougeLsum``, each in [0, 1].

    Example:
        >>> rouge(["the cat sat"], [["the cat slept"]])["rouge2"]
        0.5
    """
    scores = rouge_scores(predictions, references, aggregate=aggregate, stemmer=stemmer, sentences=sentences)
    return {name: mean(values) for name, values in scores.items()}


def split_sentences(text: str) -> str:
    """Put each sentence of ``text`` on a line of its own (see the note of :func:`rouge_scores`).

    Example:
        >>> split_sentences('He asked "Why?" Nobody knew.').split(chr(10))
        ['He asked "Why?"', 'Nobody knew.']
    """
    return _SENTENCE_END.sub(lambda end: end.group(1) + "\n", text.strip())


def metric_scores(
    metric: str,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    rouge_aggregate: Aggregate = "best",
) -> list[float]:
    """One score an example for a metric by name: ``f1``, ``exact_match`` or one of :data:`ROUGE_TYPES`.

    Raises:
        UsageError: Unknown metric, or as for :func:`rouge_scores`.
    """
    if metric == "f1":
        return f1_scores(predictions, references)
    if metric == "exact_match":
        return exact_match_scores(predictions, references)
    if metric in ROUGE_TYPES:
        return rouge_scores(predictions, references, aggregate=rouge_aggregate)[metric]
    raise UsageError("metric", got=metric, expected="f1, exact_match, " + ", ".join(ROUGE_TYPES))


def _f1(prediction: str, reference: str) -> float:
    predicted, expected = normalize(prediction).split(), normalize(reference).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))


def _best_scores(
    score: Callable[[str, str], float], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    check_references(predictions, references)
    return [
        max(score(prediction, reference) for reference in several)
        for prediction, several in zip(predictions, references, strict=True)
    ]


@lru_cache(maxsize=2)
def _rouge_scorer(stemmer: bool) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # two seconds, for nltk's sake

    return RougeScorer(list(ROUGE_TYPES), use_stemmer=stemmer)


def _has_only_other_letters(text: str) -> bool:
    letters = [character for character in text.lower() if character.isalnum()]
    return bool(letters) and not any(character in string.ascii_lowercase + string.digits for character in letters)
