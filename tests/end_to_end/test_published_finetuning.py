"""``python finetuning.py``: real command lines, and the published loss on the rows of a loader file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from crosskd import load_model
from crosskd.losses.multilevel_ot import multilevel_ot_loss
from crosskd.models.load import load_tokenizer
from crosskd.published.finetuning import build_trainer, main
from crosskd.published.finetuning_config import make_config
from crosskd.published.finetuning_flags import read_finetuning_flags
from crosskd.published.loader_file import LoaderFile
from helpers_published import finetuning_words, save_t5, write_loader
from helpers_tolerances import loss_tolerance, rounding

ROOT = Path(__file__).parents[2]


def script(name: str, words: list[str], launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a script at the repository's root, as users do."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, name, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600)


def teacher_words(teacher: Path) -> list[str]:
    return ["--distillation", "--distillation_config_model_name", str(teacher), "--distillation_config_pure_bf16", "0"]


def first_line(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


def test_the_published_command_line(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    loader = write_loader(tmp_path / "data", validation=4)
    done = script(
        "finetuning.py",
        [
            "--model_name", str(student_folder), "--dataset.file", str(loader), "--lr", "1e-3", "--num_epochs", "2",
            "--batch_size_training", "4", "--val_batch_size", "4", "--output_dir", str(tmp_path / "out"),
            "--distillation_config_model_name", str(teacher_folder), "--distillation",
            "--distillation_config_enable_fsdp", "--distillation_config_pure_bf16",
            "--distillation_config_distil_factor", "1.5", "--save_step", "100", "--f", "1",
        ],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = " ".join(done.stderr.split())
    assert "is run: it is Python code" in told
    assert "what the published code computes, weight 1.5, matching fast" in told
    assert "--distillation_config.enable_fsdp has no effect" in told
    line = first_line(tmp_path / "out")
    rounded = rounding(torch.float32, 12)  # logged numbers: a product, a quotient, a few sums
    assert line["loss"] == pytest.approx(line["cross_entropy"] + 1.5 * line["distillation"], rel=rounded)
    assert (tmp_path / "out" / "2" / "model.safetensors").is_file()  # the end of the first epoch
    assert load_model(tmp_path / "out").model.num_parameters() == load_model(student_folder).model.num_parameters()


def test_an_error_is_one_line_without_a_traceback(student_folder: Path, tmp_path: Path) -> None:
    broken = write_loader(
        tmp_path, text="def get_split(dataset_config, tokenizer, split):\n    return [{'text': ''}]\n"
    )
    done = script("finetuning.py", finetuning_words(student_folder, broken, tmp_path / "out"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Failed to load" not in done.stderr  # what bitsandbytes says of kernels, wherever it is installed
    assert done.stderr.splitlines()[-1].startswith("finetuning.py: error: ")
    assert "rows without input_ids and labels" in done.stderr.splitlines()[-1]


def answer_logits(model: PreTrainedModel, rows: list[dict[str, Any]]) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Logits that predict each row's answer, one row at a time and without padding, and the answers."""
    logits, answers = [], []
    for row in rows:
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        places = (labels != -100).nonzero().flatten()
        logits.append(model(input_ids=ids[None]).logits[0, places - 1])
        answers.append(labels[places].tolist())
    return logits, answers


def padded(logits: list[torch.Tensor], lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.nn.utils.rnn.pad_sequence(logits, batch_first=True)
    return rows, torch.arange(rows.shape[1]) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("f", [1, 2])
def test_a_step_has_the_published_loss(f: int, student_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    """Cross-entropy's mean over the labels plus the weighted terms of ``formulation="authors"``, from the raw rows."""
    loader = write_loader(tmp_path / "data", train=4)
    words = finetuning_words(student_folder, loader, tmp_path / "out", *teacher_words(teacher_folder), "--f", str(f))
    flags = read_finetuning_flags([*words, "--distillation_config.distil_factor", "0.7"])
    trainer, _ = build_trainer(flags, make_config(flags))
    trainer.train()
    line = first_line(tmp_path / "out")

    sides, models = [], []
    for folder in (student_folder, teacher_folder):
        tokenizer = load_tokenizer(folder)
        config = SimpleNamespace(file=str(loader), training_size=1, encoder_decoder=False)
        rows = list(LoaderFile(str(loader)).split("train", tokenizer, config))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        models.append(model)
        with torch.no_grad():
            sides.append((*answer_logits(model, rows), tokenizer.eos_token_id))
    (student, answers, _), (teacher, texts, end) = sides
    assert all(text[-1] == end for text in texts)  # the loader appends it; the teacher is not asked about it
    cross_entropy = torch.nn.functional.cross_entropy(
        torch.cat(student), torch.tensor([token for answer in answers for token in answer])
    )
    order = list(trainer.get_train_dataloader().sampler)
    student_logits, student_mask = padded([student[i] for i in order], [len(answers[i]) - 1 for i in order])
    teacher_logits, teacher_mask = padded([teacher[i][:-1] for i in order], [len(texts[i]) - 1 for i in order])
    wanted = multilevel_ot_loss(
        student_logits, teacher_logits, student_mask, teacher_mask,
        matching="fast" if f == 1 else "greedy", formulation="authors",
    )  # fmt: skip
    tolerance = loss_tolerance(*models, length=256, tokens=sum(map(len, answers)))
    assert line["cross_entropy"] == pytest.approx(float(cross_entropy), rel=tolerance)
    assert line["distillation"] == pytest.approx(float(wanted.total), rel=tolerance)
    assert line["loss"] == pytest.approx(float(cross_entropy + 0.7 * wanted.total), rel=tolerance)


def test_encoder_decoder_students_learn(teacher_folder: Path, tmp_path: Path) -> None:
    student, loader = save_t5(tmp_path / "t5"), write_loader(tmp_path / "data", validation=4)
    words = finetuning_words(student, loader, tmp_path / "out", "--num_epochs", "8", "--lr", "1e-2")
    assert main([*words, "--encoder_decoder", *teacher_words(teacher_folder)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert min(losses) < losses[0]
    assert lines[0]["distillation"] > 0
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").config.is_encoder_decoder


def test_without_distillation_the_labels_alone_are_learned(student_folder: Path, tmp_path: Path) -> None:
    loader = write_loader(tmp_path / "data", train=20)
    words = finetuning_words(student_folder, loader, tmp_path / "out", "--training_size", "0.5", "--num_epochs", "6")
    assert main([*words, "--lr", "1e-2"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(lines[0]["cross_entropy"], rel=rounding(torch.float32, 12))
    assert lines[-1]["step"] == 12  # ten of the rows, in two batches an epoch
    assert lines[-2]["loss"] < lines[0]["loss"]


def test_an_adapter_or_a_part_of_the_layers_is_trained(student_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    loader = write_loader(tmp_path / "data", validation=4)
    before = load_model(student_folder).model.state_dict()
    adapter = ["--use_peft", "--lora_config.r", "4", "--lora_config.target_modules", "['q_proj','v_proj']"]
    for name, more in (("adapter", adapter), ("frozen", ["--freeze_layers", "--num_freeze_layers", "1"])):
        words = finetuning_words(student_folder, loader, tmp_path / name, "--lr", "1e-2", *more)
        assert main(words) == 0
        after = load_model(tmp_path / name).model.state_dict()
        changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
        if name == "adapter":
            assert (tmp_path / name / "adapter_config.json").is_file()
            assert changed
            assert all("q_proj" in key or "v_proj" in key for key in changed)
        else:
            assert not any("layers.0." in key for key in changed)
            assert any("layers.1." in key for key in changed)


def test_two_processes_read_their_share(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    loader = write_loader(tmp_path / "data", train=8, validation=4)
    common = [*teacher_words(teacher_folder), "--formulation", "paper", "--batch_size_training"]
    assert main([*finetuning_words(student_folder, loader, tmp_path / "one", *common), "4"]) == 0
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    words = [*finetuning_words(student_folder, loader, tmp_path / "two", *common), "2"]
    done = script("finetuning.py", words, launcher)
    assert done.returncode == 0, done.stderr[-6000:]
    models = load_model(student_folder).model, load_model(teacher_folder).model
    tolerance = loss_tolerance(*models, length=256, tokens=100)
    assert first_line(tmp_path / "two")["loss"] == pytest.approx(first_line(tmp_path / "one")["loss"], rel=tolerance)
    assert (tmp_path / "two" / "model.safetensors").is_file()
