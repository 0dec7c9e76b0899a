"""The three terms of MultiLevelOT, from the probabilities of columns that already stand opposite each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from crosskd.kernels import use_triton
from crosskd.transport.sinkhorn import sinkhorn_plan, token_cost

PlanGradient = Literal["unrolled", "envelope"]


@dataclass(frozen=True)
class MatchedColumns:
    """Probabilities of k teacher columns and their k student columns at one temperature.

    Attributes:
        teacher: (B, T_t, k).
        student: (B, T_s, k), attached to the graph.
        teacher_mask: (B, T_t), true on answer tokens.
        student_mask: (B, T_s), true on answer tokens.
        teacher_rest: (B, T_t), probability that stands opposite nothing, since the student's vocabulary has ended;
            only without truncation, else None.
        student_rest: (B, T_s), likewise.
    """

    teacher: Float[Tensor, "B T_t k"]
    student: Float[Tensor, "B T_s k"]
    teacher_mask: Bool[Tensor, "B T_t"]
    student_mask: Bool[Tensor, "B T_s"]
    teacher_rest: Float[Tensor, "B T_t"] | None = None
    student_rest: Float[Tensor, "B T_s"] | None = None

    def compared(self) -> Bool[Tensor, "B T"]:
        """Positions 1..min(T_t, T_s) where both sides have a token."""
        tokens = min(self.teacher_mask.shape[1], self.student_mask.shape[1])
        return self.teacher_mask[:, :tokens] & self.student_mask[:, :tokens]


def absolute_difference(columns: MatchedColumns) -> Float[Tensor, ""]:
    """Holistic absolute difference, ``sum_t sum_i |t_i(t) - s_i(t)|`` (Eq. 14, arXiv 2412.14528)."""
    compared = columns.compared()
    tokens = compared.shape[1]
    distances = (columns.teacher[:, :tokens] - columns.student[:, :tokens]).abs().sum(-1)
    for rest in (columns.teacher_rest, columns.student_rest):
        if rest is not None:
            distances = distances + rest[:, :tokens]
    return distances.masked_fill(~compared, 0).sum()


def sequential_log(
    teacher: Float[Tensor, "B T_t k"], student_log: Float[Tensor, "B T_s k"], compared: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Sequential logarithmic term, ``- sum_t sum_i t_i log s_i`` (Eq. 16), from the student's log-probabilities.

    A column that the teacher rules out (probability 0) costs nothing, whatever the student says of it.
    """
    tokens = compared.shape[1]
    teacher = teacher[:, :tokens].masked_fill(~compared.unsqueeze(-1), 0)
    # Not a product alone: 0 * log 0 would be NaN.
    return -(teacher * student_log[:, :tokens].masked_fill(teacher == 0, 0)).sum()


def sinkhorn_of_sequences(
    columns: MatchedColumns,
    epsilon: float,
    iterations: int,
    plan_gradient: PlanGradient | str,
    tolerance: float = 0.0,
) -> Float[Tensor, ""]:
    """Sinkhorn distance ``<K_N, C>`` between the answer tokens of each sequence (Eq. 17-20), summed."""
    if _by_kernels(columns):
        from crosskd.kernels.sinkhorn import Rounds
        from crosskd.kernels.sinkhorn_distance import sinkhorn_distance

        settings = Rounds(epsilon, iterations, tolerance, plan_gradient == "unrolled")
        sides = columns.teacher, columns.student, columns.teacher_mask, columns.student_mask
        return sinkhorn_distance(*sides, settings)
    cost = token_cost(columns.teacher, columns.student)
    if columns.teacher_rest is not None:
        cost = cost + columns.teacher_rest.unsqueeze(2)
    if columns.student_rest is not None:
        cost = cost + columns.student_rest.unsqueeze(1)
    return _transport(cost, columns.teacher_mask, columns.student_mask, epsilon, iterations, plan_gradient, tolerance)


def _by_kernels(columns: MatchedColumns) -> bool:
    """Whether kernels transport: of probabilities that add up to 1 at most, on sides that are not empty."""
    whole = columns.teacher_rest is not None or columns.student_rest is not None
    return use_triton(columns.student) and not whole and 0 not in (*columns.teacher.shape, *columns.student.shape)


def sinkhorn_of_tokens(
    columns: MatchedColumns,
    epsilon: float,
    iterations: int,
    plan_gradient: PlanGradient | str,
    tolerance: float = 0.0,
) -> Float[Tensor, ""]:
    """Sinkhorn distance between the columns of each single token, ``C_ij = |t_i(t) - s_j(t)|``, summed (Table 4)."""
    compared = columns.compared()
    tokens = compared.shape[1]
    teacher, student = columns.teacher[:, :tokens], columns.student[:, :tokens]
    if compared.is_cpu and not use_triton(compared):
        teacher, student = teacher[compared], student[compared]  # elsewhere such a choice would wait for the device
    else:
        absent = ~compared.unsqueeze(-1)
        teacher, student = (side.masked_fill(absent, 0).flatten(0, 1) for side in (teacher, student))  # cost nothing
    cost = (teacher.unsqueeze(2) - student.unsqueeze(1)).abs()
    return _transport(cost, None, None, epsilon, iterations, plan_gradient, tolerance)


def _transport(
    cost: Tensor,
    row_mask: Tensor | None,
    column_mask: Tensor | None,
    epsilon: float,
    iterations: int,
    plan_gradient: PlanGradient | str,
    tolerance: float,
) -> Float[Tensor, ""]:
    constant = plan_gradient == "envelope"
    plan = sinkhorn_plan(cost.detach() if constant else cost, epsilon, iterations, row_mask, column_mask, tolerance)
    return (plan * cost).sum()
