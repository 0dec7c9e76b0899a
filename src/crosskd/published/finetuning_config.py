"""The settings of a published run, with what its flags change."""

from __future__ import annotations

import logging
import re
from typing import Any

import torch

from crosskd.published.finetuning_flags import FinetuningFlags
from crosskd.training.config import DistillationConfig

logger = logging.getLogger(__name__)

PAPER_WEIGHT = 0.15
AUTHORS_WEIGHT = 1.5


def make_config(flags: FinetuningFlags) -> DistillationConfig:
    """The settings of the published code, with what the flags change; the log says which loss that is."""
    default = AUTHORS_WEIGHT if flags.formulation == "authors" else PAPER_WEIGHT
    weight = default if flags.distil_factor is None else flags.distil_factor
    config = DistillationConfig(
        output_dir=flags.output_dir,
        method="multilevel_ot" if flags.distillation else "sft",
        formulation=flags.formulation,  # pyright: ignore[reportArgumentType] - the flags checked it
        matching="fast" if flags.f == 1 else "greedy",
        distillation_weight=weight,
        number_few_shot=0,  # prompts are the loader file's
        learning_rate=flags.lr,
        num_train_epochs=flags.num_epochs,
        per_device_train_batch_size=flags.batch_size_training,
        per_device_eval_batch_size=flags.val_batch_size,
        gradient_accumulation_steps=flags.gradient_accumulation_steps,
        gradient_checkpointing=flags.gradient_checkpointing,
        weight_decay=flags.weight_decay,
        max_grad_norm=0.0,  # the published code does not clip
        optim="adamw_torch",
        seed=flags.seed,
        dataloader_drop_last=True,
        logging_first_step=True,
        fp16=_half_precision(flags),
        save_strategy="no",  # `StepCheckpoints` validates and saves
        **_adaptation(flags),
    )
    _tell_loss(flags, config)
    return config


def _adaptation(flags: FinetuningFlags) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if flags.use_peft:
        settings |= {"peft": "lora", "lora_rank": flags.lora_r}
        settings |= {"lora_alpha": flags.lora_alpha, "lora_dropout": flags.lora_dropout}
        if flags.target_modules:
            settings["lora_target_modules"] = re.findall(r"[\w.]+", flags.target_modules)
    if flags.freeze_layers:
        settings["freeze_layers"] = flags.num_freeze_layers
    return settings


def _half_precision(flags: FinetuningFlags) -> bool:
    if flags.use_fp16 and not torch.cuda.is_available():
        logger.info("--use_fp16 has no effect without CUDA")
        return False
    return flags.use_fp16


def _tell_loss(flags: FinetuningFlags, config: DistillationConfig) -> None:
    if not flags.distillation:
        if flags.teacher:
            logger.warning("the teacher %s is not asked: --distillation is not given", flags.teacher)
        logger.info("loss: cross-entropy on the labels alone; --distillation adds a teacher")
    elif flags.formulation == "authors":
        logger.info(
            "loss: what the published code computes, weight %g, matching %s; --formulation paper takes the equations",
            config.distillation_weight,
            config.matching,
        )
    else:
        logger.info("loss: the paper's equations, weight %g, matching %s", config.distillation_weight, config.matching)
