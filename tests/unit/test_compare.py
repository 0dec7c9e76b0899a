"""Paired bootstrap: coverage, pairing by example, determinism, errors where examples differ."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crosskd.errors import UsageError
from crosskd.evaluation import bootstrap
from crosskd.evaluation.compare import compare_predictions, paired_bootstrap
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
