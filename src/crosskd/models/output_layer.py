"""A loss in the place of logits: the output layer of a student computes the one and never makes the other.

The loss is computed inside the model's own forward and leaves it the way logits do, so that wrappers (DDP, FSDP) see
all that they need to see: the layer is called once, and the gradient comes back through the model's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from crosskd.errors import UsageError
from crosskd.models.answer_logits import answer_logits
from crosskd.transport.hidden_logits import HiddenLogits

FLAG = "--fused_output_layer"

Compute = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
"""From logits (B, A, V) to a scalar loss, attached to the graph, and further numbers."""


class FusedOutputLayer:
    """The output layer of one student.

    Args:
        model: The student, before it is wrapped for training; with adapters if it has any.

    Raises:
        UsageError: The layer is no plain linear layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layer = _plain_layer(model)
        self._checked = False

    def loss(
        self, model: nn.Module, batch: Mapping[str, Any], answer_length: int, compute: Compute
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What ``compute`` gives of the logits of the last ``answer_length`` columns of a batch.

        Equivalent to:
            >>> compute(answer_logits(model, batch, answer_length))

        Args:
            model: The student, wrapped or not; its top-level forward is called.
            batch: See `answer_logits`.
            answer_length: A, the answer tokens of the longest answer (padding included).
            compute: Called with `HiddenLogits` in the dtype that the layer would compute in, without autocast.

        Returns:
            The loss, attached to the graph, and the numbers, without one.

        Raises:
            UsageError: At the first call: the model changes its logits behind the output layer (softcapping,
                scaling), or several GPUs share this process.

        Note: the first call runs one sequence the usual way, to compare what the layer and the model give.
        """
        if not self._checked:
            self._check(model, batch, answer_length)
            self._checked = True
        step = _Step(self._layer, answer_length, compute)
        with _forward_replaced(self._layer, step.forward):
            out = answer_logits(model, batch, answer_length).flatten()[0]
        return step.result(out)

    def _check(self, model: nn.Module, batch: Mapping[str, Any], answer_length: int) -> None:
        """Compare the logits that a model gives with those of its output layer, for one sequence."""
        if isinstance(model, nn.DataParallel):
            raise _refused("several GPUs in one process (DataParallel)", "a process for each", "use torchrun, or")
        row = {name: value[:1] if isinstance(value, Tensor) else value for name, value in batch.items()}
        made: list[Any] = []
        watch = self._layer.register_forward_hook(lambda _layer, _inputs, output: made.append(output))
        try:
            with torch.no_grad(), _same_random_numbers(batch["input_ids"].device):
                logits = answer_logits(model, row, answer_length)
        finally:
            watch.remove()
        of_layer = made[0][:, -answer_length:].to(logits.dtype) if made and made[0].ndim == 3 else None
        if len(made) != 1 or of_layer is None or of_layer.shape != logits.shape:
            raise _refused(f"a model that calls its output layer {len(made)} times", "one call, on (B, L, d)")
        if not bool(torch.isclose(of_layer, logits, rtol=0, atol=0, equal_nan=True).all()):
            raise _refused(
                "logits that the model changes behind its output layer, as softcapping or scaling does",
                "the layer's own product as logits",
            )


class _Step:
    """One forward of the layer.

    Args:
        layer: Asked for its weight when it is called: a wrapper may gather it just before.
        answer_length: Columns that matter, at the end.
        compute: See `FusedOutputLayer.loss`.
    """

    def __init__(self, layer: nn.Linear, answer_length: int, compute: Compute) -> None:
        self._layer = layer
        self._answer_length = answer_length
        self._compute = compute
        self._loss: Tensor | None = None
        self._numbers: dict[str, Tensor] = {}

    def forward(self, hidden: Tensor) -> Tensor:
        """The loss, in the shape of the logits of one token: what a model does with logits works with it."""
        weight, bias = self._layer.weight, self._layer.bias
        dtype = _product_dtype(weight)
        logits = HiddenLogits(hidden[:, -self._answer_length :], weight, bias, dtype)
        with torch.autocast(hidden.device.type, enabled=False):  # the losses choose their precision themselves
            loss, numbers = self._compute(logits)
        self._loss, self._numbers = loss.detach(), {name: value.detach() for name, value in numbers.items()}
        return pad(loss.reshape(1, 1, 1), (0, logits.shape[-1] - 1))

    def result(self, out: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss as it left the model, and the numbers."""
        assert self._loss is not None  # `_check` saw the layer called
        if out.dtype == self._loss.dtype:
            return out, self._numbers
        # Some wrappers round outputs to half precision. The value need not suffer, and its gradient is 1.
        widened = out.to(self._loss.dtype)
        return widened + (self._loss - widened.detach()), self._numbers


def _plain_layer(model: nn.Module) -> nn.Linear:
    find = getattr(model, "get_output_embeddings", None)
    layer = None if find is None else find()
    if type(layer) is not nn.Linear:
        raise _refused(
            f"an output layer of type {type(layer).__name__}",
            "torch.nn.Linear itself, without an adapter or quantization",
            "leave it out of --lora_target_modules, or",
        )
    if "forward" in vars(layer):
        raise _refused("an output layer whose forward somebody replaced", "that of torch.nn.Linear")
    return layer


def _product_dtype(weight: Tensor) -> torch.dtype | None:
    """What autocast would compute the layer's product in; None leaves it to the operands."""
    device = weight.device.type
    if torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return None


@contextmanager
def _forward_replaced(layer: nn.Linear, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    layer.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        del layer.forward


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside (dropout), the numbers drawn behind it are those without it."""
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            yield
        return
    index = torch.accelerator.current_device_index() if device.index is None else device.index
    with torch.random.fork_rng(devices=[index], device_type=device.type):
        yield


def _refused(got: str, expected: str, fix: str = "") -> UsageError:
    return UsageError(FLAG, got=got, expected=expected, fix=f"{fix} leave the flag off".strip())
