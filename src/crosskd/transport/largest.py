"""The largest entries of every token, without sorting the vocabulary."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosskd.kernels import use_triton
from crosskd.transport.hidden_logits import HiddenLogits
from crosskd.transport.softmax_statistics import answer_chunks

_GROUP = 16  # vocabulary entries of which only the largest is looked at first


def largest_ids(logits: Float[Tensor, "B T V"], count: int, chunk_size: int | None = None) -> Int[Tensor, "B T k"]:
    """Ids of the largest logits of each token, descending; in chunks, since a sort takes several copies.

    Equivalent to:
        >>> logits.topk(min(count, logits.shape[-1]), dim=-1).indices

    Args:
        logits: (B, T, V), any floating dtype.
        count: How many are wanted; at most V are there.
        chunk_size: Tokens of the batch that are sorted at once; None chooses.

    Returns:
        (B, T, min(count, V)) int64. Which of equal logits come first is left open.
    """
    if isinstance(logits, HiddenLogits):
        from crosskd.transport.hidden_statistics import hidden_largest_ids

        return hidden_largest_ids(logits, count, chunk_size)
    count = min(count, logits.shape[-1])
    if use_triton(logits):
        from crosskd.kernels.selection import can_select, select_largest

        if can_select(logits, count):
            return select_largest(logits, count)
    result = torch.empty((*logits.shape[:2], count), dtype=torch.int64, device=logits.device)
    for chunk in answer_chunks(logits, chunk_size):
        part = logits[chunk]
        candidates = _candidates(part, count)
        if candidates is None:
            result[chunk] = part.topk(count, dim=-1).indices
        else:
            result[chunk] = candidates.gather(-1, part.gather(-1, candidates).topk(count, dim=-1).indices)
    return result


def _candidates(logits: Float[Tensor, "B T V"], count: int) -> Int[Tensor, "B T c"] | None:
    """A few ids that hold the ``count`` largest logits; None where looking at all ids is as cheap.

    The vocabulary is cut into groups: whatever is among the ``count`` largest is in one of the ``count`` groups with
    the largest maxima. Halves the cost of a top-k of 200 among 50,000.
    """
    vocabulary = logits.shape[-1]
    if 4 * _GROUP * count > vocabulary:
        return None
    groups = vocabulary // _GROUP  # group g holds the ids g, g + groups, g + 2 groups, ...
    whole = groups * _GROUP
    batch, tokens, _ = logits.shape
    maxima = logits[..., :whole].reshape(batch, tokens, _GROUP, groups).amax(-2)
    chosen = maxima.topk(count, dim=-1, sorted=False).indices
    steps = (groups * torch.arange(_GROUP, device=logits.device)).unsqueeze(-1)
    left_over = torch.arange(whole, vocabulary, device=logits.device).expand(batch, tokens, -1)
    return torch.cat([(chosen.unsqueeze(-2) + steps).flatten(-2), left_over], dim=-1)
