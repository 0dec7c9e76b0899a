"""What only transformers can say of a configuration: whether a schedule or a logger has what it needs."""

from __future__ import annotations

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from crosskd.errors import UsageError, did_you_mean, first_line


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
            got=f"lr_scheduler_kwargs {options}: {first_line(error)}",
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
