"""Tables show what the task asks for, and fit the terminal."""

from __future__ import annotations

from typing import Any

import pytest

from crosskd.cli import recipes_actions
from crosskd.cli.console import PlainConsole
from crosskd.cli.main import main
from crosskd.evaluation.results import Evaluation
from crosskd.evaluation.score_names import shown_scores
from crosskd.recipes.grid import recipes

SCORES = {"f1": 0.5, "exact_match": 0.25, "rougeLsum": 0.5}


def evaluation(metrics: list[str] | None, **scores: float) -> Evaluation:
    settings: dict[str, Any] = {} if metrics is None else {"metrics": metrics}
    return Evaluation("model", "task", {**SCORES, **scores}, [], 4, 1.0, settings=settings)


@pytest.mark.parametrize(
    ("metrics", "scores", "expected"),
    [
        (["rouge"], {}, ["rougeLsum"]),
        (["rouge", "f1"], {}, ["rougeLsum", "f1"]),
        (["f1", "bert_score"], {}, ["f1"]),
        (["bert_score", "f1"], {"bert_score_f1": 0.5}, ["bert_score_f1", "f1"]),
        (["rouge"], {"bert_score_f1": 0.5}, ["rougeLsum", "bert_score_f1"]),
        (["bert_score"], {}, ["f1", "exact_match", "rougeLsum"]),
        (None, {}, ["f1", "exact_match", "rougeLsum"]),
    ],
)
def test_a_table_shows_the_metrics_of_the_task(
    metrics: list[str] | None, scores: dict[str, float], expected: list[str]
) -> None:
    assert shown_scores([evaluation(metrics, **scores)]) == expected


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_recipes_are_listed_a_line_each(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = PlainConsole()
    console._force_terminal, console._width, console._color_system = True, width, None
    monkeypatch.setattr(recipes_actions, "output", console)
    assert main(["recipes", "list", "--table", "1"]) == 0
    shown = capsys.readouterr().out
    check_lines(shown, width)


def test_recipes_in_a_pipe_are_listed_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list", "--table", "1"]) == 0
    check_lines(capsys.readouterr().out, 80)


def check_lines(shown: str, width: int) -> None:
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    listed = [recipe for recipe in recipes().values() if recipe.table == 1]
    for recipe in listed:
        (line,) = [line for line in lines if line.split()[:1] == [recipe.name]]
        assert recipe.labels["teacher"] in line
        assert f"{recipe.score:.2f}" in line
    assert len(lines) < len(listed) + 6
