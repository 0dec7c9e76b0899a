"""What of the student is trained: all of it, all but its first layers, or matrices beside its layers."""

from __future__ import annotations

import logging

import torch
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
    _warn_of_rounding(model, config.learning_rate)
    if model is student and not config.freeze_layers:
        return model
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%s of %s parameters are trained (%.2f %%)", f"{trained:,}", f"{total:,}", 100 * trained / total)
    return model


def _warn_of_rounding(model: nn.Module, learning_rate: float) -> None:
    """Say what half precision costs: an update of Adam is about the learning rate, and less than half a step is lost.

    A weight w in [2^e, 2^(e+1)) has neighbours 2^e eps away, eps being 2^-7 in bfloat16 and 2^-10 in float16. An update
    below half of that is rounded away, whatever the number of steps: always where ``|w| > 4 learning_rate / eps``.
    """
    halves = [p for p in model.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
    if not halves or learning_rate <= 0:
        return
    dtype = halves[0].dtype
    limit = 4 * learning_rate / torch.finfo(dtype).eps
    stuck = sum(int((p.detach().abs() > limit).sum()) for p in halves) / sum(p.numel() for p in halves)
    logger.warning(
        "the student's weights are %s: at --learning_rate %g an update of Adam (about that large) is lost in "
        "rounding for every weight beyond %.2g, which are %.0f %% of them; load it in float32 "
        '(load_model(..., dtype="float32"), --student_dtype float32), with --bf16 for speed',
        str(dtype).removeprefix("torch."), learning_rate, limit, 100 * stuck,
    )  # fmt: skip
