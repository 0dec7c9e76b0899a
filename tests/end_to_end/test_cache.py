"""The teacher runs once: caches by command line, killed and resumed, shared, and as good as a live teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from crosskd.cli.main import main
from helpers_kills import run_and_kill
from helpers_models import tiny_model
from helpers_tokenizers import sentencepiece_tokenizer


def cache(teacher: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        "cache", "--teacher", str(teacher), "--data", str(data), "--output", str(output), "--number_few_shot", "1",
        "--top_k", "10", "--shard_size", "2", *more,
    ]  # fmt: skip


def distill(student: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        "distill", "--student", str(student), "--data", str(data), "--output_dir", str(output), "--top_k", "10",
        "--number_few_shot", "1", "--logging_steps", "1", "--per_device_train_batch_size", "4", "--save_strategy", "no",
        *more,
    ]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("method", ["uld", "mined", "multilevel_ot"])
def test_cached_training_equals_live_training(
    method: str, student_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    targets, live, cached = tmp_path / "targets", tmp_path / "live", tmp_path / "cached"
    assert main(cache(teacher_folder, data_folder, targets, "--methods", method, "--target_dtype", "float32")) == 0
    settings = ["--method", method, "--max_steps", "50", "--learning_rate", "1e-4"]
    words = distill(student_folder, data_folder, live, *settings, "--teacher", str(teacher_folder))
    assert main(words) == 0
    words = distill(student_folder, data_folder, cached, *settings, "--teacher_cache", str(targets))
    assert main(words) == 0
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()[:50]]
        for run in (live, cached)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]


def test_the_teacher_is_not_loaded_beside_a_cache(
    student_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import crosskd.cli.distill

    assert main(cache(teacher_folder, data_folder, tmp_path / "targets")) == 0
    loaded: list[str] = []
    load = crosskd.cli.distill.load_model

    def counting(source: str, **options: object) -> object:
        loaded.append(source)
        return load(source, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(crosskd.cli.distill, "load_model", counting)
    words = distill(student_folder, data_folder, tmp_path / "run", "--max_steps", "1", "--teacher", str(teacher_folder))
    assert main([*words, "--teacher_cache", str(tmp_path / "targets")]) == 0
    assert loaded == [str(student_folder)]


def test_a_killed_cache_is_finished_by_resume(teacher_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = run_and_kill(cache(teacher_folder, data_folder, whole, "--batch_size", "1"), watched=whole)
    assert undisturbed.status == 0
    words = cache(teacher_folder, data_folder, killed, "--batch_size", "1")
    run = run_and_kill(words, at_event=undisturbed.events // 2, watched=killed)
    assert run.killed
    assert 0 < len(list(killed.glob("*.safetensors"))) < len(list(whole.glob("*.safetensors")))
    assert main([*words, "--resume"]) == 0
    assert contents(killed) == contents(whole)


def test_hosts_share_a_cache(teacher_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert main(cache(teacher_folder, data_folder, alone)) == 0
    for part in ("2/2", "1/2"):
        assert main(cache(teacher_folder, data_folder, shared, "--shard", part)) == 0
    assert contents(shared) == contents(alone)


def test_a_cache_of_something_else_is_refused(
    student_folder: Path,
    teacher_folder: Path,
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    targets = tmp_path / "targets"
    assert main(cache(teacher_folder, data_folder, targets)) == 0
    words = distill(student_folder, data_folder, tmp_path / "run", "--teacher_cache", str(targets), "--max_steps", "1")
    for more, told in (
        (["--number_few_shot", "2"], "number_few_shot: there 1, here 2"),
        (["--top_k", "20"], "request_top_k: there 10, here 20"),
        (["--method", "uld"], "request_top_entries: there None"),
        (["--formulation", "authors"], "request_standardized: there False, here True"),
        (["--data", "sample:qed"], "data_sha256"),
    ):
        assert main([*words, *more]) == 2
        assert told in capsys.readouterr().err
    other = tmp_path / "another_teacher"
    tiny_model("gemma3", seed=7).save_pretrained(other)
    sentencepiece_tokenizer().save_pretrained(other)
    assert main([*words, "--teacher", str(other)]) == 2
    assert "teacher_weights_sha256" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    shutil.copytree(teacher_folder, tmp_path / "moved")  # the same teacher in another place
    assert main([*words, "--teacher", str(tmp_path / "moved")]) == 0
    assert main(cache(teacher_folder, data_folder, targets, "--resume", "--number_few_shot", "0")) == 2
    assert "number_few_shot: there 1, here 0" in capsys.readouterr().err


def test_one_cache_serves_several_methods_and_is_repaired(
    student_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = tmp_path / "targets"
    words = cache(teacher_folder, data_folder, targets, "--methods", "multilevel_ot,uld,mined")
    assert main(words) == 0
    whole = contents(targets)
    (targets / "targets-00002.safetensors").write_bytes(b"half a file")
    training = ["--teacher_cache", str(targets), "--max_steps", "1"]
    assert main(distill(student_folder, data_folder, tmp_path / "run", *training)) == 2
    assert "targets-00002.safetensors is damaged" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 2
    assert "--repair" in capsys.readouterr().err
    assert main([*words, "--repair"]) == 0
    assert contents(targets) == whole
    for method in ("multilevel_ot", "uld", "mined"):
        output = tmp_path / method
        assert main(distill(student_folder, data_folder, output, *training, "--method", method)) == 0


def test_bad_parts_and_methods_are_named(
    teacher_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, told in (
        (["--shard", "3/2"], "--shard"),
        (["--methods", "sft"], "methods that ask the teacher"),
        (["--methods", "uld,mind"], "did you mean 'mined'?"),
    ):
        assert main(cache(teacher_folder, data_folder, tmp_path / "c", *more)) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
