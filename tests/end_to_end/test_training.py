"""Training: the loss is normalized over the global batch, live and cached teachers agree, records are written."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from crosskd import DistillationConfig, DistillationTrainer, load_model
from crosskd.errors import UsageError
from helpers_models import examples
from helpers_tolerances import assert_gradients_close, rounding, summands


def trainer(
    student: Path, teacher: Path | None, output: Path, cache: Path | None = None, **settings: Any
) -> DistillationTrainer:
    chosen: dict[str, Any] = {
        "per_device_train_batch_size": 4, "max_steps": 1, "logging_steps": 1, "learning_rate": 1e-3,
        "save_strategy": "no", "number_few_shot": 1, "top_k": 10, "disable_tqdm": True, **settings,
    }  # fmt: skip
    config = DistillationConfig(output_dir=str(output), **chosen)
    return DistillationTrainer(str(student), teacher and str(teacher), config, examples(4), teacher_cache=cache)


def gradients(made: DistillationTrainer) -> dict[str, torch.Tensor]:
    """Gradients of the first optimizer step, before clipping."""
    found: dict[str, torch.Tensor] = {}
    made.args.max_grad_norm = 0.0

    def keep(*_: Any) -> None:
        found.update({name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None})

    made.create_optimizer_and_scheduler(1)
    made.optimizer.register_step_pre_hook(keep)
    made.train()
    return found


@pytest.mark.parametrize("method", ["sft", "uld", "mined", "multilevel_ot"])
def test_accumulation_leaves_the_gradients_as_they_are(
    method: str, student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    plain = trainer(student_folder, teacher_folder, tmp_path / "a", method=method)
    whole = gradients(plain)
    parts = gradients(
        trainer(
            student_folder, teacher_folder, tmp_path / "b", method=method,
            per_device_train_batch_size=1, gradient_accumulation_steps=4,
        )
    )  # fmt: skip
    assert_gradients_close(parts, whole, 2 * summands(plain.model, 512))  # there and back


def test_terms_add_up_to_the_logged_loss(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    trainer(student_folder, teacher_folder, tmp_path / "run", max_steps=2).train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[:2]] == [1, 2]
    for line in lines[:2]:
        terms = line["absolute_difference"] + 0.1 * line["sequential_log"] + 0.1 * line["sinkhorn"]
        tolerance = rounding(torch.float32, 12)  # logged numbers: a product, a quotient, a few sums
        assert line["distillation"] == pytest.approx(terms, rel=tolerance)
        assert line["loss"] == pytest.approx(line["cross_entropy"] + 0.15 * line["distillation"], rel=tolerance)


def test_the_teacher_stays_as_it_is_and_is_not_saved(
    student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    teacher = load_model(teacher_folder)
    before = {name: p.clone() for name, p in teacher.model.named_parameters()}
    config = DistillationConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        number_few_shot=1,
        top_k=10,
        learning_rate=1e-2,
        disable_tqdm=True,
    )
    made = DistillationTrainer(load_model(student_folder), teacher, config, examples(4))
    made.train()
    made.save_model()
    assert not teacher.model.training
    assert all(not p.requires_grad and torch.equal(p, before[name]) for name, p in teacher.model.named_parameters())
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert sum(p.numel() for p in student.parameters()) == sum(p.numel() for p in made.model.parameters())
    assert AutoTokenizer.from_pretrained(tmp_path / "run")("who").input_ids
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"`{teacher_folder.name}`" in card
    assert str(teacher_folder) not in card
    assert "2412.14528" in card


def test_shortened_contexts_are_counted_aloud(
    student_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("crosskd"), "propagate", True)
    whole = trainer(student_folder, None, tmp_path / "a", method="sft")
    assert "lost their front" not in caplog.text
    sides = (whole.train_dataset["student_prompt_ids"], whole.train_dataset["student_answer_ids"])
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(*sides, strict=True)]
    limit = max(lengths) - 1
    short = trainer(student_folder, None, tmp_path / "b", method="sft", max_length=limit)
    longer = sum(length > limit for length in lengths)
    assert f"{longer} of 4 contexts lost their front to fit the student's {limit} tokens" in caplog.text
    assert short.train_dataset["student_answer_ids"] == whole.train_dataset["student_answer_ids"]


def test_an_answer_that_is_empty_is_refused(student_folder: Path, tmp_path: Path) -> None:
    rows = [{**examples(1)[0], "answers": [" "]}]
    with pytest.raises(UsageError, match=r"'q0'.*empty answer"):
        DistillationTrainer(str(student_folder), None, DistillationConfig(output_dir=str(tmp_path), method="sft"), rows)


def test_a_method_that_asks_a_teacher_needs_one(student_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--teacher"):
        DistillationTrainer(str(student_folder), None, DistillationConfig(output_dir=str(tmp_path)), examples(1))
    with pytest.raises(UsageError, match="the student itself"):
        DistillationTrainer(
            str(student_folder), str(student_folder), DistillationConfig(output_dir=str(tmp_path)), examples(1)
        )
