"""The fused output layer under FSDP, in the two processes of tests/distributed/test_processes.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from crosskd.losses.base import StudentAnswers
from crosskd.losses.registry import create_method
from crosskd.losses.targets import targets_from_logits
from crosskd.models.answer_logits import answer_logits
from crosskd.models.output_layer import FusedOutputLayer
from helpers_models import tiny_model

SHARDED = {
    f"sharded-{layer}-{dtype}": {"kind": "sharded", "layer": layer, "dtype": dtype}
    for layer in ("apart", "with the rest")
    for dtype in ("kept", "half")
}
_ROWS, _ANSWER = 4, 5


def batch_of(rows: slice) -> dict[str, Tensor]:
    """Tokens of some of the four sequences."""
    ids = torch.randint(5, 500, (_ROWS, 12), generator=torch.Generator().manual_seed(1))
    places = torch.arange(12).expand(_ROWS, 12)
    return {"input_ids": ids[rows], "attention_mask": torch.ones_like(ids)[rows], "position_ids": places[rows]}


def loss_of(rows: slice, scale: float) -> Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]:
    """A distillation loss of those sequences, and its terms."""
    draw = torch.Generator().manual_seed(2)
    labels = torch.randint(5, 500, (_ROWS, _ANSWER), generator=draw)
    teacher = torch.randn(_ROWS, 6, 300, dtype=torch.float64, generator=draw) * 3
    method = create_method("multilevel_ot", top_k=8)
    request = method.request()
    assert request is not None
    targets = targets_from_logits(teacher[rows], torch.ones(teacher[rows].shape[:2], dtype=torch.bool), request)
    mask = torch.ones_like(labels, dtype=torch.bool)

    def compute(logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        terms = method.terms(StudentAnswers(logits, labels[rows], mask[rows]), targets)
        return scale * (terms["cross_entropy"] + terms["distillation"]), terms

    return compute


def whole_numbers() -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the four sequences together, from logits that are all there."""
    model = tiny_model("llama").double()
    every = slice(0, _ROWS)
    loss, _ = loss_of(every, 1.0)(answer_logits(model, batch_of(every), _ANSWER))
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def sharded_numbers(layer: str, dtype: str) -> dict[str, Any]:
    """``loss`` and ``gradients`` of the same from two processes with two sequences each and FSDP's halves of weights.

    Args:
        layer: Whether the output layer's weight is gathered ``"apart"`` or ``"with the rest"``.
        dtype: ``"half"`` rounds what leaves the model to bfloat16, as accelerate's mixed precision does.
    """
    from torch.distributed import all_reduce, get_rank
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model: Any = tiny_model("llama").double()
    fused = FusedOutputLayer(model)
    mesh = init_device_mesh("cpu", (2,))
    parts: list[nn.Module] = [*model.model.layers, *([model.lm_head] if layer == "apart" else [])]
    for part in parts:
        fully_shard(part, mesh=mesh)
    policy = MixedPrecisionPolicy(output_dtype=torch.bfloat16) if dtype == "half" else MixedPrecisionPolicy()
    fully_shard(model, mesh=mesh, mp_policy=policy)
    rows = slice(2 * get_rank(), 2 * get_rank() + 2)
    loss, _ = fused.loss(model, batch_of(rows), _ANSWER, loss_of(rows, 2.0))  # gradients are averaged
    loss.backward()
    total = loss.detach() / 2
    all_reduce(total)
    gradients = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    return {"loss": total, "gradients": gradients}
