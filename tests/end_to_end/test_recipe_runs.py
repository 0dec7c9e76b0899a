"""Recipes run: the whole way for one of each kind, and the training of every configuration, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from crosskd.cli.main import main
from crosskd.models.tiny import tiny_stand_in
from crosskd.recipes.grid import METRICS, Recipe, find_recipe, recipes
from crosskd.recipes.text import recipe_text

DATA = {"qed": "sample:qed", "fairytaleqa": "sample:fairytaleqa"}


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dialogues in the form of DialogSum, with three summaries each in the split that is scored."""
    folder = tmp_path_factory.mktemp("dialogsum")
    places = ["Rome", "Oslo", "Lima", "Cairo", "Delhi", "Quito"]
    rows = [
        {
            "fname": f"{split}_{number}",
            "dialogue": f"#Person1#: Where do you go in May?\n#Person2#: To {place}, if train {number} runs.",
            **{f"summary{n}": f"#Person2# wants to go to {place} ({n})." for n in (1, 2, 3)},
        }
        for split in ("train", "test")
        for number, place in enumerate(places)
    ]
    for split in ("train", "test"):
        part = [row for row in rows if row["fname"].startswith(split)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


WHOLE = [
    "table1/opt-350m/qed/multilevel_ot",
    "table1/bloomz-560m/dialogsum/seqkd",
    "table1/pythia-410m/fairytaleqa/mined",
    "table2/pythia-410m/fairytaleqa/multilevel_ot",
    "table5/mt0-300m/dialogsum/multilevel_ot",
    "table6/opt-350m/qwen/uld",
]


@pytest.mark.parametrize("name", WHOLE)
def test_a_recipe_runs_from_data_to_score(
    name: str, dialogues: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = find_recipe(name)
    folder = tmp_path / "run"
    words = ["recipes", "run", name, "--data", DATA.get(recipe.data, str(dialogues)), "--output", str(folder)]
    words += ["--model_override", "tiny", "--limit", "4", "--max_new_tokens", "6"]
    words += ["--split", "test" if recipe.data == "dialogsum" else "validation"]
    assert main(words) == 0
    shown = capsys.readouterr()
    (scores,) = folder.glob("scores/*/scores.json")
    own = json.loads(scores.read_text())["scores"][recipe.metric]
    for text in (METRICS[recipe.metric], f"{100 * own:.2f}", f"{recipe.score:.2f}", "Do not compare"):
        assert text in shown.out
    verbs = (
        ["prepare", "answer", "distill", "evaluate"] if "answer" in recipe.about else ["prepare", "distill", "evaluate"]
    )
    assert [line.split()[2] for line in shown.err.splitlines() if line.startswith("$ crosskd")] == verbs
    trained = yaml.safe_load((folder / "student" / "resolved_config.yaml").read_text())
    for flag in ("method", "task", "supervision", "learning_rate", "weight_decay"):
        assert trained[flag] == recipe.flags[flag]
    # the whole is done: going on does no step again
    before = (folder / "student" / "model.safetensors").stat().st_mtime_ns
    assert main([*words, "--resume"]) == 0
    assert (folder / "student" / "model.safetensors").stat().st_mtime_ns == before
    assert "done before: train the student" in capsys.readouterr().err


def test_a_run_goes_on_only_as_what_it_was_and_says_early_that_a_split_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "table1/opt-350m/fairytaleqa/sft"
    words = ["--data", "sample:fairytaleqa", "--output", str(tmp_path), "--model_override", "tiny", "--limit", "2"]
    assert main(["recipes", "run", name, *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "'test'" in error
    assert "--resume and --split validation" in error
    assert not (tmp_path / "student").exists()
    assert main(["recipes", "run", name, *words, "--split", "validation"]) == 2
    assert "not empty" in capsys.readouterr().err
    for changed in (["table1/opt-350m/qed/sft", *words], [name, *words[:-1], "3"]):
        assert main(["recipes", "run", *changed, "--resume", "--split", "validation"]) == 2
        assert "not " in capsys.readouterr().err
    assert main(["recipes", "run", name, *words, "--resume", "--split", "validation"]) == 0
    assert main(["recipes", "run", name.replace("sft", "uld"), *words, "--overwrite", "--split", "validation"]) == 0
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["method"] == "uld"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    assert main(["prepare", "--data", "sample:qed", "--limit", "4", "--output", str(folder / "qed")]) == 0
    return folder


def answered(teacher: str, source: str, prepared: Path) -> Path:
    """The questions with the answers of a teacher's stand-in, made once for each."""
    folder = prepared / teacher
    if not folder.exists():
        words = ["--data", str(prepared / "qed"), "--output", str(folder), "--max_new_tokens", "4"]
        assert main(["answer", "--teacher", str(tiny_stand_in(source, "teacher")), *words]) == 0
    return folder


def distinct() -> dict[str, Recipe]:
    """One recipe of each configuration: those that differ in data alone run through the same code."""
    found: dict[str, Recipe] = {}
    for recipe in recipes().values():
        flags = {
            key: value
            for key, value in recipe.flags.items()
            if key not in ("output_dir", "data", "task", "number_few_shot")
        }
        found.setdefault(yaml.safe_dump(flags), recipe)
    return {recipe.name: recipe for recipe in found.values()}


@pytest.mark.parametrize("recipe", distinct().values(), ids=distinct())
def test_every_configuration_trains(recipe: Recipe, prepared: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_text(recipe), encoding="utf-8")
    data = (
        answered(recipe.teacher, recipe.about["answer"]["teacher"], prepared)
        if "answer" in recipe.about
        else prepared / "qed"
    )
    words = ["distill", "--config", str(file), "--data", str(data), "--output_dir", str(tmp_path / "student")]
    words += [
        "--model_override",
        "tiny",
        "--max_steps",
        "1",
        "--save_strategy",
        "no",
        "--logging_steps",
        "1",
        "--number_few_shot",
        "1",
    ]
    assert main(words) == 0
    lines = (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()
    terms = json.loads(lines[0])
    assert terms["loss"] > 0
    assert (terms.get("distillation", 0) > 0) == ("teacher" in recipe.flags)
