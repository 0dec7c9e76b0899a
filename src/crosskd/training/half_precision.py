"""Under ``--bf16`` and ``--fp16`` logits reach the losses in the precision in which they were computed.

Accelerate wraps the forward of every model that it prepares twice: in autocast, and around that in a conversion of all
outputs to float32. The second wrapper costs a float32 copy of the logits (B, A, V) and a float32 gradient of them, and
gains nothing: the numbers were rounded before, and the losses sum in float32 whatever they are given. So it is taken
off again, from the student and from a live teacher, and autocast stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

from accelerate import Accelerator
from accelerate.utils.operations import ConvertOutputsToFp32
from torch import nn
from transformers import PreTrainedModel

from crosskd.models.quantization import quantization_of


def keep_logits_half(accelerator: Accelerator) -> None:
    """Let an accelerator prepare models without converting their outputs; nothing changes without mixed precision.

    Args:
        accelerator: Of the trainer, before it has prepared a model.
    """
    prepare = accelerator.prepare_model

    def prepare_model(model: nn.Module, *arguments: Any, **options: Any) -> nn.Module:
        prepared: nn.Module = prepare(model, *arguments, **options)
        return without_conversion(prepared)

    accelerator.prepare_model = prepare_model


def without_conversion(model: nn.Module) -> nn.Module:
    """Take the conversion to float32 off the forward of a prepared model; its autocast stays.

    What wraps the model (DDP, FSDP, torch.compile) looks its forward up when it is called, so that it may be exchanged
    after it was wrapped. A model that is not converted, or no longer, is left alone.

    Args:
        model: What ``Accelerator.prepare_model`` returned.

    Returns:
        The same model.
    """
    for module in _wrapped(model):
        forward = module.__dict__.get("forward")
        converting = getattr(forward, "__wrapped__", None)
        if isinstance(converting, ConvertOutputsToFp32):
            computed = converting.model_forward
            module.forward = MethodType(computed, module) if isinstance(forward, MethodType) else computed
    return model


def frozen_teacher(teacher: PreTrainedModel, accelerator: Accelerator) -> nn.Module:
    """A live teacher for evaluation: no gradients, on the device, under autocast where the run has mixed precision.

    Args:
        teacher: The model; quantized ones stay where they were loaded.
        accelerator: Of the trainer.
    """
    frozen = accelerator.prepare_model(teacher.requires_grad_(False).eval(), evaluation_mode=True)
    if quantization_of(teacher) == "none":
        frozen.to(accelerator.device)  # under FSDP accelerate moves no model
    return frozen


def _wrapped(model: nn.Module) -> Iterator[nn.Module]:
    """A model and, from the outside in, what its wrappers hold."""
    inner: object = model
    while isinstance(inner, nn.Module):
        yield inner
        inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
