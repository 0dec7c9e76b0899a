"""Freezing the first layers of a model."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from crosskd.errors import UsageError


def freeze_layers(model: PreTrainedModel, count: int) -> int:
    """Hold the first ``count`` transformer blocks constant: of a causal model, or of encoder and decoder each.

    Embeddings and the output layer stay trainable.

    Args:
        model: The student; its blocks' ``requires_grad`` is changed.
        count: Blocks to freeze, fewer than each stack has.

    Returns:
        How many parameters were frozen.

    Raises:
        UsageError: A stack has no more blocks than that, or none are found.
    """
    stacks = _stacks(model)
    if not stacks:
        raise UsageError(
            "freeze_layers", got=count, expected=f"0: no transformer blocks found in {type(model).__name__}"
        )
    shortest = min(map(len, stacks))
    if count >= shortest:
        raise UsageError("freeze_layers", got=count, expected=f"less than the {shortest} layers of the student")
    frozen = [parameter for stack in stacks for block in stack[:count] for parameter in block.parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in frozen)


def _stacks(model: PreTrainedModel) -> list[nn.ModuleList]:
    """The lists of blocks, as long as the configuration says, that lie inside no other such list.

    Of a model that reads images too, those that read the text.
    """
    text = model.config.get_text_config(decoder=True)
    names = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
    lengths = {getattr(text, name, None) for name in names} - {None, 0}
    reader = model if model.config.is_encoder_decoder else model.get_decoder()
    found = {
        name: module
        for name, module in reader.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) in lengths
    }
    return [stack for name, stack in found.items() if not any(name.startswith(f"{other}.") for other in found)]
