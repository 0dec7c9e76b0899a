"""The published command lines in all their spellings, and what is wrong with the others."""

from __future__ import annotations

import logging
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from crosskd.errors import UsageError
from crosskd.published import benchmark_flags, finetuning_flags
from crosskd.published.benchmark_flags import BenchmarkFlags, read_benchmark_flags
from crosskd.published.finetuning import main
from crosskd.published.finetuning_flags import FinetuningFlags, read_finetuning_flags

NEEDED = ["--model_name", "student", "--dataset.file", "loader.py", "--output_dir", "out"]
TEACHER = ["--distillation", "--distillation_config.model_name", "teacher"]


def read(*words: str) -> FinetuningFlags:
    return read_finetuning_flags([*NEEDED, *words])


def test_defaults_are_those_of_the_published_code() -> None:
    flags = read()
    assert (flags.lr, flags.num_epochs, flags.batch_size_training, flags.val_batch_size) == (1e-6, 5, 4, 4)
    assert (flags.save_step, flags.f, flags.weight_decay, flags.seed) == (100, 1, 0.1, 42)
    assert (flags.pct_start, flags.div_factor, flags.final_div_factor) == (0.1, 2, 5)
    assert not flags.distillation
    assert flags.formulation == "authors"


@pytest.mark.parametrize(
    "words",
    [
        ["--distillation", "--distillation_config.model_name", "t", "--distillation_config.pure_bf16",
         "--distillation_config.distil_factor", "0.5", "--norun_validation"],
        ["--distillation", "--distillation_config_model_name", "t", "--distillation_config_pure_bf16",
         "--distillation_config_distil_factor", "0.5", "--run_validation", "False"],
        ["--distillation=True", "--distillation_config.model_name=t", "--distillation-config-pure-bf16=true",
         "--distillation_config_distil_factor=.5", "--run_validation=no"],
    ],
)  # fmt: skip
def test_spellings_mean_the_same(words: list[str]) -> None:
    flags = read(*words)
    assert (flags.distillation, flags.teacher, flags.pure_bf16) == (True, "t", True)
    assert (flags.distil_factor, flags.run_validation) == (0.5, False)


def test_the_whole_published_line_is_read(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("crosskd"), "propagate", True)
    caplog.set_level(logging.INFO, logger="crosskd")
    flags = read_finetuning_flags(
        shlex.split(
            "--model_name s --dataset.file l.py --lr 1e-6 --num_epochs 5 --batch_size_training 2 --val_batch_size 3 "
            "--output_dir o --distillation_config_model_name t --distillation --distillation_config_enable_fsdp "
            "--distillation_config_pure_bf16 --distillation_config_distil_factor 1.5 --save_step 2000 "
            "--encoder_decoder --f 2 --project_name mine"
        )
    )
    assert (flags.model_name, flags.dataset_file, flags.output_dir, flags.teacher) == ("s", "l.py", "o", "t")
    assert (flags.batch_size_training, flags.val_batch_size, flags.save_step, flags.f) == (2, 3, 2000, 2)
    assert flags.encoder_decoder is True
    assert "--distillation_config.enable_fsdp has no effect" in caplog.text
    assert "--project_name has no effect" in caplog.text


def test_attributes_for_the_loader_file_are_python_values() -> None:
    flags = read("--dataset.shots", "3", "--dataset.flag", "--dataset.name", "x-y", "--dataset_training_size", "0.5",
                 "--dataset.tasks=['a', 'b']")  # fmt: skip
    assert flags.dataset == {"shots": 3, "flag": True, "name": "x-y", "tasks": ["a", "b"]}
    assert flags.training_size == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_epoch", "2"], r"--num_epoch.*'--num_epochs'"),
        (["--distillation_config.model", "t"], r"did you mean '--distillation_config.model_name'"),
        (["--span_loss_weight", "2"], r"--span_loss_weight"),
        (["--num_epochs", "two"], r"--num_epochs.*'two'.*an integer"),
        (["--lr"], r"--lr has no value"),
        (["--lr", "--f", "1"], r"--lr has no value"),
        (["--distillation=maybe"], r"--distillation.*True or False"),
        (["loose"], r"argument 'loose'"),
        (["--save_step", "0"], r"--save_step: got 0"),
        (["--lr", "0"], r"--lr: got 0"),
        (["--weight_decay", "-1"], r"--weight_decay: got -1"),
        (["--pct_start", "1"], r"--pct_start"),
        (["--training_size", "2"], r"--training_size"),
        (["--context_length", "1"], r"--context_length"),
        (["--f", "3"], r"--f: got 3.*1 \(fast\) or 2"),
        (["--formulation", "author"], r"did you mean 'authors'"),
        (["--batching_strategy", "packing"], r"--batching_strategy.*padding"),
        (["--distillation"], r"--distillation_config.model_name is missing.*a teacher"),
        ([*TEACHER, "--distillation_config.teacher_temperature", "2"], r"teacher_temperature: got 2"),
        ([*TEACHER, "--distillation_config.encoder_decoder"], r"a causal language model as teacher"),
        (["--quantization"], r"--quantization.*float32"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(*words)


@pytest.mark.parametrize("missing", ["--model_name", "--dataset.file", "--output_dir"])
def test_a_missing_flag_is_named(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    at = NEEDED.index(missing)
    assert main([*NEEDED[:at], *NEEDED[at + 2 :]]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"finetuning.py: error: {missing} is missing")
    assert error.count("\n") == 1


def test_help_shows_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("--model_name", "--dataset.file", "--distillation_config.distil_factor", "--f ", "--formulation"):
        assert name in shown
    assert "fsdp_config.sharding_strategy" in shown


def test_the_published_evaluation_line_is_read() -> None:
    flags = read_benchmark_flags(
        shlex.split(
            "--model_id m --model_tokenizer t --dataset_id d --split_name validation --context --title --batch_size 1 "
            "--num_workers 1 --output_path o/ --number_few_shot 2 --context_length 1024 --from_disk --task qa "
            "--mapping m.json --mapping_dict text --bfloat --bert_score --seq2seq --f 1 --save_predictions"
        )
    )
    assert flags == BenchmarkFlags(
        model_id="m", model_tokenizer="t", dataset_id="d", split_name="validation", context=True, title=True,
        batch_size=1, output_path="o/", number_few_shot=2, context_length=1024, from_disk=True, task="qa",
        mapping="m.json", bfloat=True, bert_score=True, seq2seq=True, save_predictions=True,
    )  # fmt: skip
    defaults = read_benchmark_flags(["--model_id", "m", "--dataset_id", "d"])
    assert (defaults.split_name, defaults.batch_size, defaults.mapping_dict) == ("test", 4, "text")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset_id", "d"], "--model_id"),
        (["--model_id", "m"], "--dataset_id"),
        (["--model_id", "m", "--dataset_id", "d", "--batch_size", "0"], "--batch_size"),
        (["--model_id", "m", "--dataset_id", "d", "--number_few_shot", "-1"], "--number_few_shot"),
        (["--model_id", "m", "--dataset_id", "d", "--tasks", "qa"], "'--task'"),
    ],
)
def test_a_wrong_evaluation_line_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_benchmark_flags(words)


def test_the_page_names_every_flag() -> None:
    page = (Path(__file__).parents[2] / "docs" / "published.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL))
    for script, kind, no_effect in (
        ("finetuning.py", FinetuningFlags, finetuning_flags.NO_EFFECT),
        ("benchmark.py", BenchmarkFlags, benchmark_flags.NO_EFFECT),
    ):
        table = "\n".join(line for line in parts[script].splitlines() if line.startswith("| `"))
        told = {name for row in table.splitlines() for name in re.findall(r"`--([\w.]+)`", row.split(" | ")[0])}
        known = {item.metadata["name"] or item.name for item in fields(kind) if item.metadata}
        assert known <= told
        assert told <= known | set(no_effect) | {"file", "dataset.NAME"}
