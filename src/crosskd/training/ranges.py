"""Ranges of the settings of a training, those that `transformers.TrainingArguments` takes as they come among them.

Known without torch: what is wrong is said before a model is loaded, and on the command line before anything is.
"""

from __future__ import annotations

import json
import math
from typing import Any

from crosskd.errors import UsageError

_AT_LEAST: dict[str, float] = {
    "learning_rate": 0, "weight_decay": 0, "adam_epsilon": 0, "max_grad_norm": 0, "warmup_steps": 0,
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0, "save_total_limit": 1,
}  # fmt: skip
LARGEST_SEED = 2**32 - 1
"""What numpy takes."""


def check_training_ranges(config: Any) -> None:
    """Refuse numbers that no training can have; to be called before `transformers.TrainingArguments` looks at them.

    Args:
        config: A `crosskd.training.config.DistillationConfig`, or its values as attributes of anything else.

    Raises:
        UsageError: A number is not finite or out of its range.
    """
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(name, got=str(value), expected="a finite number")
    for name, least in _AT_LEAST.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise UsageError(name, got=value, expected=f"{least} or more")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise UsageError(name, got=getattr(config, name), expected="0 or more, less than 1")
    for name in ("seed", "data_seed"):
        value = getattr(config, name)
        if value is not None and not 0 <= value <= LARGEST_SEED:
            raise UsageError(name, got=value, expected=f"an integer from 0 to {LARGEST_SEED}")
    _check_length(config)
    read_mapping("lr_scheduler_kwargs", config.lr_scheduler_kwargs)
    for name in ("logging_steps", "save_steps", "eval_steps"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise UsageError(name, got=value, expected="more than 0")


def _check_length(config: Any) -> None:
    if config.max_steps != -1 and config.max_steps < 1:
        raise UsageError("max_steps", got=config.max_steps, expected="1 or more, or -1 for num_train_epochs")
    if config.max_steps == -1 and not config.num_train_epochs > 0:
        raise UsageError("num_train_epochs", got=config.num_train_epochs, expected="more than 0")


def read_mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any]:
    """A setting that is a mapping, which the command line gives as JSON; None is an empty one.

    Raises:
        UsageError: It is JSON of another kind, or not JSON.
    """
    try:
        found = json.loads(value) if isinstance(value, str) else value or {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(name, got=value, expected="a JSON object of names and values")
    return found


def check_distillation_ranges(config: Any) -> None:
    """Refuse settings of `crosskd.training.config.DistillationConfig` that are out of range or contradict each other.

    Raises:
        UsageError: Names the setting.
    """
    for name in ("distillation_weight", "top_k", "top_entries", "freeze_layers"):
        if getattr(config, name) < 0:
            raise UsageError(name, got=getattr(config, name), expected="0 or more")
    for name in ("max_length", "teacher_max_length"):
        value = getattr(config, name)
        if value is not None and value < 2:
            raise UsageError(name, got=value, expected="2 or more (a prompt token and an answer token)")
    if config.lora_rank < 1:
        raise UsageError("lora_rank", got=config.lora_rank, expected="1 or more")
    if not 0 <= config.lora_dropout < 1:
        raise UsageError("lora_dropout", got=config.lora_dropout, expected="0 or more, less than 1")
    if config.peft != "none" and config.freeze_layers:
        raise UsageError("freeze_layers", got=config.freeze_layers, expected="0 with LoRA, which freezes all layers")
    if config.peft == "none" and config.merge_adapter:
        raise UsageError("merge_adapter", got=True, expected="--peft lora beside it")


def refuse_what_cannot_work(config: Any) -> None:
    """Refuse options of `transformers.TrainingArguments` that this trainer's loss or columns have no place for.

    Raises:
        UsageError: Names the option.
    """
    refused = {
        "label_smoothing_factor": (0.0, "0: cross-entropy and distillation are taken on the labels as they are"),
        "remove_unused_columns": (False, "false: the trainer brings its own columns"),
        "resume_from_checkpoint": (None, "none: --resume, or train(resume_from_checkpoint=...), goes on with a run"),
        "use_liger_kernel": (False, "false: its saving is in a loss that is not ours"),
    }
    for name, (allowed, why) in refused.items():
        if getattr(config, name, allowed) != allowed:
            raise UsageError(f"--{name}", got=getattr(config, name), expected=why)
    if config.label_names not in (None, ["labels"]):
        raise UsageError("--label_names", got=config.label_names, expected="none: the trainer has its own labels")
