"""Sampled answers that come out the same in any batch: every prompt draws from a stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

# Random numbers of a row that are drawn and moved to the device at once.
_BLOCK = 64


class SeededSampling(LogitsProcessor):
    """Draws each row's next token and leaves it as the only possible one, for greedy decoding to take.

    A token is drawn by inverting the distribution function at one uniform number, so that a row uses one number of its
    stream for each token, whatever the vocabulary and the device. Probabilities are summed in float64: the tail of a
    large vocabulary would be lost in float32, and with it the same draw on every device. Nothing waits for the device;
    the numbers are drawn on the host, as many at once as serve for 64 tokens.

    Args:
        seeds: B seeds, one a row.
        temperature: Above 0; tokens are drawn from softmax(logits / temperature).
        top_p: Draw from the most probable tokens that together reach this share, in (0, 1].
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature
        self._top_p = top_p
        self._position = 0
        self._numbers = torch.empty(0)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - tensors, as the base class documents
        self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V"]:
        """``scores`` (B, V) with 0 at the token drawn and minus infinity elsewhere."""
        probabilities = (scores.double() / self._temperature).softmax(-1)
        order = None
        if self._top_p < 1:
            probabilities, order = _sorted(scores, probabilities)
            # a token counts while those before it fall short of the share, so the first always does
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities.masked_fill(before >= self._top_p, 0)
        mass = probabilities.cumsum(-1)
        drawn = torch.searchsorted(mass, self._uniform(mass.device) * mass[:, -1:], right=True)
        # rounding may lift the last product onto the total, behind every token
        drawn = torch.minimum(drawn, (mass < mass[:, -1:]).sum(-1, keepdim=True))
        token = drawn if order is None else order.gather(-1, drawn)
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0)

    def _uniform(self, device: torch.device) -> Float[Tensor, "B 1"]:
        """The next number of each row's stream."""
        column = self._position % _BLOCK
        if column == 0:
            numbers = torch.stack([torch.rand(_BLOCK, generator=one, dtype=torch.float64) for one in self._streams])
            # from memory that is not pinned, a copy would wait for all that the device has to do
            numbers = numbers.pin_memory() if device.type == "cuda" else numbers
            self._numbers = numbers.to(device, non_blocking=True)
        self._position += 1
        return self._numbers[:, column : column + 1]


def _sorted(
    scores: Float[Tensor, "B V"], probabilities: Float[Tensor, "B V"]
) -> tuple[Float[Tensor, "B V"], Int[Tensor, "B V"]]:
    """The probabilities from the largest to the smallest, and their tokens; of equals the first token first."""
    if not scores.is_cuda:
        values, order = probabilities.sort(stable=True, descending=True)
        return values, order
    # Half the bytes to sort, and the same order but where float64 does not tell probabilities of two scores apart.
    order = scores.sort(stable=True, descending=True).indices
    return probabilities.gather(-1, order), order


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
        rows = zip(input_ids.tolist(), attention_mask.tolist(), strict=True)
        prompts = [[token for token, kept in zip(*row, strict=True) if kept] for row in rows]
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
