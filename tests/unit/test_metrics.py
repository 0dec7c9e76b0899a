"""Scores: known values, references, bad input, BERTScore's extra."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from crosskd.errors import UsageError
from crosskd.evaluation import metrics
from crosskd.evaluation.metrics import (
    bert_score,
    bert_score_scores,
    bert_score_settings,
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
    with pytest.raises(UsageError, match="metric: got 'bleu'"):
        metric_scores("bleu", ["b"], [["b"]])


@pytest.mark.parametrize("metric", [f1, exact_match, rouge, bert_score])
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


@pytest.fixture
def fake_bert_score(monkeypatch):
    """The package's interface as of version 0.3.13, without its dependencies; records what it was asked."""
    asked = {}

    def score(cands, refs, **settings):
        assert all(cands)
        assert all(reference for several in refs for reference in several)
        asked.update(settings, cands=cands, refs=refs)
        count = len(cands)
        return torch.full((count,), 0.5), torch.full((count,), 1.0000002), torch.full((count,), -0.1)

    module = ModuleType("bert_score")
    module.__dict__.update(
        score=score, __version__="0.3.13", utils=SimpleNamespace(model2layers={"roberta-large": 17}), asked=asked
    )
    monkeypatch.setitem(sys.modules, "bert_score", module)
    return asked


def test_bert_score_passes_model_and_layer_on_and_stays_in_range(fake_bert_score):
    assert bert_score(["a"], [["b", "c"]]) == {"precision": 0.5, "recall": 1.0, "f1": 0.0}
    assert (fake_bert_score["model_type"], fake_bert_score["num_layers"]) == ("roberta-large", 17)
    assert fake_bert_score["refs"] == [["b", "c"]]
    assert bert_score_settings() == {"model": "roberta-large", "layer": 17, "version": "0.3.13"}


def test_bert_score_gives_empty_texts_nothing(fake_bert_score):
    scores = bert_score_scores(["", "a", "b"], [["x"], ["y", " "], [""]])
    assert scores["precision"] == [0.0, 0.5, 0.0]
    assert (fake_bert_score["cands"], fake_bert_score["refs"]) == (["a"], [["y"]])
    assert bert_score_scores([""], [["x"]])["recall"] == [0.0]


def test_bert_score_needs_a_layer_for_a_model_of_ones_own(fake_bert_score, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 4}')
    with pytest.raises(UsageError, match=r"recommends no layer.*from 1 to 4"):
        bert_score(["a"], [["b"]], model=str(tmp_path))
    bert_score(["a"], [["b"]], model=str(tmp_path), layer=3)
    assert (fake_bert_score["model_type"], fake_bert_score["num_layers"]) == (str(tmp_path), 3)


def test_bert_score_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(UsageError, match=r'pip install "crosskd\[bert-score\]"'):
        bert_score(["a"], [["b"]])
