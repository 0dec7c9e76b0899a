"""Logits that are never all there: hidden states and an output layer in the place of a (B, T, V) tensor.

The logits of an answer are the largest array of a training step by far, and their gradient is as large again. All
that the losses need of them can be had from a few hundred tokens at a time, so `HiddenLogits` makes those when they are
asked for, and makes them again for the gradient. ``softmax_statistics``, ``largest_ids``, ``match_with_statistics``,
``answer_pass`` and ``partition_pass`` take it where they take logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from crosskd.errors import UsageError

Rows = tuple[slice, slice]
"""Sequences, and tokens of each of them."""

# Bytes of logits that are made at once. Matrix products want many rows; a CPU's caches want few.
_CPU_BYTES = 2**25
_BYTES = 2**26
_LEAST_ROWS = 64  # below, reading the weight costs more than the products


class HiddenLogits(Tensor):
    """``hidden @ weight.T + bias`` of shape (B, T, V), to pass as logits to the losses of this package.

    Shape, dtype, device, ``requires_grad``, ``detach()`` and ``[sequences, tokens]`` are those of the logits.
    Everything else that torch does with a tensor raises a UsageError: the numbers are not there.

    Attributes:
        hidden: (B, T, d), attached to the graph.
        weight: (V, d), attached to the graph.
        bias: (V,), attached to the graph, or None.
    """

    hidden: Float[Tensor, "B T d"]
    weight: Float[Tensor, "V d"]
    bias: Float[Tensor, " V"] | None
    _operands: tuple[Tensor, Tensor, Tensor | None]

    @staticmethod
    def __new__(
        cls: type[HiddenLogits],
        hidden: Float[Tensor, "B T d"],
        weight: Float[Tensor, "V d"],
        bias: Float[Tensor, " V"] | None = None,
        dtype: torch.dtype | None = None,
    ) -> HiddenLogits:
        """Put hidden states and an output layer together.

        Args:
            hidden: (B, T, d), states of the answer's tokens; the layer's input.
            weight: (V, d), the layer's weight.
            bias: (V,), its bias, or None.
            dtype: What the product is computed in, and the dtype of the logits; None takes that of its operands.

        Cost: a copy of each operand that has another dtype (autocast makes the same copies).
        """
        dtype = dtype or torch.promote_types(hidden.dtype, weight.dtype)
        attached = [hidden, weight] if bias is None else [hidden, weight, bias]
        operands = [tensor.detach().to(dtype) for tensor in attached]
        return cls._made(attached, operands)

    @classmethod
    def _made(cls, attached: list[Tensor], operands: list[Tensor]) -> HiddenLogits:
        hidden, weight = operands[0], operands[1]
        found = cast(
            "HiddenLogits",
            Tensor._make_wrapper_subclass(  # pyright: ignore
                cls,
                (*hidden.shape[:2], weight.shape[0]),
                dtype=hidden.dtype,
                device=hidden.device,
                requires_grad=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in attached),
            ),
        )
        found.hidden, found.weight = attached[0], attached[1]
        found.bias = attached[2] if len(attached) > 2 else None
        found._operands = hidden, weight, operands[2] if len(operands) > 2 else None
        return found

    def detach(self) -> HiddenLogits:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The same logits without a graph; nothing is copied."""
        return self._with_hidden(self.hidden.detach(), self._operands[0], detached=True)

    def __getitem__(self, rows: Any) -> HiddenLogits:
        """Some sequences, or some tokens of some sequences: ``[slice]`` or ``[slice, slice]``."""
        parts = cast("tuple[Any, ...]", rows if isinstance(rows, tuple) else (rows,))
        if len(parts) > 2 or not all(isinstance(part, slice) for part in parts):
            raise _not_there("an index that is not two slices")
        return self._with_hidden(self.hidden[parts], self._operands[0][parts])

    def _with_hidden(self, hidden: Tensor, operand: Tensor, detached: bool = False) -> HiddenLogits:
        outer = [self.weight] if self.bias is None else [self.weight, self.bias]
        inner = [tensor for tensor in self._operands[1:] if tensor is not None]
        return self._made([hidden, *(tensor.detach() if detached else tensor for tensor in outer)], [operand, *inner])

    def chunks(self, chunk_size: int | None = None) -> Iterator[Rows]:
        """Rows whose logits are made together: several whole sequences or equal pieces of one, at least one chunk.

        Args:
            chunk_size: Tokens of a chunk at most, counted over the batch; None chooses what takes some 64 MiB.
        """
        batch, tokens, vocabulary = self.shape
        if chunk_size is None:
            limit = _CPU_BYTES if self.device.type == "cpu" else _BYTES
            chunk_size = max(_LEAST_ROWS, limit // max(1, vocabulary * self.dtype.itemsize))
        pieces = -(-tokens // chunk_size) or 1
        step, sequences = max(1, -(-tokens // pieces)), max(1, chunk_size // max(1, tokens))
        for first in range(0, max(1, batch), sequences):
            for start in range(0, max(1, tokens), step):
                yield slice(first, min(batch, first + sequences)), slice(start, min(tokens, start + step))

    def part(self, rows: Rows) -> Float[Tensor, "b t V"]:
        """The logits of some rows, without a graph: one matrix product."""
        hidden, weight, bias = self._operands
        return F.linear(hidden[rows], weight, bias)

    def columns(self, ids: Int[Tensor, "B k"]) -> Float[Tensor, "B T k"]:
        """The logits of a few columns of each sequence, without a graph; memory B k d."""
        hidden, weight, bias = self._operands
        values = hidden @ F.embedding(ids, weight).transpose(1, 2)
        return values if bias is None else values + bias[ids].unsqueeze(1)

    def entries(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """One logit of each token, without a graph; memory B T d."""
        hidden, weight, bias = self._operands
        values = (hidden.unsqueeze(2) @ F.embedding(ids, weight).unsqueeze(3)).flatten(2).squeeze(2)
        return values if bias is None else values + bias[ids]

    def operands(self) -> tuple[Float[Tensor, "B T d"], Float[Tensor, "V d"]]:
        """Hidden states and weight in the dtype of the product, without a graph."""
        return self._operands[0], self._operands[1]

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        """Shape and dtype; there are no numbers to show."""
        return f"HiddenLogits(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse what would need the numbers."""
        raise _not_there(str(func))


def _not_there(operation: str) -> UsageError:
    return UsageError(
        "logits of --fused_output_layer",
        got=operation,
        expected="crosskd's own passes (answer_pass, partition_pass, softmax_statistics, largest_ids): the logits are "
        "never in memory together",
        fix="use those in the method, or leave the flag off",
    )
