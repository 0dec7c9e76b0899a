"""Plain ROUGE, the published script's: the same numbers as its own scoring, recorded, and never mixed with another."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from crosskd.cli.main import main
from crosskd.errors import UsageError
from crosskd.evaluation.compare import compare_predictions, pair_evaluations
from crosskd.evaluation.metrics import ROUGE_TYPES, ROUGE_VARIANTS, rouge, rouge_scores
from crosskd.evaluation.results import Evaluation
from crosskd.evaluation.score_names import how_computed, made_alike
from crosskd.evaluation.scoring import Scoring
from crosskd.published.benchmark_scores import published_scores
from crosskd.report.differences import difference_rows
from crosskd.report.predictions import prediction_cards
from crosskd.report.tables import best_scores, csv_table
from crosskd.text.tasks import TASKS

# stems that differ, several sentences in other orders, line breaks, articles, punctuation, empty answers
PREDICTIONS = [
    "He walked to the station. She was waiting there.",
    "walking home",
    "A man; the dogs!",
    "",
    "First line\nsecond line",
    "the",
]
REFERENCES = [
    ["She waited there. He walks to the station.", "He walked to a station."],
    ["walked homes", "goes home"],
    ["the man, a dog"],
    ["", "nothing"],
    ["second line\nFirst line", "first lines. second lines."],
    ["a", "an apple"],
]


def scoring(variant: str, task: str = "qa", references: str = "all") -> Scoring:
    return Scoring.prepare(TASKS[task], "best", variant, references, None, None)  # pyright: ignore[reportArgumentType]


def evaluation(variant: str | None, name: str = "m", task: str = "qa") -> Evaluation:
    examples = [{"id": str(i), "answers": several} for i, several in enumerate(REFERENCES)]
    chosen = scoring(variant or "standard", task)
    predictions, scores = chosen.apply(examples, PREDICTIONS)
    settings = chosen.settings
    if variant is None:  # as crosskd wrote them before there was a choice
        del settings["rouge_variant"]
    return Evaluation(name, task, scores, predictions, len(predictions), 1.0, settings=settings)


def test_plain_scores_are_those_of_the_published_script() -> None:
    found = evaluation("plain").scores
    published = published_scores(PREDICTIONS, REFERENCES, {})
    names = {"f1": "f1", "exact_match": "em", **{name: name for name in ROUGE_TYPES}}
    assert {theirs: round(100 * found[ours], 2) for ours, theirs in names.items()} == {
        theirs: published[theirs] for theirs in names.values()
    }
    standard = evaluation("standard").scores
    assert standard["rougeLsum"] != pytest.approx(found["rougeLsum"], abs=0.01)  # else the test shows nothing
    assert (standard["f1"], standard["exact_match"]) == (found["f1"], found["exact_match"])


def test_plain_scores_are_those_of_rouge_score_as_it_stands() -> None:
    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=False)
    found = rouge_scores(PREDICTIONS, REFERENCES, **ROUGE_VARIANTS["plain"])
    for index, (text, several) in enumerate(zip(PREDICTIONS, REFERENCES, strict=True)):
        for name in ROUGE_TYPES:
            best = max(scorer.score(each, text)[name].fmeasure for each in several)
            assert found[name][index] == pytest.approx(best, abs=1e-12)


def test_stemmer_and_sentences_are_switched_apart() -> None:
    swapped = (["Ann left. Bob stayed."], [["Bob stayed. Ann left."]])
    assert rouge(*swapped)["rougeLsum"] == 1.0
    assert rouge(*swapped, sentences=False)["rougeLsum"] == rouge(*swapped)["rougeL"] == 0.5
    assert rouge(["walked"], [["walking"]], sentences=False)["rouge1"] == 1.0
    assert rouge(["walked"], [["walking"]], stemmer=False)["rouge1"] == 0.0


def test_another_variant_is_refused() -> None:
    with pytest.raises(UsageError, match='rouge_variant: got \'other\'; expected "standard" or "plain"'):
        scoring("other")


def test_a_table_says_how_and_nothing_is_ranked_across() -> None:
    plain, standard, old = evaluation("plain", "p"), evaluation("standard", "s"), evaluation(None, "o")
    assert plain.settings["rouge_variant"] == "plain"
    assert how_computed([plain]) == "ROUGE: best of the references, without stemmer and sentence split."
    assert how_computed([standard, old]) == ""
    assert "ROUGE is not comparable" in how_computed([plain, standard])
    assert not made_alike("rougeLsum", [plain, standard])
    assert made_alike("f1", [plain, standard])
    assert "rougeLsum" not in best_scores([plain, standard])
    assert "rougeLsum" in best_scores([old, standard])
    rows = list(csv.DictReader(csv_table([plain, old]).splitlines()))
    assert [row["rouge_variant"] for row in rows] == ["plain", "standard"]
    (row,), unpaired = difference_rows(plain, [plain, standard])
    assert not unpaired
    shown = [whisker is not None for whisker in row.whiskers]
    assert shown == [True, True, False]  # F1 and EM, but not ROUGE-Lsum


def test_evaluations_of_two_kinds_are_compared_only_as_told(tmp_path: Path) -> None:
    plain, standard = evaluation("plain"), evaluation("standard")
    with pytest.raises(UsageError, match=r"different --rouge_variant: got 'plain and standard'.*standard or plain"):
        pair_evaluations([plain, standard], metrics=["rouge"])
    assert pair_evaluations([plain, standard], metrics=["f1"]).differences()[0]["f1"].difference == 0.0
    both = pair_evaluations([plain, standard], metrics=["rouge"], rouge_variant="plain")
    assert both.differences()[0]["rougeLsum"].difference == 0.0
    assert both.notes == ["ROUGE: best of the references, without stemmer and sentence split."]
    alone = pair_evaluations([plain, plain], metrics=["rouge"])  # as they were evaluated
    assert sum(alone.scores[0]["rougeLsum"]) / len(PREDICTIONS) == pytest.approx(plain.scores["rougeLsum"])
    folders = [str(each.save(tmp_path / name)) for each, name in ((plain, "a"), (standard, "b"))]
    with pytest.raises(UsageError, match="--rouge_variant"):
        compare_predictions(*folders, metrics=["rouge"])
    assert compare_predictions(*folders, metrics=["rouge"], rouge_variant="plain")["rougeLsum"].difference == 0.0


def test_compare_takes_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(evaluation(variant).save(tmp_path / variant)) for variant in ("plain", "standard")]
    assert main(["compare", *folders, "--metrics", "rougeLsum"]) == 2
    assert "--rouge_variant" in capsys.readouterr().err
    words = ["compare", *folders, "--metrics", "rougeLsum", "--rouge_variant", "standard", "--json"]
    assert main(words) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["notes"] == ["ROUGE: best of the references."]


@pytest.mark.parametrize("variant", ["plain", "standard"])
def test_a_prediction_card_shows_the_score_of_its_table(variant: str) -> None:
    evaluated = evaluation(variant, task="summary_dialogue")
    cards = prediction_cards([evaluated], len(PREDICTIONS))
    assert {card.metric for card in cards} == {"ROUGE-Lsum"}
    shown = [card.answers[0].score for card in cards]
    assert shown == rouge_scores(PREDICTIONS, REFERENCES, **ROUGE_VARIANTS[variant])["rougeLsum"]
