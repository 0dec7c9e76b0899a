"""``crosskd distill --resume``: finished runs, other settings, broken checkpoints, signals, full disks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from crosskd import DistillationTrainer
from crosskd.cli.main import main
from crosskd.training.checkpoints import last_checkpoint, problem_of, write_manifest
from helpers_families import TASK_FILE
from helpers_kills import contents
from helpers_resume import assert_ended_alike, in_step, leave_as_killed


def distill(student: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        "distill", "--student", str(student), "--data", str(data), "--output_dir", str(output), "--method", "sft",
        "--max_steps", "4", "--per_device_train_batch_size", "2", "--logging_steps", "3", "--learning_rate", "1e-2",
        "--save_strategy", "steps", "--save_steps", "1", "--use_cpu", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(student_folder: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``whole``, and ``killed`` in step 4: checkpoints 1 to 3, and one that is not whole."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        in_step(patch, 4, lambda run: leave_as_killed(run, folder / "killed"))
        assert main(distill(student_folder, data_folder, folder / "whole")) == 0
    return folder


@pytest.fixture
def killed(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs / "killed", tmp_path / "killed"))


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def test_a_killed_run_ends_as_the_undisturbed_one(
    runs: Path, killed: Path, student_folder: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(distill(student_folder, data_folder, killed, "--resume")) == 0
    assert "checkpoint-3" in capsys.readouterr().err
    assert_ended_alike(runs / "whole", killed)


def test_a_finished_run_is_left_as_it_is(
    runs: Path, tmp_path: Path, student_folder: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Also where paths are relative now, and settings that decide nothing differ."""
    run = tmp_path / "run"
    shutil.copytree(runs / "whole", run)
    bytes_before, before = contents(run), snapshot(run)
    monkeypatch.chdir(student_folder.parent)
    data = Path(os.path.relpath(data_folder))
    neutral = ["--save_total_limit", "1", "--run_name", "again", "--report_to", "none", "--disable_tqdm", "true"]
    assert main(distill(Path(student_folder.name), data, Path(os.path.relpath(run)), "--resume", *neutral)) == 0
    assert "finished already" in capsys.readouterr().out
    assert contents(run) == bytes_before
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("method", "uld"), ("data", "sample:qed"), ("student", "other"), ("teacher", "other"), ("seed", "8"),
        ("data_seed", "8"), ("learning_rate", "5e-3"), ("per_device_train_batch_size", "4"), ("max_steps", "6"),
        ("gradient_accumulation_steps", "2"), ("task", "dialogsum"), ("distillation_weight", "0.3"),
        ("lr_scheduler_type", "cosine"), ("adam_beta1", "0.8"), ("weight_decay", "0.1"),
        ("warmup_steps", "2"), ("max_grad_norm", "0.5"), ("peft", "lora"), ("freeze_layers", "1"), ("top_k", "7"),
        ("student_dtype", "bfloat16"), ("supervision", "teacher"), ("max_length", "400"), ("logging_steps", "1"),
        ("save_steps", "2"), ("eval_strategy", "epoch"), ("number_few_shot", "1"), ("adam_beta2", "0.98"),
        ("gradient_checkpointing", "true"), ("optim", "sgd"), ("model_override", "tiny"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("state", ["whole", "killed"])
def test_another_setting_is_refused_by_name(
    flag: str, value: str, state: str, runs: Path, student_folder: Path, data_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = snapshot(runs)
    assert main([*distill(student_folder, data_folder, runs / state, "--resume"), f"--{flag}", value]) == 2
    line = last_line(capsys)
    assert f"{flag}: there " in line
    assert line.count(": there ") == (2 if flag == "task" else 1)  # it has other shots
    assert snapshot(runs) == before


def test_another_schedule_is_refused_by_its_arguments(
    student_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = distill(student_folder, data_folder, tmp_path / "run", "--lr_scheduler_type", "cosine_with_min_lr")
    assert main([*words, "--lr_scheduler_kwargs", '{"min_lr": 1e-6}']) == 0
    assert main([*words, "--resume", "--lr_scheduler_kwargs", '{"min_lr": 1e-7}']) == 2
    assert "lr_scheduler_kwargs: there {'min_lr': 1e-06}, here {'min_lr': 1e-07}" in last_line(capsys)


@pytest.mark.parametrize("changed", ["data", "student", "task"])
def test_other_contents_under_the_same_path_are_refused(
    changed: str, student_folder: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    student, data = tmp_path / "student", tmp_path / "data"
    shutil.copytree(student_folder, student)
    shutil.copytree(data_folder, data)
    run, broken_off, task = tmp_path / "run", tmp_path / "killed", tmp_path / "colours.yaml"
    shutil.copyfile(TASK_FILE, task)
    more = ["--task", str(task)] if changed == "task" else []
    in_step(monkeypatch, 2, lambda folder: leave_as_killed(folder, broken_off))
    assert main(distill(student, data, run, *more)) == 0
    if changed == "task":
        task.write_text(task.read_text().replace("in one word", "in two words"))
    elif changed == "student":
        weights = load_file(student / "model.safetensors")
        weights[min(weights)] += 1
        save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    else:
        raw = tmp_path / "raw"
        raw.mkdir()
        row = {"id": "z", "context": "Ada lived here.", "question": "who lived here", "answers": ["Ada"]}
        (raw / "train.jsonl").write_text("".join(json.dumps({**row, "id": f"z{i}"}) + "\n" for i in range(12)))
        assert main(["prepare", "--data", str(raw), "--output", str(data), "--overwrite"]) == 0
    before = contents(broken_off)
    capsys.readouterr()
    assert main(distill(student, data, broken_off, "--resume", *more)) == 2
    line = last_line(capsys)
    assert f"{changed}_sha256: there " in line
    assert line.count(": there ") == 1
    assert contents(broken_off) == before


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


BREAKS = {
    "model": lambda folder: truncate(folder / "model.safetensors"),
    "optimizer": lambda folder: truncate(folder / "optimizer.pt"),
    "no manifest": lambda folder: (folder / "checkpoint_files.json").unlink(),
    "no state": lambda folder: (folder / "trainer_state.json").unlink(),
    "half a state": lambda folder: truncate(folder / "trainer_state.json"),
    "no random numbers": lambda folder: (folder / "rng_state.pth").unlink(),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("how", list(BREAKS))
def test_an_older_checkpoint_is_taken_where_the_newest_is_broken(
    how: str, runs: Path, killed: Path, student_folder: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BREAKS[how](killed / "checkpoint-3")
    assert main(distill(student_folder, data_folder, killed, "--resume")) == 0
    said = capsys.readouterr().err
    assert "checkpoint-3 is not whole" in " ".join(said.split())
    assert "going on from checkpoint-2" in " ".join(said.split())
    assert_ended_alike(runs / "whole", killed)
    assert problem_of(killed / "checkpoint-3") is None


def test_without_a_whole_checkpoint_it_starts_from_the_start_and_says_so(
    runs: Path, killed: Path, student_folder: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2, 3):
        truncate(killed / f"checkpoint-{step}" / "optimizer.pt")
    assert main(distill(student_folder, data_folder, killed, "--resume")) == 0
    assert "going on from the start" in " ".join(capsys.readouterr().err.split())
    assert_ended_alike(runs / "whole", killed)


def test_a_limit_removes_broken_checkpoints_before_good_ones(
    killed: Path, student_folder: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their times say: a copied folder may have those of another clock."""
    for step in (2, 3):
        truncate(killed / f"checkpoint-{step}" / "model.safetensors")
        os.utime(killed / f"checkpoint-{step}", (4e9 + step, 4e9 + step))
    good: list[Any] = []

    def look(run: Path) -> None:
        good.append(sorted(path.name for path in run.glob("checkpoint-*") if problem_of(path) is None))

    for step in (2, 3, 4):
        in_step(monkeypatch, step, look)
    assert main(distill(student_folder, data_folder, killed, "--resume", "--save_total_limit", "1")) == 0
    assert good == [["checkpoint-1"], ["checkpoint-2"], ["checkpoint-3"]]
    assert sorted(path.name for path in killed.glob("checkpoint-*")) == ["checkpoint-4"]


@pytest.mark.parametrize("how", ["missing", "unexpected", "of another shape"])
def test_a_checkpoint_with_other_weights_is_one_line(
    how: str, killed: Path, student_folder: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = killed / "checkpoint-3" / "model.safetensors"
    weights = load_file(path)
    name = "model.norm.weight"
    found = {"missing": None, "unexpected": torch.zeros(3), "of another shape": weights[name][:-1].clone()}[how]
    name = f"{name}.more" if how == "unexpected" else name
    weights.pop(name, None)
    save_file({**weights, **({} if found is None else {name: found})}, path, metadata={"format": "pt"})
    write_manifest(killed / "checkpoint-3")
    before = contents(killed)
    assert main(distill(student_folder, data_folder, killed, "--resume")) == 2
    assert f"1 weights {how}: {name}" in last_line(capsys)
    assert contents(killed) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("limit", [[], ["--save_total_limit", "1"]])
def test_a_signal_in_a_step_saves_it_and_stops(
    number: int, code: int, limit: list[str], runs: Path, student_folder: Path, data_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        in_step(patch, 3, lambda _: os.kill(os.getpid(), number))
        assert main(distill(student_folder, data_folder, run, *limit)) == code
    expected = "crosskd distill: stopped; checkpoint-3 is saved, and the same command with --resume goes on from it"
    assert last_line(capsys) == expected
    assert last_checkpoint(run) == run / "checkpoint-3"
    assert not any(path.suffix == ".safetensors" for path in run.iterdir())
    assert main(distill(student_folder, data_folder, run, *limit, "--resume")) == 0
    assert_ended_alike(runs / "whole", run)


@pytest.mark.parametrize("strategy", [["steps", "--eval_steps", "2"], ["epoch"]])
def test_a_signal_during_an_evaluation_waits_for_its_end(
    strategy: list[str], student_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batches of 6 make an epoch of two steps: each evaluation is at the end of one. The best model is another."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    more = ["--per_device_train_batch_size", "6", "--eval_strategy", *strategy, "--save_strategy", strategy[0]]
    more += ["--save_steps", "2", "--load_best_model_at_end", "--learning_rate", "1.0", "--save_total_limit", "1"]
    assert main(distill(student_folder, data_folder, whole, *more)) == 0
    original, seen = DistillationTrainer.prediction_step, []

    def prediction_step(self: DistillationTrainer, *arguments: Any, **options: Any) -> Any:
        if not seen:
            seen.append(self.state.global_step)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationTrainer, "prediction_step", prediction_step)
        assert main(distill(student_folder, data_folder, run, *more)) == 143
    assert seen == [2]
    assert "checkpoint-3 is saved" in last_line(capsys)
    assert problem_of(run / "checkpoint-3") is None
    assert main(distill(student_folder, data_folder, run, *more, "--resume")) == 0
    assert contents(whole)["model.safetensors"] == contents(run)["model.safetensors"]


def test_a_signal_in_the_last_step_of_an_epoch_leaves_its_evaluation_in_the_log(
    student_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    more = ["--per_device_train_batch_size", "6", "--eval_strategy", "epoch", "--logging_strategy", "epoch"]
    assert main(distill(student_folder, data_folder, whole, *more)) == 0
    with pytest.MonkeyPatch.context() as patch:
        in_step(patch, 2, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        assert main(distill(student_folder, data_folder, run, *more)) == 143
    assert main(distill(student_folder, data_folder, run, *more, "--resume")) == 0
    assert_ended_alike(whole, run)


def test_a_second_signal_ends_at_once(
    student_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, reached = tmp_path / "run", []

    def twice(_: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(1000))
        reached.append(True)

    with pytest.MonkeyPatch.context() as patch:
        in_step(patch, 3, twice)
        assert main(distill(student_folder, data_folder, run)) == 143
    assert not reached
    assert last_line(capsys) == "crosskd distill: stopped; the same command with --resume goes on"
    assert last_checkpoint(run) == run / "checkpoint-2"


@pytest.mark.parametrize("what", ["optimizer", "weights", "log", "state", "student"])
def test_a_disk_that_is_full_is_one_line_and_keeps_the_last_good_checkpoint(
    what: str, runs: Path, student_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    full = OSError(errno.ENOSPC, "No space left on device", str(run))

    def refuse(run: Path) -> None:
        patch.setattr(*places[what])

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file") if what == "optimizer" else full

    places: dict[str, Any] = {
        "optimizer": (torch, "save", fail), "weights": ("safetensors.torch.serialize_file", fail),
        "log": ("crosskd.training.records.MetricsFile.on_log", fail),
        "state": ("transformers.trainer_callback.TrainerState.save_to_json", fail),
        "student": ("crosskd.training.trainer.write_card", fail),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        in_step(patch, 4 if what == "student" else 3, refuse)
        assert main(distill(student_folder, data_folder, run)) == 1
    line = last_line(capsys)
    assert line.startswith("crosskd distill: ")
    assert "the same command with --resume goes on" in line
    good = run / f"checkpoint-{3 if what == 'student' else 2}"
    assert str(good) in line
    assert last_checkpoint(run) == good
    assert not (run / ".unfinished").exists() or not any((run / ".unfinished").iterdir())
    assert main(distill(student_folder, data_folder, run, "--resume")) == 0
    assert_ended_alike(runs / "whole", run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 64 MB; only root can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = shutil.which("mount") and os.geteuid() == 0 and remount(folder, "size=64m", "-t", "tmpfs", "none") == 0
    if not made:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, option: str, *more: str) -> int:
    return subprocess.run(["mount", "-o", option, *more, str(folder)], check=False, capture_output=True).returncode


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_real_disk_that_is_full_or_read_only_keeps_the_last_good_checkpoint(
    how: str, small_disk: Path, runs: Path, student_folder: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_disk / "run"

    def spoil(_: Path) -> None:
        if how == "full":
            room = shutil.disk_usage(small_disk).free
            checkpoint = sum(path.stat().st_size for path in (run / "checkpoint-2").iterdir())
            assert checkpoint < room
            (small_disk / "ballast").write_bytes(b"\0" * (room - checkpoint // 2))
        else:
            assert remount(small_disk, "remount,ro") == 0

    with pytest.MonkeyPatch.context() as patch:
        in_step(patch, 3, spoil)
        assert main(distill(student_folder, data_folder, run)) == 1
    line = last_line(capsys)
    assert line.startswith("crosskd distill: ")
    assert f"the last good checkpoint is {run / 'checkpoint-2'}" in line
    assert last_checkpoint(run) == run / "checkpoint-2"
    if how == "full":
        (small_disk / "ballast").unlink()
    else:
        assert remount(small_disk, "remount,rw") == 0
    assert main(distill(student_folder, data_folder, run, "--resume")) == 0
    assert_ended_alike(runs / "whole", run)
