"""What of the student is trained: all of it, all but its first layers, or matrices beside its layers."""

from __future__ import annotations

import logging

from torch import nn
from transformers import PreTrainedModel, set_seed

from crosskd.models.adapters import with_lora
from crosskd.models.freezing import freeze_layers
from crosskd.training.config import DistillationConfig

logger = logging.getLogger(__name__)


def trained_model(student: PreTrainedModel, config: DistillationConfig) -> nn.Module:
    """The student with the parameters to train set apart, as ``peft`` and ``freeze_layers`` say; the share is logged.

    Raises:
        UsageError: As for `crosskd.models.adapters.with_lora` and `crosskd.models.freezing.freeze_layers`.
    """
    model: nn.Module = student
    if config.freeze_layers:
        freeze_layers(student, config.freeze_layers)
    elif config.peft == "lora":
        set_seed(config.seed)  # the matrices begin at random
        model = with_lora(
            student,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            target_modules=config.lora_target_modules,
        )
    else:
        return model
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%s of %s parameters are trained (%.2f %%)", f"{trained:,}", f"{total:,}", 100 * trained / total)
    return model
