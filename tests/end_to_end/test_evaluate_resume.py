"""`evaluate --resume`: a killed evaluation goes on and ends with the same answers; another one is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from crosskd.cli.main import main
from crosskd.evaluation.keeper import UNFINISHED
from crosskd.files import read_jsonl

SOURCES = Path(__import__("crosskd").__file__).parents[1]
Words = list[str]


@pytest.fixture
def words(student_folder: Path, data_folder: Path) -> Words:
    """Twelve examples in six batches."""
    return [
        "evaluate", "--model", str(student_folder), "--data", str(data_folder), "--split", "train",
        "--max_new_tokens", "8", "--batch_size", "2", "--name", "student",
    ]  # fmt: skip


def results(folder: Path) -> tuple[dict[str, Any], str]:
    """Scores without times, and predictions."""
    record = json.loads((folder / "scores.json").read_text())
    del record["seconds"], record["settings"]["finished"]
    return record, (folder / "predictions.jsonl").read_text()


def break_off(words: Words, after: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run, and stop as by a signal once ``after`` batches are answered."""
    from crosskd.evaluation import generation

    calls, answer = [], generation._answer_batch

    def counted(*arguments: Any) -> list[str]:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        return answer(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "_answer_batch", counted)
        return main(words)


@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_interrupted_evaluation_goes_on(
    after: int, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main([*words, "--output", str(whole)]) == 0
    assert [path.name for path in sorted(whole.iterdir())] == ["predictions.jsonl", "scores.json"]
    assert break_off([*words, "--output", str(resumed)], after, monkeypatch) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert len(read_jsonl(resumed / UNFINISHED)) == 1 + after
    assert main([*words, "--output", str(resumed)]) == 2  # nothing is thrown away by mistake
    assert "--resume" in capsys.readouterr().err
    answered = []
    monkeypatch.setattr(
        "crosskd.evaluation.keeper.AnswerKeeper.keep", lambda _, answers: answered.append(sorted(answers))
    )
    assert main([*words, "--output", str(resumed), "--resume"]) == 0
    assert len(answered) == 6 - after
    assert results(resumed) == results(whole)
    assert not (resumed / UNFINISHED).exists()


def test_half_a_line_of_a_killed_process_is_dropped(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main([*words, "--output", str(whole)]) == 0
    assert break_off([*words, "--output", str(resumed)], 2, monkeypatch) == 130
    with (resumed / UNFINISHED).open("a") as file:
        file.write('{"seconds": 0.1, "answ')
    assert break_off([*words, "--output", str(resumed), "--resume"], 1, monkeypatch) == 130
    assert len(read_jsonl(resumed / UNFINISHED)) == 4
    assert main([*words, "--output", str(resumed), "--resume"]) == 0
    assert results(resumed) == results(whole)


def test_an_evaluation_of_something_else_is_not_gone_on_with(
    words: Words, teacher_folder: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    begun, finished = tmp_path / "begun", tmp_path / "finished"
    assert break_off([*words, "--output", str(begun)], 2, monkeypatch) == 130
    assert main([*words, "--output", str(finished)]) == 0
    before = {path: path.read_bytes() for path in (*begun.iterdir(), *finished.iterdir())}
    others = {
        "weights_sha256": ["--model", str(teacher_folder)],
        "number_few_shot": ["--number_few_shot", "1"],
        "max_new_tokens": ["--max_new_tokens", "9"],
        "split": ["--split", "validation"],
        "examples": ["--limit", "5"],
        "dtype": ["--dtype", "bfloat16"],
        "task": ["--task", "qa_generative"],
        "max_length": ["--max_length", "400"],
        "rouge_aggregate": ["--rouge_aggregate", "mean"],
    }
    for folder in (begun, finished):
        for field, flags in others.items():
            capsys.readouterr()
            assert main([*words, "--output", str(folder), "--resume", *flags]) == 2, field
            assert f"{field}: there" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (*begun.iterdir(), *finished.iterdir())}
    shutil.copytree(words[2], tmp_path / "moved")
    words[2] = str(tmp_path / "moved")  # the same model under another path
    for folder in (begun, finished):
        assert main([*words, "--output", str(folder), "--resume"]) == 0
    assert "is whole already" in capsys.readouterr().out
    assert results(finished)[1] == results(begun)[1]


@pytest.mark.parametrize("flag", ["limit", "batch_size", "max_new_tokens"])
def test_numbers_that_mean_nothing_are_refused_before_the_model_is_loaded(
    flag: str, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("crosskd.cli.evaluate.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert main([*words, "--output", str(tmp_path / "out"), f"--{flag}", "0"]) == 2
    assert f"--{flag}: got 0; expected an integer of at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Answers slowly, so that there is time to be killed in.
SLOW = """
import sys, time
from crosskd.evaluation import generation
answer = generation._answer_batch
generation._answer_batch = lambda *arguments: (time.sleep(0.5), answer(*arguments))[1]
from crosskd.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def start(words: Words) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.Popen([sys.executable, "-c", SLOW, *words], env=environment, stderr=subprocess.PIPE)


def wait_for_answers(process: subprocess.Popen[bytes], folder: Path, more_than: int = 0) -> None:
    """Until the folder holds the answers of more batches than before."""
    deadline = time.monotonic() + 300  # a process of its own takes a while to import torch
    while len(answered(folder)) <= more_than and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    assert len(answered(folder)) > more_than


def answered(folder: Path) -> list[dict[str, Any]]:
    path = folder / UNFINISHED
    return read_jsonl(path, unfinished=True)[1:] if path.is_file() else []


@pytest.mark.faults
def test_killed_at_random_moments(words: Words, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words[words.index("--batch_size") + 1] = "1"
    assert main([*words, "--output", str(whole)]) == 0
    moments, kept = random.Random(0), 0
    for _ in range(4):
        process = start([*words, "--output", str(killed), "--resume"])
        wait_for_answers(process, killed, kept)
        time.sleep(moments.uniform(0, 0.8))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert kept < len(answered(killed)) < 12
        kept = len(answered(killed))
    assert main([*words, "--output", str(killed), "--resume"]) == 0
    assert results(killed) == results(whole)


@pytest.mark.faults
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_it_with_one_line(number: int, code: int, words: Words, tmp_path: Path) -> None:
    process = start([*words, "--output", str(tmp_path / "out")])
    wait_for_answers(process, tmp_path / "out")
    process.send_signal(number)
    told = process.communicate(timeout=60)[1].decode()
    assert process.returncode == code
    assert told.strip().splitlines()[-1] == "crosskd evaluate: stopped; the same command with --resume goes on"
    assert "Traceback" not in told
