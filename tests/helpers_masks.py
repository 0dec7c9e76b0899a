"""What reaches attention, and what stands at padding: spies and saboteurs for the forwards of any family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn


@dataclass
class MaskSpy:
    """What was seen of the masks that reached attention.

    Attributes:
        calls: Attention layers that were run, those computed again in a backward pass too.
        uneven: Those of them in which the sequences of a batch had different masks, as padding makes them.
        empty: Shapes of the masks that had a row in which nothing may be attended to.
    """

    calls: int = 0
    uneven: int = 0
    empty: list[tuple[int, ...]] = field(default_factory=list)

    def note(self, mask: Tensor | None) -> None:
        """Look at a mask: bool, or floating with very negative numbers (scores that were masked serve as well)."""
        self.calls += 1
        if mask is None:
            return
        attended = mask if mask.dtype == torch.bool else mask.detach() > torch.finfo(mask.dtype).min / 2
        self.uneven += bool((attended != attended[:1]).any())
        if not bool(attended.any(-1).all()):
            self.empty.append(tuple(mask.shape))

    def check(self) -> None:
        """There was padding, and no empty row."""
        assert self.uneven > 0
        assert self.empty == []


@pytest.fixture
def mask_spy(monkeypatch: pytest.MonkeyPatch) -> MaskSpy:
    """Watches all attention that transformers computes by ``sdpa`` (its mask) and by ``eager`` (its masked scores)."""
    spy = MaskSpy()
    attention, softmax = nn.functional.scaled_dot_product_attention, nn.functional.softmax

    def watched_attention(*arguments: Any, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        spy.note(attn_mask)
        return attention(*arguments, attn_mask=attn_mask, **options)

    def watched_softmax(scores: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if scores.ndim == 4:
            spy.note(scores)
        return softmax(scores, *arguments, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched_attention)
    monkeypatch.setattr(nn.functional, "softmax", watched_softmax)
    return spy


@contextmanager
def spoiled_embeddings(model: nn.Module, spoil: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """While this is open, ``spoil(ids, states)`` stands for the embeddings ``states`` of ``ids``."""
    weight = model.get_input_embeddings().weight  # pyright: ignore[reportCallIssue]
    calls: list[torch.Size] = []

    def replaced(_: nn.Module, inputs: tuple[Tensor, ...], states: Tensor) -> Tensor:
        calls.append(inputs[0].shape)
        return spoil(inputs[0], states)

    # T5 has a module each for its encoder and its decoder, which share their weight
    readers = [module for module in model.modules() if isinstance(module, nn.Embedding) and module.weight is weight]
    hooks = [reader.register_forward_hook(replaced) for reader in readers]
    try:
        yield
        assert calls
    finally:
        for hook in hooks:
            hook.remove()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of all parameters that have one; they are taken away from the model."""
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad(set_to_none=True)
    return found
