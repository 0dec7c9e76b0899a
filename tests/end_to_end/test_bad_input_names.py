"""Odd names are names: files, folders, splits, models and runs are called as their users like, and work."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from crosskd.cli.main import main
from helpers_bad_input import LINES, TASK, prediction, scores, snapshot
from helpers_models import SMALL, save_student

NAMES = [
    "with space",
    'it\'s "quoted"',
    "[v1]",
    "run [/v1]",
    "[bold red]",
    "a{b}%s%(c)s$HOME",
    "naïve-日本語-🙂",
    ":smile:",
    "back\\slash",
    "-dash",
    "--output",
    "a=b",
    "tab\tand\u2028line",
    "#hash;semi&amp<b>",
]


@pytest.fixture(params=NAMES)
def odd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an odd name, in which the command lines are typed."""
    folder = tmp_path / request.param
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return folder.relative_to(tmp_path)


def test_prepare_and_report_and_compare(odd: Path, tmp_path: Path) -> None:
    (tmp_path / odd / f"{odd.name}.jsonl").write_text(LINES)
    (tmp_path / odd / f"{odd.name}.yaml").write_text(TASK)
    words = [
        "prepare",
        f"--data={odd}/{odd.name}.jsonl",
        f"--task={odd}/{odd.name}.yaml",
        f"--output={odd}/data {odd.name}",
    ]
    assert main(words) == 0
    assert json.loads((tmp_path / odd / f"data {odd.name}" / "prepare_summary.json").read_text())["task"] == odd.name
    for name in ("one", "other"):
        folder = tmp_path / odd / name
        folder.mkdir()
        (folder / "predictions.jsonl").write_text(prediction(id=odd.name, question=odd.name, prediction=odd.name))
        (folder / "scores.json").write_text(scores(name=f"{name} {odd}", task=odd.name))
    # the words of a list cannot begin with a dash, so that such a folder is given as ./-dash
    runs = [f"./{odd}/one", f"./{odd}/other"]
    assert (
        main(["report", f"./{odd}", f"--output={odd}/{odd.name}.html", f"--title={odd}", f"--baseline=one {odd}"]) == 0
    )
    assert main(["compare", *runs, "--examples", "1", f"--output={odd}/{odd.name}.md"]) == 0
    assert (tmp_path / odd / f"{odd.name}.html").is_file()
    assert (tmp_path / odd / f"{odd.name}.md").is_file()


@pytest.mark.parametrize("odd", ["run [/v1]", 'it\'s "quoted" 日本語', "-dash"], indirect=True)
def test_models_caches_answers_and_scores(
    odd: Path, tmp_path: Path, student_folder: Path, teacher_folder: Path, data_folder: Path
) -> None:
    for name, source in (("student", student_folder), ("teacher", teacher_folder), ("data", data_folder)):
        shutil.copytree(source, tmp_path / odd / name)
    few = ["--number_few_shot", "0"]
    teacher = [f"--teacher={odd}/teacher", f"--data={odd}/data"]
    assert main(["inspect", f"--student={odd}/student", *teacher, *few]) == 0
    assert main(["answer", *teacher, f"--output={odd}/answers", "--max_new_tokens", "3", *few]) == 0
    assert main(["cache", *teacher, f"--output={odd}/cache", "--methods", "uld", *few]) == 0
    train = ["distill", f"--student={odd}/student", f"--data={odd}/data", f"--output_dir={odd}/run", "--max_steps", "1"]
    assert main([*train, "--method", "uld", f"--teacher_cache={odd}/cache", *few]) == 0
    words = ["evaluate", f"--model={odd}/run", f"--data={odd}/data", f"--output={odd}/scores", f"--name={odd}"]
    assert main([*words, "--max_new_tokens", "3"]) == 0
    assert json.loads((tmp_path / odd / "scores" / "scores.json").read_text())["name"] == str(odd)


WRONG = {
    "answer": ["answer", "--teacher", "wrong", "--output", "out", "--number_few_shot", "0"],
    "cache": ["cache", "--teacher", "wrong", "--output", "out", "--number_few_shot", "0"],
    "distill": ["distill", "--student", "wrong", "--output_dir", "out", "--method", "sft", "--max_steps", "1"],
    "evaluate": ["evaluate", "--model", "wrong", "--output", "out"],
}


@pytest.mark.parametrize("verb", WRONG)
def test_the_tokenizer_of_another_model_is_told_in_one_line(
    verb: str, tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ids are beyond the embeddings."""
    monkeypatch.chdir(tmp_path)
    save_student(tmp_path / "wrong")
    few = {**SMALL, "vocab_size": 100}
    LlamaForCausalLM(LlamaConfig(**few, num_key_value_heads=2)).save_pretrained(tmp_path / "wrong")
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert main([*WRONG[verb], "--data", str(data_folder)]) == 2
    assert "embeddings of" in capsys.readouterr().err.splitlines()[-1]
    assert snapshot(tmp_path) == before


def test_weights_that_lack_a_layer_are_told_in_one_line(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [logging.StreamHandler(sys.stderr)])
    file = save_student(tmp_path / "model") / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if ".layers.1." not in name}
    save_file(weights, file, metadata={"format": "pt"})
    capsys.readouterr()
    assert main(["evaluate", "--model", "model", "--data", str(data_folder), "--output", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no weights for model.layers.1." in line
    assert not (tmp_path / "out").exists()
