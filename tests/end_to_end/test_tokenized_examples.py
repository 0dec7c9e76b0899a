"""Examples that come as tokens are trained on as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from crosskd import DistillationConfig, DistillationTrainer, load_examples, load_model
from crosskd.errors import UsageError
from crosskd.text.answer_spans import tokenize_example
from crosskd.text.prompts import PromptBuilder
from crosskd.text.tasks import load_task
from helpers_tolerances import loss_tolerance


def config(folder: Path) -> DistillationConfig:
    return DistillationConfig(
        output_dir=str(folder), method="multilevel_ot", number_few_shot=1, max_steps=2, logging_steps=1,
        report_to="none", save_strategy="no", per_device_train_batch_size=4, learning_rate=1e-3,
    )  # fmt: skip


def losses(student: Path, teacher: Path, folder: Path, examples: Any) -> list[float]:
    trainer = DistillationTrainer(load_model(student), load_model(teacher), config(folder), examples)
    trainer.train()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def tokens(student: Path, teacher: Path, examples: Dataset, *, end: bool = True) -> Dataset:
    sides = {
        "student": PromptBuilder(load_model(student).tokenizer, load_task("qa")),
        "teacher": PromptBuilder(load_model(teacher).tokenizer, load_task("qa"), number_few_shot=1),
    }
    rows = []
    for example in examples:
        row: dict[str, Any] = {}
        for side, builder in sides.items():
            append = end and side == "student"
            found = tokenize_example(builder, example, example["answers"][0], append_eos=append, max_length=None)
            row |= {f"{side}_prompt_ids": found.prompt_ids, f"{side}_answer_ids": found.answer_ids}
        rows.append(row)
    return Dataset.from_list(rows)


def test_tokens_and_text_give_the_same_losses(
    student_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    examples = load_examples(data_folder, "train")
    text = losses(student_folder, teacher_folder, tmp_path / "text", examples)
    ids = tokens(student_folder, teacher_folder, examples)
    models = load_model(student_folder).model, load_model(teacher_folder).model
    tolerance = loss_tolerance(*models, length=256, tokens=100)
    assert losses(student_folder, teacher_folder, tmp_path / "ids", ids) == pytest.approx(text, rel=tolerance)


def test_an_answer_without_an_end_is_distilled_whole(
    student_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    ids = tokens(student_folder, teacher_folder, load_examples(data_folder, "train"), end=False)
    trainer = DistillationTrainer(load_model(student_folder), load_model(teacher_folder), config(tmp_path), ids)
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["distilled"] == (batch["labels"] != -100)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids.remove_columns("teacher_answer_ids"), "no column 'teacher_answer_ids'"),
        (lambda ids: ids.map(lambda row: {"student_answer_ids": []}), "example 0: student_answer_ids"),
    ],
)
def test_unusable_tokens(
    student_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path, change: Any, message: str
) -> None:
    ids = change(tokens(student_folder, teacher_folder, load_examples(data_folder, "train")))
    with pytest.raises(UsageError, match=message):
        DistillationTrainer(load_model(student_folder), load_model(teacher_folder), config(tmp_path / "out"), ids)
