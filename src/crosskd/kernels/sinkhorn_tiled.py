"""The Sinkhorn distance of long answers: two tiled launches a round, over a cost matrix in memory.

The same potentials and the same way back as in `crosskd.kernels.sinkhorn`. A round reads the cost twice and writes two
vectors; the way back does the same, and the gradient of the cost is put together at the end from the vectors of all
rounds. Memory: one matrix, and four vectors a round.

With a tolerance, a pair stops after the first round whose rows are within it. That is known one launch later, since the
mass of row i after round n is ``mass * exp(f_n - f_(n+1))``; from then on its programs have nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosskd.kernels import launch as kernels
from crosskd.kernels.sinkhorn import Rounds
from crosskd.kernels.sinkhorn_tiles import contract, cost_gradient, cost_tiles, potentials, student_gradient

_TILE = 64  # tokens of either side in a tile of the cost and of its gradient
_FEW, _MANY = 16, 256  # rows and columns of a tile that is read along rows
_SHARE = 8  # student tokens of a program that goes over all of the teacher's
_DOWN, _STRIPE = 128, 32  # rows and columns of a tile that is read along columns


@dataclass(frozen=True)
class _Problem:
    """The cost of all pairs and what is known of them; launches that go over it by rows or by columns.

    Attributes:
        cost: (B, M, N).
        masks: (B, M) and (B, N).
        masses: (B,), mass of the plan's columns.
        epsilon: Regularization.
    """

    cost: Float[Tensor, "B M N"]
    masks: tuple[Bool[Tensor, "B M"], Bool[Tensor, "B N"]]
    masses: Float[Tensor, " B"]
    epsilon: float

    def pass_over(
        self, kernel: Any, by_rows: bool, first: tuple[Tensor | None, ...], last: tuple[Any, ...], **switches: bool
    ) -> Callable[[int], None]:
        """What starts ``kernel`` in the round that it is given: on the cost, ``first``, masks, ``last`` and sizes."""
        batch, rows, columns = self.cost.shape
        masks, sizes, tile = self.masks, (rows, columns, columns, 1), {"OWN": _FEW, "OTHER": _MANY}
        if not by_rows:
            masks, sizes, tile = masks[::-1], (columns, rows, 1, columns), {"OWN": _STRIPE, "OTHER": _DOWN}
        sizes = (*sizes, *(number for number in last if not isinstance(number, Tensor) and number is not None))
        tensors = (*masks, self.masses, *(tensor for tensor in last if isinstance(tensor, Tensor) or tensor is None))
        dtype = kernels.TRITON_DTYPES[self.cost.dtype]
        grid = kernels.ceiling_division(sizes[0], tile["OWN"]), batch
        arguments = (self.cost, *first, *tensors, *sizes)
        constants = {**tile, **switches, "INV_EPSILON": 1 / self.epsilon, "DTYPE": dtype, "num_warps": 4}
        return kernels.repeated(kernel, grid, *arguments, **constants)

    def run_rounds(self, settings: Rounds) -> tuple[Tensor, Tensor, Int[Tensor, " B"]]:
        """Potentials of all rounds, (n, B, M) and (n, B, N), and how many rounds each pair ran."""
        iterations, tolerance = settings.iterations, settings.tolerance
        batch, rows, columns = self.cost.shape
        f = self.cost.new_empty((iterations, batch, rows))
        g = self.cost.new_empty((iterations, batch, columns))
        missing = self.cost.new_zeros((iterations, batch)) if tolerance > 0 else None
        last = (missing, float(tolerance))
        switches = {"STOPS": missing is not None}
        over_rows = self.pass_over(potentials, True, (f, g), last, ROWS=True, **switches)
        over_columns = self.pass_over(potentials, False, (g, f), last, ROWS=False, **switches)
        for index in range(iterations):
            over_rows(index)
            over_columns(index)
        if missing is None:
            return f, g, torch.full((batch,), iterations, dtype=torch.int32, device=f.device)
        return f, g, 1 + (missing[:-1] > tolerance).sum(0, dtype=torch.int32)

    def moved(self, by_rows: bool, f: Tensor, g: Tensor, rounds: Tensor) -> Tensor:
        """Plan times cost, summed along rows (B, M) or columns (B, N)."""
        potentials = (f, g) if by_rows else (g, f)
        result = torch.empty_like(potentials[0][0])
        first = (*potentials, None, None, result)
        self.pass_over(contract, by_rows, first, (rounds,), OF_THE_PLAN=True, BEFORE=False)(0)
        return result

    def turn_into_gradient(self, f: Tensor, g: Tensor, rounds: Tensor, unrolled: bool) -> Float[Tensor, " B"]:
        """Put the gradient of the cost in its place, after reading the distance off it."""
        batch, rows, columns = self.cost.shape
        last_f = self.moved(True, f, g, rounds)
        of_f, of_g = torch.empty_like(f), torch.empty_like(g)
        if unrolled:
            last_g = self.moved(False, f, g, rounds)
            of_g[-1] = last_g
            switches = {"OF_THE_PLAN": False}
            over_rows = self.pass_over(contract, True, (f, g, of_g, last_f, of_f), (rounds,), BEFORE=False, **switches)
            over_columns = self.pass_over(
                contract, False, (g, f, of_f, last_g, of_g), (rounds,), BEFORE=True, **switches
            )
            for index in range(len(f) - 1, -1, -1):
                over_rows(index)
                if index > 0:
                    over_columns(index)
        kernels.launch(
            cost_gradient,
            (kernels.ceiling_division(columns, _TILE), kernels.ceiling_division(rows, _TILE), batch),
            self.cost,
            f,
            g,
            of_f,
            of_g,
            *self.masks,
            self.masses,
            rounds,
            rows,
            columns,
            UNROLLED=unrolled,
            TILE=_TILE,
            INV_EPSILON=1 / self.epsilon,
            DTYPE=kernels.TRITON_DTYPES[self.cost.dtype],
            num_warps=8,
        )
        return last_f.sum(1)


def sinkhorn_tiled(
    teacher: Float[Tensor, "B k M"],
    student: Float[Tensor, "B k N"],
    teacher_mask: Bool[Tensor, "B M"],
    student_mask: Bool[Tensor, "B N"],
    settings: Rounds,
    gradient: bool = True,
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B k N"] | None]:
    """What `sinkhorn_on_chip` gives, for plans of any size; about four launches a round, and B M N numbers."""
    batch, kept, rows = teacher.shape
    columns = student.shape[2]
    cost = student.new_empty((batch, rows, columns))
    dtype = kernels.TRITON_DTYPES[student.dtype]
    tiles = kernels.ceiling_division(columns, _TILE), kernels.ceiling_division(rows, _TILE), batch
    sizes = rows, columns, kept
    kernels.launch(cost_tiles, tiles, teacher, student, cost, *sizes, TILE=_TILE, DTYPE=dtype, num_warps=8)
    counts = [mask.sum(1).clamp_(min=1).to(cost.dtype) for mask in (teacher_mask, student_mask)]
    problem = _Problem(cost, (teacher_mask, student_mask), counts[0] / counts[1], settings.epsilon)
    f, g, rounds = problem.run_rounds(settings)
    if not gradient:
        return problem.moved(True, f, g, rounds).sum(1), None
    distances = problem.turn_into_gradient(f, g, rounds, settings.unrolled)
    result = torch.empty_like(student)
    kernels.launch(
        student_gradient,
        (kernels.ceiling_division(columns, _SHARE), batch),
        cost,
        teacher.mT.contiguous(),
        student,
        result,
        *sizes,
        STRIPE=_SHARE,
        KEPT=kernels.power_of_two(kept),
        DTYPE=dtype,
        num_warps=2,
    )
    return distances, result
