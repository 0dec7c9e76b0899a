"""Real command lines: the whole way, YAML and flags, resume, and every kind of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import BertConfig, BertForMaskedLM

from crosskd.cli.main import VERBS, main


def distill(student: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        "distill", "--student", str(student), "--data", str(data), "--output_dir", str(output), "--method", "sft",
        "--max_steps", "4", "--per_device_train_batch_size", "2", "--logging_steps", "1", "--learning_rate", "1e-3",
        *more,
    ]  # fmt: skip


def test_prepare_distill_evaluate_report(student_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    run, scores, page = tmp_path / "run", tmp_path / "scores", tmp_path / "report.html"
    assert main(distill(student_folder, data_folder, run)) == 0
    words = ["evaluate", "--model", str(run), "--data", str(data_folder), "--output", str(scores)]
    assert main([*words, "--max_new_tokens", "5"]) == 0
    assert json.loads((scores / "scores.json").read_text())["examples"] == 4
    assert "qa, 4 examples" in (run / "README.md").read_text()
    assert main(["report", "--runs", str(tmp_path), "--output", str(page)]) == 0
    assert "<svg" in page.read_text()


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_explains_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"crosskd {verb}" in shown
    assert "--config FILE" in shown


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line that a bad command line gets."""
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"crosskd {words[0]}: error: ")
    return error


def test_mistyped_flags_keys_verbs_and_methods_get_a_suggestion(
    student_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = distill(student_folder, data_folder, tmp_path / "out")
    assert "did you mean '--learning_rate'?" in refused(capsys, [*good, "--learnin_rate", "1"])
    assert "did you mean '--learning_rate'?" in refused(capsys, ["distill", "--learnin_rate", "1"])
    (tmp_path / "bad.yaml").write_text("learnin_rate: 1\n")
    assert "did you mean 'learning_rate'?" in refused(capsys, [*good, "--config", str(tmp_path / "bad.yaml")])
    assert "did you mean 'distill'?" in refused(capsys, ["distil"])
    assert "did you mean 'multilevel_ot'?" in refused(capsys, [*good, "--method", "multilevelot"])
    assert "--max_steps" in refused(capsys, [*good, "--max_steps", "many"])
    assert "--student" in refused(capsys, ["distill", "--data", str(data_folder), "--output_dir", str(tmp_path / "o")])
    assert not (tmp_path / "out").exists()


def test_bad_files_and_models_are_named_and_nothing_is_written(
    student_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "nowhere" in refused(capsys, distill(student_folder, tmp_path / "nowhere", out))
    assert "no such folder" in refused(capsys, distill(tmp_path / "none" / "x" / "y", data_folder, out))
    BertForMaskedLM(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    ).save_pretrained(tmp_path / "bert")
    assert "BertForMaskedLM" in refused(capsys, distill(tmp_path / "bert", data_folder, out))
    words = ["evaluate", "--model", str(tmp_path / "bert"), "--data", str(data_folder), "--output"]
    assert "BertForMaskedLM" in refused(capsys, [*words, str(out)])
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "scores.json").write_text("{}")
    assert "BertForMaskedLM" in refused(capsys, [*words, str(tmp_path / "kept"), "--overwrite"])
    assert (tmp_path / "kept" / "scores.json").exists()
    too_long = distill(student_folder, data_folder, out, "--max_length", "8")
    assert "expected at most 8" in refused(capsys, too_long)
    same = [*distill(student_folder, data_folder, out, "--teacher", str(student_folder)), "--method", "uld"]
    assert "the student itself" in refused(capsys, same)
    assert not out.exists()


def test_an_output_folder_that_holds_something_is_kept(
    student_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert "--overwrite" in refused(capsys, distill(student_folder, data_folder, tmp_path))
    words = ["evaluate", "--model", str(student_folder), "--data", str(data_folder), "--output", str(tmp_path)]
    assert "--overwrite" in refused(capsys, words)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_the_command_line_wins_over_the_file(student_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("max_steps: 3\nsave_strategy: 'no'\nlearning_rate: 1e-4\n")
    words = distill(student_folder, data_folder, tmp_path / "run", "--config", str(tmp_path / "recipe.yaml"))
    assert main(words) == 0
    resolved = (tmp_path / "run" / "resolved_config.yaml").read_text()
    assert "max_steps: 4" in resolved
    assert "save_strategy: 'no'" in resolved
