"""The training steps that `training.py` times: one student and one optimizer, whatever the step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from dense_reference import dense_loss
from gpu_measures import default_device
from torch import Tensor, nn

from crosskd.losses import TeacherTargets
from crosskd.models.load import LoadedModel, load_model
from crosskd.models.precision import fast_bfloat16
from crosskd.teacher.cache import TargetCache
from crosskd.teacher.run import TeacherRun
from crosskd.text.answer_spans import TokenizedExample
from crosskd.training.config import DistillationConfig
from crosskd.training.trainer import DistillationTrainer

BATCH = 4
TASK = "qa"
SHOTS = 5
WEIGHT = 0.15


def make_trainer(
    method: str,
    student: LoadedModel | Path,
    examples: Dataset,
    scratch: Path,
    *,
    teacher: Path | None = None,
    cache: Path | None = None,
    **settings: Any,
) -> DistillationTrainer:
    """A trainer as `crosskd distill` makes it for the demo; ``settings`` go into its configuration."""
    config = DistillationConfig(
        output_dir=str(scratch / f"{method}-{'cache' if cache else 'live'}"),
        method=method,
        task=TASK,
        number_few_shot=SHOTS,
        student_prompt_style="plain",
        distillation_weight=WEIGHT,
        per_device_train_batch_size=BATCH,
        use_cpu=default_device() == "cpu",
        bf16=fast_bfloat16(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=42,
        **settings,
    )
    return DistillationTrainer(student, teacher, config, examples, teacher_cache=cache)


def padded(rows: Sequence[TokenizedExample]) -> dict[str, Tensor]:
    """A plain batch of whole sequences: ids, mask, labels (B, L), padded on the right, labels -100 outside answers."""
    ids = [torch.tensor([*row.prompt_ids, *row.answer_ids]) for row in rows]
    labels = [torch.tensor([*[-100] * len(row.prompt_ids), *row.answer_ids]) for row in rows]
    together = nn.utils.rnn.pad_sequence
    lengths = torch.tensor([len(row) for row in ids])
    return {
        "input_ids": together(ids, batch_first=True),
        "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
        "labels": together(labels, batch_first=True, padding_value=-100),
    }


def all_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits of every position (B, L, V), where the model is."""
    device = next(model.parameters()).device
    batch = {name: values.to(device) for name, values in batch.items()}
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits


class Steps:
    """Steps over one batch, the middle one by length of the data: batch, forward, backward, clipping, update.

    Args:
        examples: What the cache was made from.
        cache: Its folder.
        teacher: The teacher of the dense way.
        paths: GGUF files of teacher and student.
        scratch: A folder for what trainers insist on.
    """

    def __init__(
        self, examples: Dataset, cache: Path, teacher: LoadedModel, paths: tuple[Path, Path], scratch: Path
    ) -> None:
        self.device = default_device()
        student = load_model(paths[1], dtype="float32")
        self.trainers = {
            "SFT": make_trainer("sft", student, examples, scratch),
            "cached": make_trainer("multilevel_ot", student, examples, scratch, cache=cache),
            "live": make_trainer("multilevel_ot", student, examples, scratch, teacher=paths[0]),
        }
        first = self.trainers["SFT"]
        self.optimizer = first.create_optimizer()
        # what `Trainer.train` does to the model, in place: mixed precision around its forward
        self.model: nn.Module = first.accelerator.prepare_model(student.model)
        self.teacher = teacher
        self.cache = TargetCache.open(cache)
        self.indices = self._middle_batch()
        rows = [dict(examples[i]) for i in self.indices]
        self.dense_batches = {
            shots: padded([_teacher_tokens(teacher, row, shots) for row in rows]) for shots in (SHOTS, 0)
        }
        data = first.train_dataset
        assert isinstance(data, Dataset)
        mine = [data[i] for i in self.indices]
        self.student_batch = padded(
            [TokenizedExample(row["student_prompt_ids"], row["student_answer_ids"], 0) for row in mine]
        )

    def _middle_batch(self) -> list[int]:
        """Rows of the batch whose longest sequence is the median; batches are taken in the order of the data."""
        data = self.trainers["SFT"].train_dataset
        assert isinstance(data, Dataset)
        pairs = zip(data["student_prompt_ids"], data["student_answer_ids"], strict=True)
        lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
        batches = [list(range(i, i + BATCH)) for i in range(0, len(lengths) - BATCH + 1, BATCH)]
        longest = [max(lengths[i] for i in batch) for batch in batches]
        return batches[longest.index(statistics.median_low(longest))]

    def train(self, name: str) -> None:
        """A step of one of ``trainers``: rows, batch (the cache is read here), loss, gradient, update."""
        trainer = self.trainers[name]
        data = trainer.train_dataset
        assert isinstance(data, Dataset)
        batch = trainer.data_collator([data[i] for i in self.indices])
        answer_tokens = (batch["labels"] != -100).sum().to(self.device)
        trainer.training_step(self.model, batch, answer_tokens)
        self._update()

    def dense(self, shots: int) -> None:
        """The dense way: all logits of both models, the loss over whole sequences; same student, same update."""
        batch = self.dense_batches[shots]
        self.model.train()
        with torch.autocast(self.device, torch.bfloat16, enabled=fast_bfloat16()):
            with torch.no_grad():
                teacher = all_logits(self.teacher.model, batch)
            # one number format on both sides: bfloat16 costs the dense way half the memory of float32
            student = all_logits(self.model, self.student_batch).to(teacher.dtype)
            labels = [each["labels"].to(self.device) for each in (self.student_batch, batch)]
            loss = dense_loss(student, teacher, *labels, weight=WEIGHT)
        loss.backward()
        self._update()

    def read(self) -> None:
        """What the cached step reads of the cache: the batch's targets, stacked."""
        TeacherTargets.stack([self.cache[i] for i in self.indices]).to_dict()

    def _update(self) -> None:
        self.trainers["SFT"].accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.zero_grad()

    @property
    def lengths(self) -> str:
        """Positions and answer tokens of the batch, for the record."""
        shapes = {"student": self.student_batch, f"teacher, {SHOTS} shots": self.dense_batches[SHOTS]}
        told = [
            f"{name} 4 x {b['labels'].shape[1]} ({int((b['labels'] != -100).sum())} answer tokens)"
            for name, b in shapes.items()
        ]
        return "; ".join(told)


def _teacher_tokens(teacher: LoadedModel, row: dict[str, Any], shots: int) -> TokenizedExample:
    return TeacherRun(teacher, TASK, number_few_shot=shots).side.tokenize(row, row["answers"][0])
