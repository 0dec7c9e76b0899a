"""Scores against the first reference alone, as the published script scores QED: recorded, said, and never mixed."""

from __future__ import annotations

import csv
from typing import Any

import pytest

from crosskd.errors import UsageError
from crosskd.evaluation.compare import pair_evaluations
from crosskd.evaluation.results import Evaluation
from crosskd.evaluation.score_names import how_computed, made_alike
from crosskd.evaluation.scoring import Scoring, score
from crosskd.report.differences import difference_rows
from crosskd.report.tables import csv_table
from crosskd.text.tasks import TASKS

EXAMPLES: list[dict[str, Any]] = [
    {"id": "a", "question": "who?", "answers": ["Ada", "Grace Hopper"]},
    {"id": "b", "question": "where?", "answers": ["in Rome"]},
]
ANSWERS = ["Grace Hopper", "Rome"]


def evaluation(references: str | None, examples: list[dict[str, Any]] = EXAMPLES) -> Evaluation:
    counted: Any = references or "all"
    chosen = Scoring.prepare(TASKS["qa"], "best", "standard", counted, None, None)
    predictions, scores = chosen.apply(examples, ANSWERS)
    settings = chosen.settings
    if references is None:  # as crosskd wrote them before there was a choice
        del settings["references"]
    return Evaluation(references or "old", "qa", scores, predictions, 2, 1.0, settings=settings)


def test_the_others_do_not_count() -> None:
    every, first = evaluation("all"), evaluation("first")
    assert every.scores == score(ANSWERS, [each["answers"] for each in EXAMPLES])
    assert first.scores == score(ANSWERS, [each["answers"][:1] for each in EXAMPLES])
    assert (every.scores["exact_match"], first.scores["exact_match"]) == (0.5, 0.0)
    assert [each.answers for each in first.predictions] == [["Ada"], ["in Rome"]]
    assert first.settings["references"] == "first"


def test_another_word_is_refused() -> None:
    with pytest.raises(UsageError, match='references: got \'second\'; expected "all" or "first"'):
        evaluation("second")


def test_a_table_says_so_and_ranks_nothing_across() -> None:
    every, first, old = evaluation("all"), evaluation("first"), evaluation(None)
    assert how_computed([first]) == "F1 and EM: first reference only. ROUGE: first reference only."
    assert how_computed([every, old]) == ""
    assert "F1 and EM are not comparable: all references (all); first reference only (first)." in how_computed(
        [every, first]
    )
    for metric in ("f1", "exact_match", "rougeLsum"):
        assert not made_alike(metric, [every, first])
        assert made_alike(metric, [every, old])
    rows = list(csv.DictReader(csv_table([first, old]).splitlines()))
    assert [row["references"] for row in rows] == ["first", "all"]


def test_nothing_is_compared_across() -> None:
    with pytest.raises(UsageError, match="other references"):
        pair_evaluations([evaluation("all"), evaluation("first")])
    assert pair_evaluations([evaluation("first")] * 2, metrics=["f1"]).notes == ["F1 and EM: first reference only."]
    # examples of one reference each pair up, and yet no score of the two was made in one way
    single = [{**each, "answers": each["answers"][:1]} for each in EXAMPLES]
    every, first = evaluation("all", single), evaluation("first", single)
    (row,), unpaired = difference_rows(every, [every, first])
    assert row.whiskers == [None, None, None]
    assert not unpaired
