"""The Sinkhorn distance as a function that gradients flow through, by the kernel that fits the plans."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosskd.kernels.sinkhorn import Rounds, fits, sinkhorn_on_chip
from crosskd.kernels.sinkhorn_tiled import sinkhorn_tiled


def sinkhorn_with_gradient(
    teacher: Float[Tensor, "B k M"],
    student: Float[Tensor, "B k N"],
    teacher_mask: Bool[Tensor, "B M"],
    student_mask: Bool[Tensor, "B N"],
    settings: Rounds,
    gradient: bool = True,
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B k N"] | None]:
    """`sinkhorn_on_chip` where the plans fit, else `sinkhorn_tiled`; arguments and results as there."""
    compute = sinkhorn_on_chip if fits(teacher.shape[2], student.shape[2]) else sinkhorn_tiled
    return compute(teacher, student, teacher_mask, student_mask, settings, gradient)


def sinkhorn_distance(
    teacher: Float[Tensor, "B M k"],
    student: Float[Tensor, "B N k"],
    teacher_mask: Bool[Tensor, "B M"],
    student_mask: Bool[Tensor, "B N"],
    settings: Rounds,
) -> Float[Tensor, ""]:
    """``<K_N, C>`` summed over pairs, attached to the graph of ``student``.

    Args:
        teacher: (B, M, k) probabilities, in the dtype of ``student``.
        student: (B, N, k) probabilities, float32 or float64.
        teacher_mask: (B, M), tokens that exist.
        student_mask: (B, N), likewise.
        settings: How the plans are made.
    """
    masks = teacher_mask.contiguous(), student_mask.contiguous()
    return _Distance.apply(teacher, student, *masks, settings)  # pyright: ignore[reportReturnType]


class _Distance(torch.autograd.Function):
    """The gradient is computed with the value, and waits for what comes back."""

    @staticmethod
    def forward(
        ctx: Any,
        teacher: Tensor,
        student: Tensor,
        teacher_mask: Tensor,
        student_mask: Tensor,
        settings: Rounds,
    ) -> Tensor:
        sides = teacher.mT.contiguous(), student.mT.contiguous()
        wanted = ctx.needs_input_grad[1]
        distances, gradient = sinkhorn_with_gradient(*sides, teacher_mask, student_mask, settings, wanted)
        ctx.save_for_backward(gradient)
        return distances.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[None, Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return None, gradient.mT * gradients[0], None, None, None
