"""Cross-tokenizer knowledge distillation of language models.

The public names load when they are first used, so that ``import crosskd`` and ``crosskd --help`` are quick.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "DistillationConfig": "crosskd.training.config",
    "DistillationTrainer": "crosskd.training.trainer",
    "load_model": "crosskd.models.load",
    "load_examples": "crosskd.data.prepare",
    "evaluate": "crosskd.evaluation.evaluate",
}

if TYPE_CHECKING:
    from crosskd.data.prepare import load_examples
    from crosskd.evaluation.evaluate import evaluate
    from crosskd.models.load import load_model
    from crosskd.training.config import DistillationConfig
    from crosskd.training.trainer import DistillationTrainer

__all__ = ["DistillationConfig", "DistillationTrainer", "evaluate", "load_examples", "load_model"]


def _is_news(record: logging.LogRecord) -> bool:
    """Not that a CPU lacks a kernel: peft imports bitsandbytes wherever it is installed, and it then says so."""
    return "gemm_4bit_forward" not in str(record.msg)


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_news)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'crosskd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
