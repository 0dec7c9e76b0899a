"""Key-value states of a prefix that many prompts share, laid out so that left padding stays exact.

Prompts of a batch differ in length and are padded on the left, so every row has the shared tokens in other columns.
Their states do not depend on the column, only on the position, which left padding does not change. So each row of the
cache holds the prefix moved right by that row's padding, and the columns keep their distances: sliding windows, whose
masks are made from distances between columns, see what they would have seen. What moves out at the right end of the
cached columns is computed again with the rest of the prompt::

    columns         0 1 2 3 4 5 6 | 7 8 9 ...
    longest prompt  p p p p p p p | a b c          p: prefix, cached      .: padding
    two shorter     . . p p p p p | p p a          right of the bar: computed in this batch
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from crosskd.models.attention_masks import no_empty_rows

logger = logging.getLogger(__name__)

_EXACT_LAYERS = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True)
class PrefixCache:
    """Keys and values of the prefix, one pair a layer, each (1, heads, P, head size)."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    def shifted(self, padding: Sequence[int]) -> DynamicCache:
        """A cache of P columns for a batch whose rows have so much ``padding`` on the left; zeros where it is."""
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self.layers):
            cache.update(_moved_right(keys, padding), _moved_right(values, padding), index)
        return cache


def compute_prefix_cache(model: PreTrainedModel, prefix: Sequence[int]) -> PrefixCache | None:
    """States of ``prefix``, or None for an architecture where they cannot be reused exactly.

    They can where every layer attends fully or by a sliding window, states are stored one column a token, and the
    forward takes explicit positions.

    Args:
        model: A language model in evaluation mode.
        prefix: P token ids.

    Returns:
        The states, on the model's device.
    """
    accepted = inspect.signature(model.forward).parameters
    kinds = set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ())
    if model.config.is_encoder_decoder or "position_ids" not in accepted or kinds - _EXACT_LAYERS:
        logger.info("%s computes the shared prefix again for every batch", type(model).__name__)
        return None
    # Without a config the cache keeps every column, also of sliding layers: rows with padding need the early ones.
    cache = DynamicCache()
    inputs = torch.tensor([list(prefix)], device=model.device)
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    with no_empty_rows():
        model(input_ids=inputs, past_key_values=cache, use_cache=True, **last_only)
    states = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    layers = tuple((k, v) for k, v in states if isinstance(k, Tensor) and isinstance(v, Tensor))
    if len(layers) < len(states) or any(keys.shape[-2] != len(prefix) for keys, _ in layers):
        return None
    return PrefixCache(layers)


def _moved_right(states: Tensor, padding: Sequence[int]) -> Tensor:
    length = states.shape[-2]
    moved = states.new_zeros((len(padding), *states.shape[1:]))
    for row, shift in enumerate(padding):
        if shift < length:
            moved[row, :, shift:] = states[0, :, : length - shift]
    return moved
