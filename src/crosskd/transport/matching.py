"""Which student column stands opposite each ranked teacher column (Eq. 11): fast, greedy and exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosskd.errors import UsageError, did_you_mean
from crosskd.kernels import use_triton
from crosskd.transport.hidden_logits import HiddenLogits
from crosskd.transport.ranking import largest_columns
from crosskd.transport.softmax_statistics import SoftmaxStatistics, softmax_statistics

Matching = Literal["fast", "greedy", "exact"]
MATCHINGS: tuple[str, ...] = get_args(Matching)

# Costs of (teacher column, student column), or probabilities of student columns, that are held at once.
_COST_ELEMENTS = 2**18
# Many assignments can have the same L1 cost: this much squared distance makes one of them the best, whatever the order
# of the vocabulary. It changes no cost by more than itself.
_TIE_WEIGHT = 1e-10
# Vocabularies up to here are compared whole: ruling columns out would cost more than it saves.
_SMALL_VOCABULARY = 4096


def match_columns(
    student_logits: Float[Tensor, "B T_s V_s"],
    teacher_values: Float[Tensor, "B T_t k"],
    student_mask: Bool[Tensor, "B T_s"],
    teacher_mask: Bool[Tensor, "B T_t"],
    method: Matching | str = "fast",
) -> Int[Tensor, "B k_s"]:
    """Student columns to compare with the teacher's ranked columns, ``s_SR = Q s`` of Eq. 11, arXiv 2412.14528.

    The cost of putting student column j opposite teacher column i is the L1 distance over answer tokens at
    temperature 1, ``c_ij = sum_t |t_i(t) - s_j(t)|``, on the first min(T_t, T_s) tokens of each sequence.

    - ``fast``: rank the student's columns by their own sums over all of its answer tokens; no cost is computed.
    - ``greedy``: each teacher column in rank order takes the nearest student column that no earlier one took.
    - ``exact``: the assignment with the least total cost.

    Equivalent to, for one sequence and ``exact``:
        >>> student = student_logits.softmax(-1)
        >>> scipy.optimize.linear_sum_assignment(torch.cdist(teacher_values.T, student.T, p=1))[1]

    Args:
        student_logits: (B, T_s, V_s), any floating dtype.
        teacher_values: (B, T_t, k), probabilities of the teacher's ranked columns, best rank first.
        student_mask: (B, T_s), true on answer tokens.
        teacher_mask: (B, T_t), true on answer tokens.
        method: ``fast``, ``greedy`` or ``exact``.

    Returns:
        Distinct student column ids, (B, min(k, V_s)), int64. Among assignments of the same cost,
        which are many in short answers, ``exact`` takes that of least squared distance; ``greedy`` takes any of
        equally near columns.

    Raises:
        UsageError: An unknown method.

    Note: no gradient flows through the choice. Logits that are NaN or infinite give some distinct columns, so that the
    loss becomes NaN instead of an error.

    Cost: ``fast`` one pass over (B, T_s, V_s). The others compute the cost of those student columns alone that can be
    among the k nearest of some teacher column: a teacher column needs no other in any best choice. Flat distributions
    rule nothing out, and then O(B k T V_s). Triton kernels compute all costs, O(B k T V_s) whatever the distributions,
    for up to 256 columns (``exact``: 128) and all sequences at once; ``exact`` waits once, for scipy's assignments.
    """
    statistics = softmax_statistics(student_logits, (1.0,), student_mask)
    return match_with_statistics(student_logits, statistics, teacher_values, student_mask, teacher_mask, method)


@torch.no_grad()
def match_with_statistics(
    student_logits: Tensor,
    statistics: SoftmaxStatistics,
    teacher_values: Tensor,
    student_mask: Tensor,
    teacher_mask: Tensor,
    method: str,
) -> Int[Tensor, "B k_s"]:
    """``match_columns`` where the student's statistics are known: temperature 1 first, columns summed over its mask.

    ``fast`` needs those sums; the others can do without.
    """
    if method not in MATCHINGS:
        fix = did_you_mean(method, MATCHINGS)
        raise UsageError("matching", got=method, expected="one of " + ", ".join(MATCHINGS), fix=fix)
    k = min(teacher_values.shape[-1], student_logits.shape[-1])
    if method == "fast":
        assert statistics.column_sums is not None  # callers give the mask
        return largest_columns(statistics.column_sums, k)
    batch = student_logits.shape[0]
    if 0 in (batch, k):
        return torch.zeros((batch, k), dtype=torch.int64, device=student_logits.device)
    if isinstance(student_logits, HiddenLogits):
        from crosskd.transport.hidden_statistics import hidden_matching

        return hidden_matching(student_logits, statistics, teacher_values, student_mask, teacher_mask, method)
    tokens = min(student_mask.shape[1], teacher_mask.shape[1])
    compared = student_mask[:, :tokens] & teacher_mask[:, :tokens]
    if use_triton(student_logits):
        from crosskd.kernels import matching as kernels

        if kernels.can_match(k, method):
            numbers = statistics.maximum, statistics.log_sums
            columns = kernels.columns_of(student_logits, *numbers, teacher_values, compared)
            return kernels.match(columns, method, _TIE_WEIGHT)
    masses = statistics.column_sums
    if masses is None or not torch.equal(compared.sum(1), student_mask.sum(1)):
        masses = softmax_statistics(student_logits[:, :tokens], (1.0,), compared).column_sums
        assert masses is not None  # a mask was given
    teacher = (teacher_values[:, :tokens, :k].to(masses.dtype) * compared.unsqueeze(-1)).transpose(1, 2).contiguous()
    student = _StudentColumns(student_logits, statistics, compared)
    near = torch.stack([_nearest_columns(student, index, rows, masses[index]) for index, rows in enumerate(teacher)])
    if method == "greedy":
        return _greedy(near, student_logits.shape[-1])
    return torch.stack([_exact(student, index, rows, _distinct(near[index])) for index, rows in enumerate(teacher)])


@dataclass(frozen=True)
class _StudentColumns:
    """The student's probabilities, made for a few columns at a time."""

    logits: Tensor
    statistics: SoftmaxStatistics
    compared: Tensor

    def costs(self, sequence: int, teacher: Tensor, ids: Tensor) -> Float[Tensor, "k n"]:
        """L1 distances between the teacher's columns (k, T) and the student's columns ``ids`` of one sequence."""
        return torch.cdist(teacher, self.probabilities(sequence, ids), p=1.0)

    def probabilities(self, sequence: int, ids: Tensor) -> Float[Tensor, "n T"]:
        """Probabilities of the columns ``ids`` of one sequence, zero at tokens that are not compared."""
        tokens = self.compared.shape[1]
        columns = self.logits[sequence, :tokens].index_select(1, ids) - self.statistics.maximum[sequence, :tokens]
        columns = columns.sub_(self.statistics.log_sums[sequence, :tokens, :1]).exp_()
        return columns.mul_(self.compared[sequence].unsqueeze(1)).T.contiguous()


def _nearest_columns(student: _StudentColumns, sequence: int, teacher: Tensor, masses: Tensor) -> Int[Tensor, "k k"]:
    """The k nearest student columns of each teacher column (k, T), nearest first.

    The distance of two columns is at least the difference of their masses. So a bound on the k-th smallest distance
    rules out all columns whose mass is too far from every teacher column's. The student's likeliest columns at the
    tokens where the teacher's columns are heaviest give that bound.
    """
    k, vocabulary = len(teacher), len(masses)
    every = torch.arange(vocabulary, device=masses.device)
    bound = masses.new_full((k, 1), torch.inf)
    per_token = k + k // 4
    if teacher.shape[1] > 0 and vocabulary > _SMALL_VOCABULARY > per_token:
        heaviest = _distinct(teacher.argmax(1))
        seeds = _distinct(student.logits[sequence, heaviest].topk(per_token, dim=1).indices)
        bound = student.costs(sequence, teacher, seeds).kthvalue(k, dim=1, keepdim=True).values
        weights = teacher.sum(1, keepdim=True)
        bound = bound + 1e-4 * (weights + bound)  # rounding must not rule out a column
        # what is NaN is ruled out by nothing: its columns are chosen somehow, and the loss becomes NaN by itself
        every = every[~((masses < (weights - bound).amin()) | (masses > (weights + bound).amax()))]
    ids: list[Tensor] = []
    costs: list[Tensor] = []
    step = max(k, _COST_ELEMENTS // max(k, teacher.shape[1]))
    for start in range(0, len(every), step):
        part = every[start : start + step]
        part_costs = student.costs(sequence, teacher, part)
        far = (part_costs - bound).amin(0) > 0  # a sort is expensive: what is near to no row is left out before it
        near = ~far
        ids.append(part[near])
        costs.append(part_costs[:, near])
    order = torch.cat(costs, dim=1).topk(k, dim=1, largest=False).indices
    return torch.cat(ids)[order]


def _greedy(near: Int[Tensor, "B k k"], vocabulary: int) -> Int[Tensor, "B k"]:
    """Each row in turn takes the first of its nearest columns that is still free: of k there is always one."""
    batch, k, _ = near.shape
    taken = torch.zeros((batch, vocabulary), dtype=torch.bool, device=near.device)
    places = torch.arange(k, device=near.device).expand(batch, k)
    result = torch.empty((batch, k), dtype=torch.int64, device=near.device)
    for row in range(k):
        ids = near[:, row]
        first = places.masked_fill(taken.gather(1, ids), k).argmin(1, keepdim=True)
        result[:, row : row + 1] = ids.gather(1, first)
        taken.scatter_(1, result[:, row : row + 1], True)
    return result


def _exact(student: _StudentColumns, sequence: int, teacher: Tensor, ids: Int[Tensor, " n"]) -> Int[Tensor, " k"]:
    """Least total cost over the candidates ``ids``: with every row's k nearest, none better is left out."""
    # Here and not above: only this matching needs scipy, which has no type stubs.
    from scipy.optimize import linear_sum_assignment  # pyright: ignore

    teacher, columns = teacher.double(), student.probabilities(sequence, ids).double()
    costs = torch.cdist(teacher, columns, p=1.0) + _TIE_WEIGHT * torch.cdist(teacher, columns).square()
    costs = costs.nan_to_num(0, 0, 0)  # scipy refuses NaN, with which any assignment is as good as another
    chosen: list[int] = linear_sum_assignment(costs.cpu().numpy())[1].tolist()  # pyright: ignore
    return ids[torch.tensor(chosen, dtype=torch.int64, device=ids.device)]


def _distinct(ids: Tensor) -> Int[Tensor, " n"]:
    """Each id once, in ascending order."""
    return cast(Tensor, torch.unique(ids))  # pyright: ignore[reportUnknownMemberType]
