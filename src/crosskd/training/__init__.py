"""Distillation as a `transformers.Trainer`."""

from crosskd.training.config import DistillationConfig
from crosskd.training.trainer import DistillationTrainer

__all__ = ["DistillationConfig", "DistillationTrainer"]
