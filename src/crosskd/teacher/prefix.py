"""Few-shot prompts begin alike: the key-value states of that beginning are computed once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import DynamicCache

from crosskd.models.attention_masks import no_empty_rows
from crosskd.models.shared_prefix import usable_prefix_length

_SHORTEST = 16  # below this many shared tokens, copying states costs more than computing them


class SharedPrefix:
    """Key-value states of tokens with which every prompt of a run begins.

    Args:
        model: A causal language model whose forward takes ``past_key_values``.
        ids: The shared tokens, the beginning-of-sequence token included.
    """

    def __init__(self, model: nn.Module, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        device = next(model.parameters()).device
        cache = DynamicCache(config=model.config)  # pyright: ignore[reportArgumentType]
        with torch.no_grad(), no_empty_rows():
            inputs = torch.tensor([self.ids], device=device)
            model(input_ids=inputs, past_key_values=cache, use_cache=True)
        self._cache = cache

    def __len__(self) -> int:
        return len(self.ids)

    def states(self, batch_size: int) -> DynamicCache:
        """A copy of the states for ``batch_size`` sequences; the forward may append to it."""
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(batch_size)
        return cache


def reusable_prefix(prompts: Sequence[Sequence[int]], shared: Sequence[int]) -> list[int]:
    """The part of ``shared`` that every prompt begins with, short of the shortest prompt's last token.

    One token of each prompt must remain to be computed, since it predicts the first answer token. Returns ``[]`` where
    what is shared is too short to pay.
    """
    length = usable_prefix_length(prompts, shared)
    return list(shared[:length]) if length >= _SHORTEST else []
