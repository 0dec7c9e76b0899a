"""What a run writes down about itself: settings, provenance, metrics, and the facts of its model card."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crosskd.files import read_jsonl, write_json, write_jsonl, write_text
from crosskd.losses.registry import METHODS, setting_names
from crosskd.models.card import CardFacts
from crosskd.provenance import package_versions, provenance
from crosskd.teacher.identity import data_sha256, prompt_sha256, weights_sha256
from crosskd.text.tasks import load_task
from crosskd.training.config import DistillationConfig
from crosskd.training.participants import Participants
from crosskd.training.run_files import PROVENANCE, RESOLVED

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
MACHINE = ("output_dir", "use_cpu", "local_rank", "hub_token")
"""Settings that belong to the place where a run runs (and to its owner), not to the run."""
_CLOSING = "train_runtime"


class MetricsFile(TrainerCallback):
    """Append every line of the log to ``metrics.jsonl`` in the output folder."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Drop what a run that is resumed had logged beyond the checkpoint, and its closing line."""
        path = Path(str(args.output_dir)) / METRICS
        if state.is_world_process_zero and path.is_file():
            rows = read_jsonl(path, unfinished=True) if state.global_step else []
            write_jsonl(path, [row for row in rows if row["step"] <= state.global_step and _CLOSING not in row])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write one line: ``step``, ``epoch`` and what was logged; numbers that are not finite become null."""
        if state.is_world_process_zero:
            line = {"step": state.global_step, "epoch": state.epoch, **(logs or {})}
            with (Path(str(args.output_dir)) / METRICS).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({name: _strict(value) for name, value in line.items()}) + "\n")


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def resolved_settings(config: DistillationConfig) -> dict[str, Any]:
    """Settings that a YAML file needs to repeat a run: all of ours, and those of transformers that were chosen.

    Ours are those of distillation, and those whose default is ours (``learning_rate``): another version may change it.
    What belongs to the machine (``use_cpu``) is left out, and what has no form in YAML is named in a warning.
    """
    chosen = config.chosen_settings()
    own = set(DistillationConfig.__annotations__)
    settings = {name: chosen.get(name, getattr(config, name)) for name in sorted(own | chosen.keys())}
    settings = {name: value for name, value in settings.items() if name not in MACHINE}
    for name in [name for name, value in settings.items() if not _is_plain(value)]:
        logger.warning("%s of %s cannot be written to %s", name, type(settings.pop(name)).__name__, RESOLVED)
    order = {item.name: place for place, item in enumerate(fields(config))}
    return {"output_dir": str(config.output_dir), **dict(sorted(settings.items(), key=lambda pair: order[pair[0]]))}


def all_settings(config: DistillationConfig, sources: Mapping[str, Any]) -> dict[str, Any]:
    """What ``resolved_config.yaml`` holds: where models and data came from, then `resolved_settings`."""
    return {**{name: value for name, value in sources.items() if value is not None}, **resolved_settings(config)}


def write_records(
    config: DistillationConfig, participants: Participants, examples: Dataset | None, sources: Mapping[str, Any]
) -> None:
    """Write ``resolved_config.yaml`` and ``provenance.json`` into the output folder.

    Args:
        config: The run's settings.
        participants: Its models.
        examples: Its training examples, for their hash.
        sources: Where student, teacher, data and cache came from, and how they were loaded; they lead the YAML file.
    """
    folder = Path(str(config.output_dir))
    text = yaml.safe_dump(all_settings(config, sources), sort_keys=False, allow_unicode=True)
    write_text(folder / RESOLVED, text)
    record = provenance(
        seed=config.seed,
        student={"name": participants.student.name, "revision": _revision(participants.student.model)},
        teacher={"name": participants.teacher_name, "cached": participants.cache is not None},
        dtype=str(participants.student.model.dtype),
        **run_contents(config, participants, examples),
    )
    write_json(folder / PROVENANCE, record)


def run_contents(
    config: DistillationConfig, participants: Participants, examples: Dataset | None
) -> dict[str, str | None]:
    """Hashes of what a run reads, so that the same path with another content is noticed; None where not known."""
    cache, live = participants.cache, participants.teacher
    teacher = _weights_of(live.name) if live else None
    return {
        "task_sha256": prompt_sha256(load_task(config.task), config.number_few_shot),
        "data_sha256": None if examples is None else data_sha256(examples, config.supervision),
        "student_sha256": _weights_of(participants.student.name),
        "teacher_sha256": cache.identity["teacher_weights_sha256"] if cache else teacher,
    }


def _weights_of(name: str) -> str | None:
    folder = Path(name).expanduser()
    return weights_sha256(folder) if folder.is_dir() else None


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
    """Whether YAML can hold a value."""
    if isinstance(value, list | dict):
        items = value.values() if isinstance(value, dict) else value
        return all(map(_is_plain, items))
    return value is None or isinstance(value, bool | int | float | str)
