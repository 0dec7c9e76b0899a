"""Scores: known values, references, bad input."""

from __future__ import annotations

import logging

import pytest

from crosskd.errors import UsageError
from crosskd.evaluation import metrics
from crosskd.evaluation.metrics import (
    exact_match,
    exact_match_scores,
    f1,
    f1_scores,
    metric_scores,
    rouge,
    rouge_scores,
    split_sentences,
)


def test_f1_counts_words_with_multiplicity():
    # 2 of 3 predicted words are right (one "new" too many), 2 of 2 expected ones found: F1 = 2 * 2 / (3 + 2)
    assert f1_scores(["new new York"], [["New York"]]) == [0.8]
    assert f1(["new new York", "Rome"], [["New York"], ["Oslo"]]) == 0.4


def test_the_best_reference_counts():
    assert f1_scores(["in Paris"], [["London", "Paris", "in Paris, France"]]) == [0.8]
    assert exact_match_scores(["paris"], [["London", "Paris."]]) == [1.0]


def test_normalization_before_both_scores():
    assert exact_match(["The  answer, is:\tAN apple!"], [["answer is apple"]]) == 1.0
    assert exact_match(["theatre"], [["atre"]]) == 0.0  # articles are words, not letters
    assert f1(["a-b"], [["ab"]]) == 1.0  # punctuation vanishes, it does not separate


@pytest.mark.parametrize(
    ("prediction", "reference", "score"), [("", "", 1), ("the", "", 1), ("", "x", 0), ("x", "!", 0)]
)
def test_nothing_left_after_normalization(prediction, reference, score):
    assert f1([prediction], [[reference]]) == score
    assert exact_match([prediction], [[reference]]) == score


def test_rouge_takes_the_best_or_the_mean_over_references():
    references = [["the cat sat", "a dog ran"]]
    assert rouge(["the cat sat"], references)["rouge1"] == 1.0
    assert rouge(["the cat sat"], references, aggregate="mean")["rouge1"] == 0.5


def test_rouge_keeps_examples_apart():
    scores = rouge_scores(["the cat sat", "nothing"], [["the cat sat"], ["a dog"]])
    assert set(scores) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    assert all(values == [1.0, 0.0] for values in scores.values())


def test_rouge_stems_words_unless_told_otherwise():
    assert rouge(["walked"], [["walking"]])["rouge1"] == 1.0
    assert rouge(["walked"], [["walking"]], stemmer=False)["rouge1"] == 0.0


def test_rouge_lsum_compares_sentences_while_rouge_l_compares_texts():
    swapped = rouge(["Ann left early. Bob stayed there."], [["Bob stayed there. Ann left early."]])
    assert swapped["rougeLsum"] == 1.0
    assert swapped["rougeL"] == 0.5


def test_sentences_end_at_a_full_stop_before_white_space():
    assert split_sentences(' He asked: "Why?" Pi is 3.14.\n\nYes! ') == 'He asked: "Why?"\nPi is 3.14.\nYes!'


def test_rouge_says_that_it_cannot_read_other_scripts(caplog):
    with caplog.at_level(logging.WARNING, logger=metrics.__name__):
        assert rouge(["кошка"], [["кошка"]])["rouge1"] == 0.0
    assert "a to z only" in caplog.text
    caplog.clear()
    rouge(["ñandú"], [["ñandú"]])
    assert caplog.text == ""


def test_metrics_by_name():
    assert metric_scores("f1", ["a b"], [["b c"]]) == f1_scores(["a b"], [["b c"]])
    assert metric_scores("exact_match", ["b"], [["b"]]) == [1.0]
    assert metric_scores("rougeL", ["b"], [["b"]]) == [1.0]
    assert metric_scores("rougeL", ["b"], [["b", "c"]], rouge_aggregate="mean") == [0.5]
    with pytest.raises(UsageError, match="metric: got 'bleu'"):
        metric_scores("bleu", ["b"], [["b"]])


@pytest.mark.parametrize("metric", [f1, exact_match, rouge])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "no predictions"),
        (["a"], [], "1 predictions for 0 lists"),
        (["a"], [[]], r"references\[0\] is empty"),
        (["a", "b"], [["a"], "b"], r"references\[1\] is one string"),
    ],
)
def test_bad_input(metric, predictions, references, message):
    with pytest.raises(UsageError, match=message):
        metric(predictions, references)


def test_unknown_aggregate():
    with pytest.raises(UsageError, match="aggregate: got 'median'"):
        rouge(["a"], [["a"]], aggregate="median")
