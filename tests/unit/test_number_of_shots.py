"""The usual number of shots adapts to a task that has fewer, and says so; a number that was given does not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from crosskd.cli.main import main
from crosskd.errors import UsageError
from crosskd.text.tasks import Task, load_task
from crosskd.training.config import DistillationConfig

COLOURS = str(Path(__file__).parents[1] / "colours.yaml")  # two shots


def test_usual_given_and_impossible_numbers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    colours, none, qa = load_task(COLOURS), Task("none", "Say.", "{context}\nAnswer:"), load_task("qa")
    assert [task.number_of_shots(None) for task in (qa, colours, none)] == [5, 2, 0]
    assert [record.getMessage() for record in caplog.records] == [
        "task colours has 2 shots: prompts get these, not 5", "task none has 0 shots: prompts get these, not 5",
    ]  # fmt: skip
    assert colours.number_of_shots(1) == 1
    for wanted in (3, -1):
        with pytest.raises(UsageError, match=f"--number_few_shot: got {wanted}; expected 0 to 2"):
            colours.number_of_shots(wanted)


def test_a_configuration_has_the_number_that_is_used(tmp_path: Path) -> None:
    output = str(tmp_path / "unused")
    assert DistillationConfig(output_dir=output).number_few_shot == 5
    assert DistillationConfig(output_dir=output, task=COLOURS).number_few_shot == 2
    assert DistillationConfig(output_dir=output, task=COLOURS, number_few_shot=1).number_few_shot == 1
    with pytest.raises(UsageError, match="got 3; expected 0 to 2"):
        DistillationConfig(output_dir=output, task=COLOURS, number_few_shot=3)


@pytest.fixture
def verbs(teacher_folder: Path, student_folder: Path, data_folder: Path, tmp_path: Path) -> dict[str, list[str]]:
    teacher, data = ["--teacher", str(teacher_folder), "--task", COLOURS], ["--data", str(data_folder)]
    return {
        "inspect": ["inspect", *teacher, "--student", str(student_folder), *data, "--json"],
        "cache": ["cache", *teacher, *data, "--output", str(tmp_path / "cache")],
        "answer": ["answer", *teacher, *data, "--output", str(tmp_path / "answer"), "--max_new_tokens", "3"],
        "distill": ["distill", *teacher, "--student", str(student_folder), *data, "--output_dir",
                    str(tmp_path / "distill"), "--max_steps", "1"],
        "evaluate": ["evaluate", "--model", str(student_folder), "--task", COLOURS, *data, "--output",
                     str(tmp_path / "evaluate"), "--max_new_tokens", "3"],
    }  # fmt: skip


def test_verbs_work_with_a_task_of_two_shots_and_say_so(
    verbs: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("cache", "answer", "distill"):
        assert main(verbs[verb]) == 0
        told = " ".join(capsys.readouterr().err.split())
        assert told.count("task colours has 2 shots") == 1, verb
    assert main(verbs["inspect"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["number_few_shot"] == 2
    assert json.loads((tmp_path / "cache" / "identity.json").read_text())["number_few_shot"] == 2


@pytest.mark.parametrize("verb", ["inspect", "cache", "answer", "distill", "evaluate"])
def test_too_many_are_refused_before_a_model_is_loaded(
    verb: str, verbs: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    loader = "load_tokenizer" if verb == "inspect" else "load_model"
    monkeypatch.setattr(f"crosskd.cli.{verb}.{loader}", lambda *_, **__: pytest.fail("a model was loaded"))
    assert main([*verbs[verb], "--number_few_shot", "3"]) == 2
    assert "--number_few_shot: got 3; expected 0 to 2, the shots of task colours" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
