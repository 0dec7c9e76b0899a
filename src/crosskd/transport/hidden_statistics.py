"""What `softmax_statistics`, `largest_ids` and `match_with_statistics` compute, from logits made a chunk at a time.

Each calls the function of the same purpose on each chunk of logits, so that whatever those run on a device (torch
operations, Triton kernels) is what runs here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosskd.transport.hidden_logits import HiddenLogits
from crosskd.transport.largest import largest_ids
from crosskd.transport.matching import match_with_statistics
from crosskd.transport.softmax_statistics import SoftmaxStatistics, compute_dtype, softmax_statistics

# Bytes of logits that a matching may hold at once; a sequence beyond them is searched in blocks of its vocabulary.
_MATCHING_BYTES = 2**27
_BLOCK_ELEMENTS = 2**24


@torch.no_grad()
def hidden_statistics(
    logits: HiddenLogits,
    temperatures: tuple[float, ...] = (1.0,),
    mask: Bool[Tensor, "B T"] | None = None,
    chunk_size: int | None = None,
) -> SoftmaxStatistics:
    """`softmax_statistics` of logits that are not there; probabilities are never kept.

    Cost: one matrix product of (B T, d) and (d, V), and what the statistics of as many logits cost; memory of one chunk
    and (B, V).
    """
    batch, tokens, vocabulary = logits.shape
    maximum = logits.hidden.new_empty((batch, tokens, 1), dtype=compute_dtype(logits.dtype))
    log_sums = maximum.new_empty((batch, tokens, len(temperatures)))
    sums = None if mask is None else maximum.new_zeros((batch, vocabulary))
    for rows in logits.chunks(chunk_size):
        of_rows = None if mask is None else mask[rows]
        part = softmax_statistics(logits.part(rows), temperatures, of_rows, chunk_size)
        maximum[rows] = part.maximum
        log_sums[rows] = part.log_sums
        if sums is not None and part.column_sums is not None:
            sums[rows[0]] += part.column_sums
    return SoftmaxStatistics(maximum, log_sums, sums)


@torch.no_grad()
def hidden_largest_ids(logits: HiddenLogits, count: int, chunk_size: int | None = None) -> Int[Tensor, "B T k"]:
    """`largest_ids` of logits that are not there; one matrix product of (B T, d) and (d, V)."""
    batch, tokens, vocabulary = logits.shape
    ids = torch.empty((batch, tokens, min(count, vocabulary)), dtype=torch.int64, device=logits.device)
    for rows in logits.chunks(chunk_size):
        ids[rows] = largest_ids(logits.part(rows), count, chunk_size)
    return ids


@torch.no_grad()
def hidden_matching(
    logits: HiddenLogits,
    statistics: SoftmaxStatistics,
    teacher_values: Float[Tensor, "B T_t k"],
    student_mask: Bool[Tensor, "B T_s"],
    teacher_mask: Bool[Tensor, "B T_t"],
    method: str,
) -> Int[Tensor, "B k_s"]:
    """`match_with_statistics` for ``greedy`` and ``exact``, which look at the student's columns themselves.

    As many sequences at a time as 128 MiB of logits hold. Of one that is longer, the columns that may be chosen
    are found first: the k nearest of each teacher column, k^2 at most.

    Cost: one matrix product of (B T, d) and (d, V), two for long sequences, and the matching of as many logits.
    """
    batch, tokens, vocabulary = logits.shape
    step = _MATCHING_BYTES // max(1, tokens * vocabulary * logits.dtype.itemsize)
    parts: list[Tensor] = []
    for first in range(0, batch, max(1, step)):
        of = slice(first, min(batch, first + max(1, step)))
        sums = None if statistics.column_sums is None else statistics.column_sums[of]
        known = SoftmaxStatistics(statistics.maximum[of], statistics.log_sums[of], sums)
        arguments = known, teacher_values[of], student_mask[of], teacher_mask[of], method
        if step:
            parts.append(match_with_statistics(logits.part((of, slice(0, tokens))), *arguments))
        else:
            parts.append(_match_long(logits[of], *arguments))
    return torch.cat(parts)


def _match_long(
    logits: HiddenLogits,
    statistics: SoftmaxStatistics,
    teacher_values: Tensor,
    student_mask: Tensor,
    teacher_mask: Tensor,
    method: str,
) -> Int[Tensor, "1 k_s"]:
    """One sequence, with the logits of the columns alone that may be chosen.

    Blocks of the vocabulary pass by, and what is near to some teacher column among them and the nearest so far is
    kept: k^2 columns, so that those near in the whole vocabulary are among them at the end. Sizes are fixed, so that
    the host waits for nothing.
    """
    tokens = min(student_mask.shape[1], teacher_mask.shape[1])
    compared = student_mask[:, :tokens] & teacher_mask[:, :tokens]
    known = SoftmaxStatistics(statistics.maximum[:, :tokens], statistics.log_sums[:, :tokens, :1])
    pair = _Pair(logits[:, :tokens], known, teacher_values[:, :tokens, : logits.shape[-1]], compared)
    candidates = pair.candidates()
    columns = logits[:, :tokens].columns(candidates.unsqueeze(0))
    known = SoftmaxStatistics(known.maximum, known.log_sums, pair.probabilities(columns).sum(1))
    return candidates[match_with_statistics(columns, known, pair.teacher, compared, compared, method)]


@dataclass(frozen=True)
class _Pair:
    """Both sides of one sequence, on the tokens that are compared."""

    logits: HiddenLogits
    statistics: SoftmaxStatistics
    teacher: Float[Tensor, "1 T k"]
    compared: Bool[Tensor, "1 T"]

    def candidates(self) -> Int[Tensor, " n"]:
        """Distinct columns of the student, among them the k nearest to each of the teacher's."""
        vocabulary, width = self.logits.shape[-1], max(self.logits.shape[1], self.logits.hidden.shape[-1])
        kept = min(vocabulary, self.teacher.shape[-1] ** 2)
        block = max(kept, _BLOCK_ELEMENTS // width - kept)
        every = torch.arange(vocabulary, device=self.logits.device)
        found = every[:0]
        for start in range(0, vocabulary, block):
            seen = torch.cat([found, every[start : start + block]])
            found = seen[_distinct(self._nearest(seen), len(seen), min(kept, len(seen)))]
        return found

    def probabilities(self, columns: Float[Tensor, "1 T n"]) -> Float[Tensor, "1 T n"]:
        """Of some logits; zero at tokens that are not compared."""
        shifted = columns - self.statistics.maximum
        return shifted.sub_(self.statistics.log_sums).exp_().mul_(self.compared.unsqueeze(-1))

    def _nearest(self, ids: Int[Tensor, " n"]) -> Int[Tensor, "k m"]:
        """Places among ``ids`` of the columns nearest to each of the teacher's, k if there are so many."""
        student = self.probabilities(self.logits.columns(ids.unsqueeze(0)))[0].T.contiguous()
        teacher = (self.teacher.to(student.dtype) * self.compared.unsqueeze(-1))[0].T.contiguous()
        costs = torch.cdist(teacher, student, p=1.0)
        return costs.topk(min(costs.shape), dim=1, largest=False).indices


def _distinct(places: Int[Tensor, "k m"], length: int, count: int) -> Int[Tensor, " count"]:
    """Distinct places in [0, length), ``count`` of them: those of ``places``, which may repeat, before others."""
    flags = torch.zeros(length, dtype=torch.int8, device=places.device)
    return flags.index_fill_(0, places.flatten(), 1).topk(count).indices
