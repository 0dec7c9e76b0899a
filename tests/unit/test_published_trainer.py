"""Published training: schedule, weight decay, order of rows, checkpoints, and the rows it is given."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from crosskd import load_model
from crosskd.errors import UsageError
from crosskd.published.finetuning import build_trainer, main, run
from crosskd.published.finetuning_config import make_config
from crosskd.published.finetuning_flags import read_finetuning_flags
from crosskd.published.tokens import RowReader, tokenized_rows
from crosskd.published.trainer import PublishedOrder, PublishedTrainer, StepCheckpoints
from helpers_published import finetuning_words, write_loader

Rows = list[dict[str, Any]]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr("crosskd.published.finetuning.start_logging", lambda *_: None)
    monkeypatch.setattr(logging.getLogger("crosskd"), "propagate", True)
    caplog.set_level(logging.INFO, logger="crosskd")
    return caplog


def built(words: list[str]) -> tuple[PublishedTrainer, StepCheckpoints]:
    flags = read_finetuning_flags(words)
    return build_trainer(flags, make_config(flags))


def logged(folder: Path) -> Rows:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_learning_rates_are_torchs_one_cycle(student_folder: Path, tmp_path: Path) -> None:
    words = finetuning_words(student_folder, write_loader(tmp_path, train=8), tmp_path / "out")
    trainer, _ = built([*words, "--num_epochs", "10", "--pct_start", "0.3", "--div_factor", "4"])
    trainer.create_optimizer_and_scheduler(20)
    assert trainer.optimizer is not None
    plain = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    wanted = torch.optim.lr_scheduler.OneCycleLR(
        plain, max_lr=1e-3, epochs=10, steps_per_epoch=2, pct_start=0.3, div_factor=4, final_div_factor=5
    )
    ours, theirs = [], []
    for _ in range(20):
        for optimizer, found in ((trainer.optimizer, ours), (plain, theirs)):
            group = optimizer.param_groups[0]
            found.append((group["lr"], group["betas"]))
            optimizer.step()
        trainer.lr_scheduler.step()
        wanted.step()
    assert ours == theirs
    assert ours[0][0] == pytest.approx(2.5e-4)
    assert max(ours)[0] == pytest.approx(1e-3, rel=0.01)


def test_every_parameter_decays_and_nothing_is_clipped(student_folder: Path, tmp_path: Path) -> None:
    trainer, _ = built(finetuning_words(student_folder, write_loader(tmp_path), tmp_path / "out"))
    groups = [group for group in trainer.create_optimizer().param_groups if group["params"]]
    assert [group["weight_decay"] for group in groups] == [0.1]
    assert len(groups[0]["params"]) == len(list(trainer.model.parameters()))
    assert trainer.args.max_grad_norm == 0
    assert (trainer.args.seed, trainer.args.dataloader_drop_last) == (42, True)


def test_rows_come_in_the_published_order(student_folder: Path, tmp_path: Path) -> None:
    trainer, _ = built(finetuning_words(student_folder, write_loader(tmp_path, train=11), tmp_path / "out"))
    wanted = list(range(8))  # of 11 rows in batches of 4, three are left out
    random.Random(42).shuffle(wanted)
    answers = [trainer.train_dataset[index]["student_answer_ids"] for index in wanted]
    for _ in range(2):  # the same every epoch
        batches = [batch["labels"] for batch in trainer.get_train_dataloader()]
        found = [[token for token in row.tolist() if token != -100] for batch in batches for row in batch]
        assert found == answers
    assert len(PublishedOrder(11, 4, 42)) == 8


def test_the_best_student_by_validation_is_kept(student_folder: Path, tmp_path: Path) -> None:
    words = finetuning_words(student_folder, write_loader(tmp_path, train=12, validation=3), tmp_path / "out")
    assert main([*words, "--save_step", "2", "--num_epochs", "2"]) == 0
    losses = {row["step"]: row["eval_loss"] for row in logged(tmp_path / "out") if "eval_loss" in row}
    assert list(losses) == [2, 3, 5, 6]
    saved = {int(path.name) for path in (tmp_path / "out").iterdir() if path.is_dir()}
    best = min(losses, key=losses.__getitem__)
    lowest = [step for step in losses if all(losses[step] < losses[other] for other in losses if other < step)]
    assert saved == set(lowest)
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, value in AutoModelForCausalLM.from_pretrained(tmp_path / "out" / str(best)).state_dict().items():
        assert torch.equal(value, kept[name])


def test_a_worse_student_is_not_kept(
    student_folder: Path, tmp_path: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = PublishedTrainer.evaluation_loop

    def turned_round(self: PublishedTrainer, *arguments: Any, **options: Any) -> Any:
        found = measure(self, *arguments, **options)
        found.metrics["eval_loss"] = 100 - found.metrics["eval_loss"]  # it rises as the student learns
        return found

    monkeypatch.setattr(PublishedTrainer, "evaluation_loop", turned_round)
    words = finetuning_words(student_folder, write_loader(tmp_path, train=12, validation=3), tmp_path / "out")
    for more, folders in (([], ["1"]), (["--save_all", "--overwrite"], ["1", "2", "3"])):
        run([*words, "--save_step", "1", *more])
        assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == folders
        kept = (tmp_path / "out" / "model.safetensors").read_bytes()
        assert kept == (tmp_path / "out" / "1" / "model.safetensors").read_bytes()
    assert kept != (tmp_path / "out" / "3" / "model.safetensors").read_bytes()
    assert "the student of step 1 had the lowest validation loss" in log.text


def test_without_validation_every_save_step_is_saved(
    student_folder: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    words = finetuning_words(student_folder, write_loader(tmp_path, train=20), tmp_path / "out", "--save_step", "2")
    run(words)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["2", "4", "5"]
    assert "no validation" in log.text
    assert "FileNotFoundError" in log.text
    with pytest.raises(UsageError, match=r"split 'validation' failed"):
        run([*words, "--overwrite", "--run_validation"])
    run([*words, "--overwrite", "--norun_validation", "--save_model", "False"])
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_output_folder_in_use_is_refused(
    student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "out" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    words = finetuning_words(student_folder, write_loader(tmp_path), tmp_path / "out")
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err.splitlines()[-1]
    assert kept.read_text() == "mine"
    assert main([*words, "--dataset.file", "missing.py", "--overwrite"]) == 2  # nothing is deleted before all is loaded
    assert kept.read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0
    assert not kept.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch_size_training", "10"], r"--batch_size_training 10.*9 rows"),
        (["--context_length", "5"], r"--context_length 5.*no row of split 'train'"),
        (["--encoder_decoder"], r"--encoder_decoder True.*a causal model"),
        (["--distillation", "--distillation_config.model_name", "STUDENT"], r"the student itself"),
        (["--model_name", "./nowhere"], r"no such folder"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    more: list[str], message: str, student_folder: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    words = finetuning_words(student_folder, write_loader(tmp_path), tmp_path / "out")
    with pytest.raises(UsageError, match=message):
        run([*words, *(word.replace("STUDENT", str(student_folder)) for word in more)])
    assert not (tmp_path / "out").exists()


def test_the_log_says_which_loss_it_is(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    words = ["--model_name", "s", "--dataset.file", "l.py", "--output_dir", str(tmp_path)]
    teacher = ["--distillation", "--distillation_config.model_name", "t"]
    published = make_config(read_finetuning_flags([*words, *teacher, "--f", "2"]))
    assert (published.method, published.formulation, published.matching) == ("multilevel_ot", "authors", "greedy")
    assert published.distillation_weight == 1.5
    assert "what the published code computes, weight 1.5, matching greedy" in log.text
    equations = make_config(read_finetuning_flags([*words, *teacher, "--formulation", "paper"]))
    assert (equations.formulation, equations.matching, equations.distillation_weight) == ("paper", "fast", 0.15)
    assert "is not asked" not in log.text
    assert make_config(read_finetuning_flags([*words, *teacher[1:]])).method == "sft"
    assert "the teacher t is not asked: --distillation is not given" in log.text


def readers(student_folder: Path, teacher_folder: Path) -> tuple[RowReader, RowReader]:
    return RowReader("student", load_model(student_folder)), RowReader("teacher", load_model(teacher_folder))


def row(*answer: int, prompt: int = 3) -> dict[str, list[int]]:
    return {"input_ids": [7] * prompt + list(answer), "labels": [-100] * prompt + list(answer)}


def test_rows_of_two_sides_become_pairs(
    student_folder: Path, teacher_folder: Path, log: pytest.LogCaptureFixture
) -> None:
    student, teacher = readers(student_folder, teacher_folder)
    end = int(teacher.loaded.tokenizer.eos_token_id)
    ours, theirs = [row(20, 21), row(22, prompt=9), row(23, 24)], [row(30, end), row(31), row(32)]
    found = tokenized_rows(student, ours, teacher, theirs, split="train", longest=6)
    assert found["student_answer_ids"][:] == [[20, 21], [23, 24]]
    assert found["teacher_answer_ids"][:] == [[30], [32]]
    assert "1 of 3 rows of split 'train' are dropped" in log.text
    assert "3 of 3 answers of split 'train' differ between student and teacher; row 0" in log.text
    alone = tokenized_rows(student, ours, None, None, split="train", longest=None)
    assert alone.column_names == ["student_prompt_ids", "student_answer_ids"]


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([row(20)], [row(20), row(21)], r"split 'train' has 1 rows for the student and 2 for the teacher"),
        ([row(540)], [row(20)], r"student's row 0.*token 540: expected less than 540"),
        ([row(20), row(20)], [row(20), row(20, prompt=512)], r"teacher's row 1.*513 tokens.*at most 512"),
        ([row(20)], [row()], r"teacher's row 0 of split 'train' has no answer"),
    ],
)
def test_rows_that_do_not_fit_are_named(
    ours: Rows, theirs: Rows, message: str, student_folder: Path, teacher_folder: Path
) -> None:
    student, teacher = readers(student_folder, teacher_folder)
    with pytest.raises(UsageError, match=message):
        tokenized_rows(student, ours, teacher, theirs, split="train", longest=None)
