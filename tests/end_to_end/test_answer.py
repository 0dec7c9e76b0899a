"""The teacher answers: by command line, killed and resumed, and what is trained on its answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

import crosskd.cli.answer
from crosskd import load_model
from crosskd.cli.main import main
from crosskd.data.prepare import load_examples, load_splits
from helpers_models import SMALL, examples
from helpers_tokenizers import sentencepiece_tokenizer
from helpers_tolerances import loss_tolerance

SAMPLED = ["--temperature", "0.8", "--top_p", "0.9", "--seed", "3"]


def answer(teacher: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        "answer", "--teacher", str(teacher), "--data", str(data), "--output", str(output), "--number_few_shot", "1",
        "--max_new_tokens", "6", "--shard_size", "2", "--batch_size", "2", *more,
    ]  # fmt: skip


def distill(student: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        "distill", "--student", str(student), "--data", str(data), "--output_dir", str(output), "--top_k", "10",
        "--number_few_shot", "1", "--logging_steps", "1", "--per_device_train_batch_size", "4", "--save_strategy", "no",
        *more,
    ]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def answered(teacher_folder: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answered") / "data"
    assert main(answer(teacher_folder, data_folder, folder, *SAMPLED)) == 0
    return folder


@pytest.fixture(scope="module")
def wide_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with an embedding for every token of its tokenizer, so that it can read whatever it wrote."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    config = GPTNeoXConfig(**{**SMALL, "vocab_size": len(sentencepiece_tokenizer())}, max_position_embeddings=512)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    sentencepiece_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def partly_answered(answered: Path, tmp_path: Path) -> Path:
    """Answers of which the second and the last are empty."""
    splits = load_splits(answered)
    texts = [f"house {index}" for index in range(12)]
    texts[1] = texts[11] = ""
    splits["train"] = splits["train"].remove_columns("teacher_answer").add_column("teacher_answer", texts)
    splits.save_to_disk(str(tmp_path / "partly"))
    return tmp_path / "partly"


def test_all_splits_are_kept_and_one_is_answered(data_folder: Path, answered: Path) -> None:
    before, after = load_examples(data_folder, "train"), load_examples(answered, "train")
    assert after.column_names == [*before.column_names, "teacher_answer"]
    assert [after[name][:] for name in before.column_names] == [before[name][:] for name in before.column_names]
    assert len(set(after["teacher_answer"])) > 6
    assert load_examples(answered, "validation").to_list() == load_examples(data_folder, "validation").to_list()
    summary = json.loads((answered / "answer_summary.json").read_text())
    assert summary["empty_answers"] == sum(not text for text in after["teacher_answer"])
    assert (answered / "prepare_summary.json").is_file()


def test_json_lines_hold_the_same_and_can_be_prepared(
    teacher_folder: Path, data_folder: Path, answered: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    assert main(answer(teacher_folder, data_folder, lines, *SAMPLED, "--format", "jsonl")) == 0
    rows = [json.loads(line) for line in (lines / "train.jsonl").read_text().splitlines()]
    assert rows == load_examples(answered, "train").to_list()
    assert main(["prepare", "--data", str(lines), "--output", str(tmp_path / "again")]) == 0
    assert load_examples(tmp_path / "again", "train").to_list() == rows


def test_a_killed_run_is_finished_by_resume(
    teacher_folder: Path, data_folder: Path, answered: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    words = answer(teacher_folder, data_folder, killed, *SAMPLED)
    process = subprocess.Popen(
        [sys.executable, "-m", "crosskd", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not list(killed.glob(".answers/0*.jsonl")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(killed.glob(".answers/0*.jsonl"))
    assert not (killed / "answer_summary.json").exists()
    assert main([*words, "--resume"]) == 0
    assert contents(killed) == contents(answered)


@pytest.mark.parametrize("moves", [0, 2, 4])
def test_a_run_killed_between_its_last_moves_is_finished_by_resume(
    moves: int, teacher_folder: Path, data_folder: Path, answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "killed"
    words = answer(teacher_folder, data_folder, killed, *SAMPLED)
    replace, done = Path.replace, []

    def replacing(source: Path, target: Path) -> Path:
        if source.parent.name == "assembled" and not source.name.startswith("."):
            if len(done) == moves:
                raise KeyboardInterrupt
            done.append(source.name)
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replacing)
        assert main(words) == 130
    assert not (killed / "answer_summary.json").exists()
    assert main([*words, "--resume"]) == 0
    assert contents(killed) == contents(answered)


def test_a_finished_run_is_left_alone(
    teacher_folder: Path,
    data_folder: Path,
    answered: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(answered)
    monkeypatch.setattr(crosskd.cli.answer, "_fill", None)
    assert main(answer(teacher_folder, data_folder, answered, *SAMPLED, "--resume")) == 0
    assert contents(answered) == before
    assert main(answer(teacher_folder, data_folder, answered, *SAMPLED)) == 2
    assert "--resume" in capsys.readouterr().err


def test_other_settings_are_refused_by_name(
    teacher_folder: Path,
    student_folder: Path,
    data_folder: Path,
    answered: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*answer(teacher_folder, data_folder, answered, *SAMPLED), "--resume"]
    for more, told in (
        (["--number_few_shot", "0"], "number_few_shot: there 1, here 0"),
        (["--seed", "4"], "seed: there 3, here 4"),
        (["--temperature", "0"], "temperature: there 0.8, here 0"),
        (["--max_new_tokens", "7"], "max_new_tokens: there 6, here 7"),
        (["--teacher", str(student_folder)], "teacher_weights_sha256"),
        (["--split", "validation"], "split: there train, here validation"),
        (["--data", "sample:qed"], "data_sha256"),
    ):
        assert main([*words, *more]) == 2
        assert told in " ".join(capsys.readouterr().err.split())


def test_bad_flags_are_named_before_anything_is_written(
    teacher_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, told in (
        (["--shard_size", "0"], "--shard_size"),
        (["--top_p", "2"], "--top_p"),
        (["--split", "trian"], "did you mean 'train'?"),
        (["--number_few_shot", "99"], "number_few_shot"),
        (["--output", str(data_folder), "--overwrite"], "the folder of the data"),
        (["--output", str(data_folder.parent), "--overwrite"], "the folder of the data"),
    ):
        assert main(answer(teacher_folder, data_folder, tmp_path / "a", *more)) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert len(load_examples(data_folder, "train")) == 12


@pytest.mark.parametrize("method", [["--method", "seqkd"], ["--method", "sft", "--supervision", "teacher"]])
def test_a_student_learns_the_teachers_answers(
    method: list[str], student_folder: Path, answered: Path, tmp_path: Path
) -> None:
    words = distill(student_folder, answered, tmp_path / "run", *method, "--max_steps", "30", "--learning_rate", "1e-3")
    assert main(words) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[:30]]
    assert losses[-1] < losses[0] / 2


def test_empty_answers_are_left_out_of_caches_and_of_training_alike(
    student_folder: Path,
    teacher_folder: Path,
    partly_answered: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    targets = tmp_path / "targets"
    words = [
        "cache", "--teacher", str(teacher_folder), "--data", str(partly_answered), "--output", str(targets),
        "--number_few_shot", "1", "--top_k", "10", "--supervision", "teacher", "--target_dtype", "float32",
    ]  # fmt: skip
    assert main(words) == 0
    assert json.loads((targets / "identity.json").read_text())["examples"] == 10
    assert "2 of 12 examples are left out" in " ".join(capsys.readouterr().err.split())
    settings = ["--supervision", "teacher", "--max_steps", "6", "--learning_rate", "1e-4"]
    live, cached = tmp_path / "live", tmp_path / "cached"
    assert main(distill(student_folder, partly_answered, live, *settings, "--teacher", str(teacher_folder))) == 0
    assert main(distill(student_folder, partly_answered, cached, *settings, "--teacher_cache", str(targets))) == 0
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()[:6]]
        for run in (live, cached)
    ]
    models = load_model(student_folder).model, load_model(teacher_folder).model
    assert losses[0] == pytest.approx(losses[1], rel=loss_tolerance(*models, length=256, tokens=100))


def test_training_on_answers_that_are_not_there_says_how_to_get_them(
    student_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(distill(student_folder, data_folder, tmp_path / "run", "--method", "seqkd")) == 2
    assert "crosskd answer" in capsys.readouterr().err


def test_unlabelled_data_from_a_file_to_a_student(student_folder: Path, wide_teacher: Path, tmp_path: Path) -> None:
    raw = tmp_path / "train.jsonl"
    rows = [{name: row[name] for name in ("id", "context", "question")} for row in examples(6)]
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, answers = tmp_path / "data", tmp_path / "answers"
    assert main(["prepare", "--data", str(raw), "--output", str(data), "--unlabelled"]) == 0
    assert main(answer(wide_teacher, data, answers, *SAMPLED)) == 0
    words = distill(student_folder, answers, tmp_path / "run", "--supervision", "teacher", "--max_steps", "2")
    assert main([*words, "--teacher", str(wide_teacher)]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_answers_of_another_tool_are_merged(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given.jsonl"
    given.write_text("".join(json.dumps({"id": f"q{i}", "prediction_text": f"text {i}"}) + "\n" for i in range(15)))
    words = ["prepare", "--data", str(data_folder), "--answers", str(given), "--max_characters", "70"]
    assert main([*words, "--output", str(tmp_path / "merged")]) == 0
    train = load_examples(tmp_path / "merged", "train")
    assert train["teacher_answer"][:] == [f"text {name.removeprefix('q')}" for name in train["id"]]
    assert 0 < len(train) < 12
    assert "validation: 1 examples have no answer" in " ".join(capsys.readouterr().err.split())
