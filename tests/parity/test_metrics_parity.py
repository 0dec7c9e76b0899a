"""Scores against independent oracles: SQuAD's rules written again, ROUGE worked out by hand."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from crosskd.evaluation.metrics import exact_match_scores, f1_scores, rouge_scores

WORDS = [
    "the",
    "a",
    "An",
    "Paris",
    "paris",
    "new-york",
    "it's",
    "42",
    "3.5",
    "...",
    "“quoted”",
    "THE",
    "éclair",
    "another",
]
texts = st.lists(st.sampled_from(WORDS), max_size=8).map(lambda words: "  ".join(words))


def oracle_words(text: str) -> list[str]:
    """SQuAD's normalization, read from its description: token by token instead of by substitution."""
    kept = text.lower().translate({ord(sign): None for sign in string.punctuation})
    # An article ends at any sign that is no letter, also inside “the”: split there, keep what is no article.
    pieces = re.findall(r"\w+|[^\w\s]+|\s+", kept)
    return "".join(" " if piece in ("a", "an", "the") else piece for piece in pieces).split()


def oracle_f1(prediction: str, reference: str) -> float:
    predicted, expected = oracle_words(prediction), oracle_words(reference)
    if not predicted or not expected:
        return 1.0 if predicted == expected else 0.0
    left = list(expected)
    common = 0
    for word in predicted:
        if word in left:
            left.remove(word)
            common += 1
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


@given(prediction=texts, references=st.lists(texts, min_size=1, max_size=3))
def test_f1_and_exact_match_follow_squad(prediction, references):
    best = max(oracle_f1(prediction, reference) for reference in references)
    assert f1_scores([prediction], [references])[0] == pytest.approx(best, abs=1e-12)
    same = any(oracle_words(prediction) == oracle_words(reference) for reference in references)
    assert exact_match_scores([prediction], [references]) == [float(same)]


def test_rouge_by_hand():
    prediction, reference = "the cat sat on mats. it slept", "a cat sat on the mat. it was asleep"
    # Stems: the cat sat on mat it slept (7) / a cat sat on the mat it was asleep (9).
    scores = rouge_scores([prediction], [[reference]])
    # Common words: the cat sat on mat it = 6: 2 * 6 / (7 + 9).
    assert scores["rouge1"][0] == pytest.approx(12 / 16)
    # Common pairs: cat-sat, sat-on, mat-it = 3 of 6 and 8.
    assert scores["rouge2"][0] == pytest.approx(6 / 14)
    # Longest common subsequence: cat sat on mat it = 5.
    assert scores["rougeL"][0] == pytest.approx(10 / 16)
    # Sentence by sentence: cat sat on mat = 4 in the first, it = 1 in the second.
    assert scores["rougeLsum"][0] == pytest.approx(10 / 16)


@given(prediction=texts, reference=texts)
def test_rouge_is_the_library_on_one_sentence(prediction, reference):
    prediction, reference = prediction.replace(".", ""), reference.replace(".", "")
    library = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True).score(reference, prediction)
    ours = rouge_scores([prediction], [[reference]])
    assert {name: values[0] for name, values in ours.items()} == {
        name: result.fmeasure for name, result in library.items()
    }
