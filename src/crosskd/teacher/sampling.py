"""Sampled answers that come out the same in any batch: every prompt draws from a stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel


class SeededSampling(LogitsProcessor):
    """Draws each row's next token and leaves it as the only possible one, for greedy decoding to take.

    A token is drawn by inverting the distribution function at one uniform number, so that a row uses one number of its
    stream for each token, whatever the vocabulary and the device.

    Args:
        seeds: B seeds, one a row.
        temperature: Above 0; tokens are drawn from softmax(logits / temperature).
        top_p: Draw from the most probable tokens that together reach this share, in (0, 1].
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature
        self._top_p = top_p

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - tensors, as the base class documents
        self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V"]:
        """``scores`` (B, V) with 0 at the token drawn and minus infinity elsewhere."""
        probabilities = (scores.double() / self._temperature).softmax(-1)
        order = None
        if self._top_p < 1:
            probabilities, order = probabilities.sort(descending=True, stable=True)
            # a token counts while those before it fall short of the share, so the first always does
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities.masked_fill(before >= self._top_p, 0)
        mass = probabilities.cumsum(-1)
        uniform = torch.stack([torch.rand(1, generator=stream, dtype=torch.float64) for stream in self._streams])
        drawn = torch.searchsorted(mass, uniform.to(mass.device) * mass[:, -1:], right=True)
        # rounding may lift the last product onto the total, behind every token
        drawn = torch.minimum(drawn, (mass < mass[:, -1:]).sum(-1, keepdim=True))
        token = drawn if order is None else order.gather(-1, drawn)
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0)


@contextmanager
def sampled_generation(
    model: PreTrainedModel, temperature: float, top_p: float, seed_of: Callable[[Sequence[int]], int]
) -> Iterator[None]:
    """Let ``model.generate`` sample for a while; nothing changes where the temperature is 0.

    Args:
        model: The model; its ``generate`` is as before afterwards.
        temperature: 0, or as in `SeededSampling`.
        top_p: As there.
        seed_of: The seed of a prompt's stream.
    """
    if temperature == 0:
        yield
        return
    generate = model.generate

    def sampling(*, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
        prompts = [row[kept.bool()].tolist() for row, kept in zip(input_ids, attention_mask, strict=True)]
        drawing = SeededSampling([seed_of(prompt) for prompt in prompts], temperature, top_p)
        options["logits_processor"] = LogitsProcessorList([*(options.get("logits_processor") or []), drawing])
        return generate(  # pyright: ignore[reportCallIssue] - typed as if it were a tensor
            input_ids=input_ids, attention_mask=attention_mask, **options
        )

    model.generate = sampling  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del model.generate
