"""Ranges of the settings that `transformers.TrainingArguments` takes as they come, and a trial of the schedule.

What is wrong is said when the configuration is made: before a model is loaded and before a folder is written.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from crosskd.errors import UsageError, did_you_mean

_AT_LEAST: dict[str, float] = {
    "learning_rate": 0, "weight_decay": 0, "adam_epsilon": 0, "max_grad_norm": 0, "warmup_steps": 0,
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0, "save_total_limit": 1,
}  # fmt: skip
_LARGEST_SEED = 2**32 - 1


def check_training_ranges(config: TrainingArguments) -> None:
    """Refuse numbers that no training can have; to be called before `transformers.TrainingArguments` looks at them.

    Raises:
        UsageError: A number is not finite or out of its range.
    """
    for item in fields(config):
        value = getattr(config, item.name, None)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(item.name, got=str(value), expected="a finite number")
    for name, least in _AT_LEAST.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise UsageError(name, got=value, expected=f"{least} or more")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise UsageError(name, got=getattr(config, name), expected="0 or more, less than 1")
    for name in ("seed", "data_seed"):
        value = getattr(config, name)
        if value is not None and not 0 <= value <= _LARGEST_SEED:
            raise UsageError(name, got=value, expected=f"an integer from 0 to {_LARGEST_SEED}")
    _check_length(config)
    _check_mapping("lr_scheduler_kwargs", config.lr_scheduler_kwargs)
    for name in ("logging_steps", "save_steps", "eval_steps"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise UsageError(name, got=value, expected="more than 0")


def _check_length(config: TrainingArguments) -> None:
    if config.max_steps != -1 and config.max_steps < 1:
        raise UsageError("max_steps", got=config.max_steps, expected="1 or more, or -1 for num_train_epochs")
    if config.max_steps == -1 and not config.num_train_epochs > 0:
        raise UsageError("num_train_epochs", got=config.num_train_epochs, expected="more than 0")


def _check_mapping(name: str, value: object) -> None:
    try:
        found = json.loads(value) if isinstance(value, str) else value or {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(name, got=value, expected="a JSON object of names and values")


def check_schedule(config: TrainingArguments) -> None:
    """Make the schedule of the learning rate once, for nothing, since it says by itself what it misses.

    Raises:
        UsageError: The kind of schedule needs ``lr_scheduler_kwargs``, or does not know one of them.
    """
    steps = config.max_steps if config.max_steps > 0 else 100
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    kind, options = config.lr_scheduler_type, config.lr_scheduler_kwargs
    try:
        get_scheduler(
            kind,
            optimizer=optimizer,
            num_warmup_steps=config.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=options or {},  # pyright: ignore[reportArgumentType]
        )
    except Exception as error:  # each kind of schedule has errors of its own
        raise UsageError(
            f"lr_scheduler_type {getattr(kind, 'value', kind)}",
            got=f"lr_scheduler_kwargs {options}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            fix="give --lr_scheduler_kwargs as this schedule wants them, as JSON",
        ) from error


def check_reports(config: TrainingArguments) -> None:
    """Refuse a ``report_to`` that transformers does not know.

    Raises:
        UsageError: Names it, with the nearest known one.
    """
    given = config.report_to
    for name in [given] if isinstance(given, str) else given or []:
        if name not in (*INTEGRATION_TO_CALLBACK, "all", "none"):
            fix = did_you_mean(str(name), [*INTEGRATION_TO_CALLBACK, "all", "none"])
            raise UsageError("report_to", got=name, expected="a logger that transformers knows", fix=fix)
