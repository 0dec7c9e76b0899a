"""Weights of a teacher in 8 or 4 bit, through bitsandbytes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from crosskd.errors import UsageError

Quantization = Literal["none", "8bit", "4bit"]


def quantization_options(quantization: Quantization | str) -> dict[str, Any]:
    """What ``from_pretrained`` needs to quantize weights while it loads them.

    8 bit is LLM.int8, 4 bit is NF4 with bfloat16 arithmetic. Such a model can answer and give targets; it is not for
    training. bitsandbytes puts it where it will run: on the first GPU, or on the CPU.

    Args:
        quantization: ``"none"``, ``"8bit"`` or ``"4bit"``.

    Raises:
        UsageError: An unknown value, or bitsandbytes is not installed.
    """
    if quantization == "none":
        return {}
    if quantization not in ("8bit", "4bit"):
        raise UsageError("quantization", got=quantization, expected="none, 8bit or 4bit")
    if not find_spec("bitsandbytes"):
        raise UsageError(
            f"weights in {quantization} need the package bitsandbytes", fix='pip install "crosskd[bitsandbytes]"'
        )
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    return {"quantization_config": _settings(quantization), "device_map": {"": device}}


def _settings(quantization: str) -> BitsAndBytesConfig:
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def quantization_of(model: PreTrainedModel) -> Quantization:
    """How the weights of a loaded model are quantized."""
    settings = getattr(model.config, "quantization_config", None)
    if getattr(settings, "load_in_8bit", False):
        return "8bit"
    return "4bit" if getattr(settings, "load_in_4bit", False) else "none"
