"""Paired bootstrap: coverage, pairing by example, determinism, errors where examples differ."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crosskd.errors import UsageError
from crosskd.evaluation import bootstrap
from crosskd.evaluation.compare import compare_predictions, pair_evaluations, paired_bootstrap
from crosskd.evaluation.results import Evaluation, Prediction


def predictions(*answers: str) -> list[Prediction]:
    return [Prediction(f"q{index}", "who?", [f"name {index}"], answer) for index, answer in enumerate(answers)]


def test_a_constant_difference_has_an_interval_of_no_width():
    found = paired_bootstrap([0.1, 0.5, 0.9], [0.2, 0.6, 1.0])
    assert (found.difference, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.excludes_zero
    assert (found.examples, found.confidence, found.resamples) == (3, 0.95, 10_000)


def test_the_interval_is_that_of_the_normal_approximation_for_many_examples():
    generator = np.random.default_rng(5)
    first, second = generator.random(400), generator.random(400)
    found = paired_bootstrap(list(first), list(second))
    half = 1.96 * np.std(second - first) / math.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)
    assert found.difference == pytest.approx(np.mean(second) - np.mean(first), abs=1e-12)


def test_pairing_narrows_the_interval():
    hard = np.random.default_rng(1).random(200)
    paired = paired_bootstrap(list(hard), list(hard + 0.01))
    shuffled = paired_bootstrap(list(hard), list(np.roll(hard, 7) + 0.01))
    assert paired.excludes_zero
    assert not shuffled.excludes_zero


def test_turning_the_sides_turns_the_interval():
    first, second = [0.0, 1.0, 0.5, 0.2], [1.0, 1.0, 0.0, 0.9]
    there, back = paired_bootstrap(first, second), paired_bootstrap(second, first)
    assert (there.difference, there.low, there.high) == pytest.approx((-back.difference, -back.high, -back.low))


def test_higher_confidence_is_wider_and_the_seed_decides():
    first, second = [0.0, 1.0, 0.5, 0.2, 0.4], [1.0, 1.0, 0.0, 0.9, 0.1]
    narrow, wide = (paired_bootstrap(first, second, confidence=share) for share in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert paired_bootstrap(first, second, seed=3) == paired_bootstrap(first, second, seed=3)


def test_resampling_in_chunks_draws_all_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "_CHUNK", 7)
    means = bootstrap._resampled_means(np.array([0.0, 1.0, 2.0]), 25, seed=0)
    assert means.shape == (25,)
    assert np.all((means >= 0) & (means <= 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "no examples"),
        (([0.1], [0.1, 0.2]), "1 scores of the first model, 2 of the second"),
    ],
)
def test_bad_scores(arguments, message):
    with pytest.raises(UsageError, match=message):
        paired_bootstrap(*arguments)


@pytest.mark.parametrize("setting", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 0}])
def test_bad_settings(setting):
    with pytest.raises(UsageError, match=next(iter(setting))):
        paired_bootstrap([0.1], [0.2], **setting)


def test_files_are_paired_by_id_whatever_their_order(tmp_path):
    worse, better = predictions("name 0", "no", "no"), predictions("name 0", "name 1", "no")
    for folder, rows in (("worse", worse), ("better", better[::-1])):
        Evaluation(folder, "qa", {}, rows, 3, 1.0).save(tmp_path / folder)
    found = compare_predictions(tmp_path / "worse", tmp_path / "better" / "predictions.jsonl")
    assert set(found) == {"f1", "exact_match", "rougeLsum"}
    assert found["exact_match"].difference == pytest.approx(1 / 3)
    assert found["exact_match"].low == 0.0
    assert compare_predictions(worse, better, metrics=["rouge1"])["rouge1"].difference > 0


def test_different_examples_are_an_error():
    ones = predictions("a", "b", "c")
    with pytest.raises(UsageError, match="1 only in the first, 0 only in the second, such as 'q2'"):
        compare_predictions(ones, ones[:2])
    other = [*ones[:2], Prediction("q2", "who?", ["somebody else"], "c")]
    with pytest.raises(UsageError, match="'q2' has other references"):
        compare_predictions(ones, other)
    with pytest.raises(UsageError, match="the second holds an id twice"):
        compare_predictions(ones, [*ones, ones[0]])


def test_files_that_are_no_predictions(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "q0", "question": ""}\n')
    with pytest.raises(UsageError, match="line without 'answers'"):
        compare_predictions(tmp_path / "rows.jsonl", predictions("a"))
    with pytest.raises(UsageError, match="there is no file"):
        compare_predictions(tmp_path, predictions("a"))
    with pytest.raises(UsageError, match="there is no file or folder"):
        compare_predictions(tmp_path / "absent", predictions("a"))
    (tmp_path / "rows.jsonl").write_text('{"id": "q0", "question": "", "answers": "one text", "prediction": ""}\n')
    with pytest.raises(UsageError, match="answers that are no list"):
        compare_predictions(tmp_path / "rows.jsonl", predictions("a"))
    Evaluation("scores alone", "qa", {}, [], 1, 1.0).save(tmp_path / "empty")
    with pytest.raises(UsageError, match="the first holds no predictions"):
        compare_predictions(tmp_path / "empty", predictions("a"))


def evaluation(name: str, *answers: str, encoder: str | None = None, **settings) -> Evaluation:
    """An evaluation of two references each; BERTScore 0.5, 0.25, ... where an encoder is named."""
    rows = [
        Prediction(
            f"q{place}", "who?", [f"name {place}", "somebody else"], answer,
            {"bert_score_f1": 0.5**place} if encoder else {},
        )
        for place, answer in enumerate(answers, start=1)
    ]  # fmt: skip
    settings["bert_score"] = {"model": encoder, "layer": 2, "version": "0.3.13"} if encoder else None
    scores = {"f1": 0.5, "rougeLsum": 0.5, **({"bert_score_f1": 0.5} if encoder else {})}
    return Evaluation(name, "qa", scores, rows, len(rows), 1.0, settings=settings)


def test_rouge_is_compared_as_it_was_evaluated():
    first, second = (evaluation("x", answer, rouge_aggregate="mean") for answer in ("no", "name 1"))
    paired = pair_evaluations([first, second], metrics=["rouge", "f1"])
    assert paired.differences()[0]["rougeLsum"].difference == 0.5
    assert paired.differences()[0]["f1"].difference == 1.0
    best = pair_evaluations([first, second], metrics=["rouge"], rouge_aggregate="best")
    assert best.differences()[0]["rougeLsum"].difference == 1.0


def test_rouge_of_different_aggregates_is_not_mixed():
    pair = [evaluation("x", "no", rouge_aggregate="best"), evaluation("y", "name 1", rouge_aggregate="mean")]
    with pytest.raises(UsageError, match="different --rouge_aggregate: got 'best and mean'"):
        pair_evaluations(pair, metrics=["rougeL"])
    assert pair_evaluations(pair, metrics=["f1"]).differences()[0]["f1"].difference == 1.0


def test_bert_score_is_compared_where_the_encoder_is_one():
    pair = [evaluation("x", "no", "no", encoder="one"), evaluation("y", "no", "name 2", encoder="one")]
    metrics = list(pair_evaluations(pair).scores[0])
    assert metrics == ["f1", "exact_match", "rougeLsum", "bert_score_f1"]
    assert pair_evaluations(pair, metrics=["bert_score"]).scores[0] == {"bert_score_f1": [0.5, 0.25]}
    for other, message in (
        (evaluation("y", "no", "no", encoder="two"), "encoders one, layer 2.*two, layer 2"),
        (evaluation("y", "no", "no"), "encoders one, layer 2.*none"),
    ):
        with pytest.raises(UsageError, match=message):
            pair_evaluations([pair[0], other], metrics=["bert_score"])
        assert "bert_score_f1" not in pair_evaluations([pair[0], other]).scores[0]
    with pytest.raises(UsageError, match="predictions without it"):
        pair_evaluations(pair, metrics=["bert_score_recall"])


def test_the_tasks_most_telling_score_comes_first():
    pair = [evaluation(name, "no", metrics=["rouge", "f1"]) for name in ("x", "y")]
    assert list(pair_evaluations(pair).scores[0]) == ["rougeLsum", "f1"]


def test_examples_that_differ_most_come_first():
    base = evaluation("base", "name 1", "no", "no")
    others = [evaluation("x", "no", "no", "no"), evaluation("y", "name 1", "name", "no")]
    paired = pair_evaluations([base, *others])
    assert paired.most_different("f1", 2) == [0, 1]
    assert paired.most_different("f1", 9) == [0, 1, 2]


def test_unknown_metrics_get_a_suggestion():
    with pytest.raises(UsageError, match="did you mean 'rougeLsum'"):
        compare_predictions(predictions("a"), predictions("a"), metrics=["rougelsum"])
