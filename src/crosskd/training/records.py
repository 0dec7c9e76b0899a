"""What a run writes down about itself: settings, provenance, metrics, and the facts of its model card."""

from __future__ import annotations

import enum
import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crosskd.files import read_jsonl, write_json, write_jsonl, write_text
from crosskd.losses.registry import METHODS, setting_names
from crosskd.models.card import CardFacts
from crosskd.provenance import package_versions, provenance
from crosskd.teacher.identity import data_sha256
from crosskd.training.config import DistillationConfig
from crosskd.training.participants import Participants

METRICS = "metrics.jsonl"


class MetricsFile(TrainerCallback):
    """Append every line of the log to ``metrics.jsonl`` in the output folder."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Drop what a run that is resumed had logged beyond the checkpoint."""
        path = Path(str(args.output_dir)) / METRICS
        if state.is_world_process_zero and path.is_file():
            kept = [row for row in read_jsonl(path, unfinished=True) if row["step"] <= state.global_step]
            write_jsonl(path, kept if state.global_step else [])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write one line: ``step``, ``epoch`` and what was logged."""
        if state.is_world_process_zero:
            line = {"step": state.global_step, "epoch": state.epoch, **(logs or {})}
            with (Path(str(args.output_dir)) / METRICS).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


def resolved_settings(config: DistillationConfig) -> dict[str, Any]:
    """Settings that a YAML file needs to repeat a run: all of distillation, those of training that are not default."""
    defaults = {item.name: item.default for item in fields(TrainingArguments)}
    chosen: dict[str, Any] = {"output_dir": str(config.output_dir)}
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, enum.Enum):
            value = value.value
        # what transformers derived by itself (a field whose default is None or made by a factory) stays with it
        derived = item.name in defaults and defaults[item.name] in (None, MISSING) and item.default in (None, MISSING)
        if item.init and not derived and value != defaults.get(item.name, MISSING) and _is_plain(value):
            chosen[item.name] = value
    return chosen


def write_records(
    config: DistillationConfig, participants: Participants, examples: Dataset | None, sources: dict[str, Any]
) -> None:
    """Write ``resolved_config.yaml`` and ``provenance.json`` into the output folder.

    Args:
        config: The run's settings.
        participants: Its models.
        examples: Its training examples, for their hash.
        sources: Where student, teacher, data and cache came from; they lead the YAML file.
    """
    folder = Path(str(config.output_dir))
    settings = {**{name: value for name, value in sources.items() if value is not None}, **resolved_settings(config)}
    write_text(folder / "resolved_config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    record = provenance(
        seed=config.seed,
        data_sha256=None if examples is None else data_sha256(examples, config.supervision),
        student={"name": participants.student.name, "revision": _revision(participants.student.model)},
        teacher={"name": participants.teacher_name, "cached": participants.cache is not None},
        dtype=str(participants.student.model.dtype),
    )
    write_json(folder / "provenance.json", record)


def card_facts(
    config: DistillationConfig, participants: Participants, data: str, examples: int, *, own_tokens: bool = False
) -> CardFacts:
    """The facts that the model card tells of a run; ``own_tokens`` where its examples came as tokens."""
    shown = [name for name in setting_names(METHODS[config.method]) if hasattr(config, name)]
    if participants.teacher_name is not None:
        shown = ["distillation_weight", "number_few_shot", *shown]
    training = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")
    return CardFacts(
        base_model=participants.student.name,
        teacher=participants.teacher_name,
        method=config.method,
        task=config.task,
        data=data,
        examples=examples,
        settings={name: getattr(config, name) for name in [*shown, *training, "seed"]},
        versions=package_versions(),
        own_tokens=own_tokens,
        encoder_decoder=participants.student.model.config.is_encoder_decoder,
        adapter=config.peft != "none" and not config.merge_adapter,
    )


def _revision(model: Any) -> str | None:
    return getattr(model.config, "_commit_hash", None)


def _is_plain(value: Any) -> bool:
    return (
        value is None or isinstance(value, bool | int | float | str) or (isinstance(value, list | dict) and bool(value))
    )
