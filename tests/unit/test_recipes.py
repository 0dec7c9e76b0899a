"""Recipes: every published score is in one of them, and each is a file of flags that `crosskd distill` takes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from crosskd.cli.answer import AnswerArguments
from crosskd.cli.distill import DistillArguments
from crosskd.cli.evaluate import EvaluateArguments
from crosskd.cli.main import main
from crosskd.cli.parsing import VerbParser
from crosskd.cli.prepare import PrepareArguments
from crosskd.errors import UsageError
from crosskd.losses.multilevel_ot import MultiLevelOT
from crosskd.losses.registry import METHODS
from crosskd.recipes.grid import find_recipe, recipes
from crosskd.recipes.text import command_line, recipe_text
from crosskd.text.tasks import load_task
from crosskd.training.config import DistillationConfig

# What the paper published (arXiv 2412.14528, Tables 1 to 8), written down here once more: a row of names, then rows of
# scores; a / b / c are QED F1, FairytaleQA ROUGE-Lsum, DialogSum ROUGE-Lsum.
TABLE_1 = """
student sft seqkd mined uld multilevel_ot
opt-350m 55.71/46.04/35.59 49.61/39.19/30.71 56.03/46.11/35.82 56.76/45.82/36.05 58.97/46.96/37.61
pythia-410m 59.03/47.23/36.06 51.12/39.78/31.57 59.21/47.31/35.97 59.71/47.81/36.07 61.79/49.10/37.45
bloomz-560m 60.48/49.07/36.52 52.33/45.68/31.83 60.52/49.10/36.39 61.22/49.87/36.40 62.58/50.94/37.68
"""
TABLE_2 = """
student raw_text uld multilevel_ot
opt-350m 49.61/39.19/30.71 50.71/39.86/32.03 51.96/40.68/36.88
pythia-410m 51.12/39.78/31.57 52.09/40.69/34.15 53.56/41.28/36.52
bloomz-560m 52.33/45.68/31.83 53.02/46.72/34.21 54.15/47.88/37.10
"""
TABLE_5 = """
student sft uld multilevel_ot
mt0-300m 34.96/29.73/28.88 37.25/31.52/30.04 41.37/34.01/33.01
"""
TABLE_3 = """
setting opt-350m pythia-410m bloomz-560m
ce 55.71 59.03 60.48
ad-token 56.76 59.71 61.22
ad-sequence 58.02 60.18 61.56
ad-truncated 58.01 60.22 61.58
ad-sl 58.17 61.10 61.87
ad-sd 58.15 61.20 61.90
sl-sd 58.23 61.17 61.80
all 58.97 61.79 62.58
"""
TABLE_4 = """
setting opt-350m pythia-410m bloomz-560m
sinkhorn-token 58.32 61.22 61.95
"""
TABLE_6 = """
setting llama2 mistral3 qwen llama3
raw_text 49.61 51.24 51.21 51.91
uld 50.71 52.08 52.89 52.81
multilevel_ot 51.96 52.96 53.99 54.38
"""
TABLE_7 = {5: 58.26, 10: 58.52, 20: 58.97, 50: 59.02, 100: 58.99}
TABLE_8 = {5: 58.54, 20: 58.84, 50: 58.97, 100: 58.78, 1000: 58.42}
TEACHERS = {"llama2": (61.68, 50.90, 37.75), "mistral3": (64.03,), "qwen": (62.16,), "llama3": (65.96,)}
UNTOUCHED = {
    "opt-350m": (12.46, 11.16, 14.02),
    "pythia-410m": (22.87, 15.14, 4.41),
    "bloomz-560m": (47.67, 43.47, 11.82),
}
DATA = ("qed", "fairytaleqa", "dialogsum")


def published() -> Iterator[tuple[str, float]]:
    """Name of a recipe and the score that it must carry."""
    for number, table in ((1, TABLE_1), (2, TABLE_2), (5, TABLE_5)):
        for student, setting, scores in cells(table):
            for data, score in zip(DATA, scores.split("/"), strict=True):
                yield f"table{number}/{student}/{data}/{setting}", float(score)
    for number, table in ((3, TABLE_3), (4, TABLE_4)):
        for setting, student, score in cells(table):
            yield f"table{number}/{student}/{setting}", float(score)
    for setting, teacher, score in cells(TABLE_6):
        yield f"table6/opt-350m/{teacher}/{setting}", float(score)
    for iterations, score in TABLE_7.items():
        yield f"table7/opt-350m/iterations-{iterations}", score
    for columns, score in TABLE_8.items():
        yield f"table8/opt-350m/columns-{columns}", score


def cells(table: str) -> Iterator[tuple[str, str, str]]:
    """(row, column, text) of a table."""
    (_, *columns), *rows = [line.split() for line in table.strip().splitlines()]
    for row, *texts in rows:
        for column, text in zip(columns, texts, strict=True):
            yield row, column, text


def test_every_published_score_is_in_exactly_one_recipe() -> None:
    expected = list(published())
    assert len(expected) == len(dict(expected)) == 130
    assert {name: recipe.score for name, recipe in recipes().items()} == dict(expected)


def test_the_scores_around_it_are_those_of_its_teacher_and_student() -> None:
    for recipe in recipes().values():
        column = DATA.index(recipe.data)
        assert recipe.about["teacher"]["published_score"] == TEACHERS[recipe.teacher][column]
        untouched = recipe.about.get("untouched_student", {}).get("published_score")
        assert untouched == (UNTOUCHED[recipe.student][column] if recipe.student in UNTOUCHED else None)
        assert recipe.metric == ("f1" if recipe.data == "qed" else "rougeLsum")


def test_every_recipe_is_a_file_that_distill_takes(tmp_path: Path) -> None:
    parser = VerbParser("distill", "", [DistillArguments, DistillationConfig])
    for recipe in recipes().values():
        file = tmp_path / "recipe.yaml"
        file.write_text(recipe_text(recipe), encoding="utf-8")
        arguments, config = parser.parse(["--config", str(file)])
        method = config.create_method()
        assert isinstance(method, METHODS[recipe.flags["method"]])
        assert (arguments.teacher is not None) == method.needs_teacher, recipe.name
        assert config.output_dir == f"runs/{recipe.name}"
        assert (config.supervision == "teacher") == ("answer" in recipe.about)
        assert (config.learning_rate, config.distillation_weight, config.lr_scheduler_kwargs) == (
            1e-6, 0.15, {"min_lr_rate": 0.1},
        )  # fmt: skip
        if isinstance(method, MultiLevelOT):
            # what the paper fixes and no table varies
            assert (method.sinkhorn_temperature, method.sinkhorn_epsilon) == (2.0, 0.1)
            assert (method.formulation, method.ranking) == ("paper", "sequence")


# k, weights of AD, SL and SD, N, level of SD: what the name of a setting stands for
PAPER_SETTINGS = (50, 1.0, 0.1, 0.1, 20, "sequence")
SETTINGS = {
    "multilevel_ot": PAPER_SETTINGS,
    "all": PAPER_SETTINGS,
    "ad-sequence": (0, 1.0, 0.0, 0.0, 20, "sequence"),
    "ad-truncated": (50, 1.0, 0.0, 0.0, 20, "sequence"),
    "ad-sl": (50, 1.0, 0.1, 0.0, 20, "sequence"),
    "ad-sd": (50, 1.0, 0.0, 0.1, 20, "sequence"),
    "sl-sd": (50, 0.0, 0.1, 0.1, 20, "sequence"),
    "sinkhorn-token": (50, 1.0, 0.1, 0.1, 20, "token"),
    **{f"iterations-{n}": (50, 1.0, 0.1, 0.1, n, "sequence") for n in TABLE_7},
    **{f"columns-{k}": (k, 1.0, 0.1, 0.1, 20, "sequence") for k in TABLE_8},
}
METHOD_OF = {
    "sft": "sft",
    "ce": "sft",
    "seqkd": "seqkd",
    "raw_text": "seqkd",
    "mined": "mined",
    "uld": "uld",
    "ad-token": "uld",
}


@pytest.mark.parametrize("setting", sorted({recipe.setting for recipe in recipes().values()}))
def test_a_setting_is_what_its_table_says(setting: str) -> None:
    names = [recipe.name for recipe in recipes().values() if recipe.setting == setting]
    for name in names:
        flags = {
            key: value
            for key, value in find_recipe(name).flags.items()
            if key in DistillationConfig.__dataclass_fields__
        }
        method = DistillationConfig(**{**flags, "output_dir": "unused"}).create_method()
        assert method.name == METHOD_OF.get(setting, "multilevel_ot")
        if isinstance(method, MultiLevelOT):
            assert SETTINGS[setting] == (
                method.top_k, method.absolute_difference_weight, method.sequential_log_weight, method.sinkhorn_weight,
                method.sinkhorn_iterations, method.sinkhorn_level,
            )  # fmt: skip


def test_the_verbs_around_it_take_their_flags() -> None:
    parsers = {
        verb: VerbParser(verb, "", [arguments])
        for verb, arguments in (
            ("prepare", PrepareArguments), ("answer", AnswerArguments), ("evaluate", EvaluateArguments),
        )
    }  # fmt: skip
    for recipe in recipes().values():
        for verb in parsers.keys() & recipe.about.keys():
            (arguments,) = parsers[verb].parse(command_line(verb, recipe.about[verb])[1:])
            task = load_task(arguments.task)
            assert len(task.shots) >= getattr(arguments, "number_few_shot", 0)
        # what one verb writes the next one reads
        answered = recipe.about.get("answer", {}).get("output", recipe.about["prepare"]["output"])
        assert recipe.flags["data"] == answered
        assert recipe.about["evaluate"]["model"] == recipe.flags["output_dir"]


def test_same_run_means_the_same_flags() -> None:
    twins = [recipe for recipe in recipes().values() if "same_run_as" in recipe.about]
    for recipe in twins:
        other = find_recipe(recipe.about["same_run_as"])
        assert {**recipe.flags, "output_dir": ""} == {**other.flags, "output_dir": ""}
        assert recipe.score == other.score  # the paper's tables agree where they repeat a setting
    runs = Counter(yaml.safe_dump({**recipe.flags, "output_dir": ""}) for recipe in recipes().values())
    assert len(recipes()) - len(twins) == len(runs)


def test_the_key_about_is_no_flag_and_others_are(tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    parser = VerbParser("prepare", "", [PrepareArguments])
    file.write_text("data: rows.jsonl\noutput: out\nabout: {limit: 3}\n")
    (arguments,) = parser.parse(["--config", str(file)])
    assert (arguments.data, arguments.limit) == ("rows.jsonl", None)
    file.write_text("data: rows.jsonl\noutput: out\nabuot: {limit: 3}\n")
    with pytest.raises(UsageError, match="abuot"):
        parser.parse(["--config", str(file)])


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [about["name"] for about in listed] == list(recipes())
    assert main(["recipes", "list", "--json", "--table", "2", "--student", "opt-350m", "--dataset", "dialogsum"]) == 0
    chosen = json.loads(capsys.readouterr().out)
    assert [about["published"]["score"] for about in chosen] == [30.71, 32.03, 36.88]
    assert main(["recipes", "list", "--table", "6", "--teacher", "qwen"]) == 0
    shown = capsys.readouterr().out
    assert "table6/opt-350m/qwen/multilevel_ot" in shown
    assert "F1 53.99" in shown
    assert "llama" not in shown


def test_show_and_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "table2/bloomz-560m/dialogsum/uld"
    assert main(["recipes", "show", name]) == 0
    shown = capsys.readouterr().out
    assert "# Published ROUGE-Lsum: 34.21 (teacher 37.75, untouched student 11.82)" in shown
    assert "#   crosskd answer --teacher meta-llama/Llama-2-7b-chat-hf" in shown
    flags = yaml.safe_load(shown)
    assert flags.pop("about") == find_recipe(name).about
    assert flags == find_recipe(name).flags

    file = tmp_path / "mine.yaml"
    assert main(["recipes", "copy", name, "--output", str(file)]) == 0
    assert file.read_text() == shown
    file.write_text("mine")
    assert main(["recipes", "copy", name, "--output", str(file)]) == 2
    assert file.read_text() == "mine"
    assert "--overwrite" in capsys.readouterr().err
    assert main(["recipes", "copy", name, "--output", str(file), "--overwrite"]) == 0
    assert file.read_text() == shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected list, show, copy or run"),
        (["lst"], "did you mean 'list'"),
        (["show", "table1/opt-350m/qd/uld"], "did you mean 'table1/opt-350m/qed/uld'"),
        (["show", "nothing like it"], "`crosskd recipes list`"),
        (["show"], "--name"),
        (["list", "--table", "9"], "1, 2, 3"),
        (["list", "--student", "opt350m"], "did you mean 'opt-350m'"),
        (["list", "--output", "x"], "flag --output"),
        (["copy", "table7/opt-350m/iterations-5", "--output", "."], "a folder"),
        (["run", "table7/opt-350m/iterations-5", "--output", "x", "--max_steps", "0"], "at least 1"),
        (["run", "table7/opt-350m/iterations-5", "--output", "x", "--model_override", "huge"], "tiny"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_page_repeats_the_published_scores() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
    before, *sections = re.split(r"^### Table (\d)", page, flags=re.MULTILINE)
    tables = dict(zip(map(int, sections[::2]), (text.split("\n## ")[0] for text in sections[1::2]), strict=True))
    for number, text in tables.items():
        scores = [float(score) for score in re.findall(r"\d+\.\d\d", text)]
        assert scores == [recipe.score for recipe in recipes().values() if recipe.table == number]
    assert set(tables) == {recipe.table for recipe in recipes().values()}
    around = [value for scores in (*TEACHERS.values(), *UNTOUCHED.values()) for value in scores]
    assert [float(score) for score in re.findall(r"\d+\.\d\d\b", before.split("## Published scores")[1])] == around
    runs = [recipe for recipe in recipes().values() if "same_run_as" not in recipe.about]
    assert f"{len(runs)} runs serve the {len(recipes())} scores" in page
