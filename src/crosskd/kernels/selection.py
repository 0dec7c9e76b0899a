"""The largest or smallest entries of each row, without sorting the row.

A row is cut into pieces that fit into the registers of one program. A program finds, bit by bit, the threshold that
``count`` of its entries reach, and writes down their ids in ascending order; a second launch selects among what the
pieces have left, and puts it in order. So every entry is read from memory once.
"""
# what Triton compiles is not Python to a type checker
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from crosskd.kernels import launch as kernels

MOST_ENTRIES = 256
# Bits of a float32 that a dtype leaves zero: nothing is decided there.
_UNUSED_BITS = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}
# Entries that a program holds; a second launch has at most _SECOND_BLOCK of them.
_BLOCKS = (4096, 8192, 16384)
_SECOND_BLOCK = 8192
_MOST_PIECES = 64
# Entries of the sorted ones that are compared with all others at once.
_OTHERS = 32


@triton.jit
def _sortable(values, LARGEST: tl.constexpr, UNUSED: tl.constexpr):
    """Integers that order as the numbers do, the best being the largest; zeros of either sign are equal."""
    values = values.to(tl.float32)
    bits = tl.where(values == 0, 0.0, values).to(tl.int32, bitcast=True)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    if not LARGEST:
        keys = ~keys
    return (keys >> UNUSED) << UNUSED


@triton.jit
def _threshold(keys, size, COUNT: tl.constexpr, UNUSED: tl.constexpr):
    """A number that exactly ``COUNT`` of the keys reach, or, where ties allow none, the ``COUNT``-th largest key."""
    threshold = tl.full((), -2147483648, tl.int32)
    reached = tl.full((), 0, tl.int32) + size
    bit = tl.full((), 31, tl.int32)
    while (bit >= UNUSED) & (reached != COUNT):
        candidate = threshold ^ (1 << bit)  # the highest bit is that of the sign, and to unset it is to add
        reaching = tl.sum((keys >= candidate).to(tl.int32), 0)
        enough = reaching >= COUNT
        threshold = tl.where(enough, candidate, threshold)
        reached = tl.where(enough, reaching, reached)
        bit -= 1
    return threshold


@triton.jit
def _put_in_order(
    chosen,
    base,
    stride_v,
    COUNT: tl.constexpr,
    LARGEST: tl.constexpr,
    UNUSED: tl.constexpr,
    PADDED: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """Reorder ``COUNT`` ids, which ascend, by their values, best first: the place of each is how many are before it."""
    place = tl.arange(0, PADDED)
    ids = tl.load(chosen + place, mask=place < COUNT, other=0).to(tl.int64)
    keys = _sortable(tl.load(base + ids * stride_v, mask=place < COUNT, other=0.0), LARGEST, UNUSED)
    before = tl.zeros((PADDED,), tl.int32)
    for start in range(0, COUNT, OTHERS):
        other = start + tl.arange(0, OTHERS)
        other_ids = tl.load(chosen + other, mask=other < COUNT, other=0).to(tl.int64)
        values = tl.load(base + other_ids * stride_v, mask=other < COUNT, other=0.0)
        other_keys = _sortable(values, LARGEST, UNUSED)[None, :]
        tied = (other_keys == keys[:, None]) & (other[None, :] < place[:, None])
        first = ((other_keys > keys[:, None]) | tied) & (other < COUNT)[None, :]
        before += tl.sum(first.to(tl.int32), 1)
    tl.debug_barrier()  # all are read before any is overwritten
    tl.store(chosen + before, ids, mask=place < COUNT)


@triton.jit(do_not_specialize=["entries", "size"])
def _select(
    values,
    candidates,
    chosen,
    stride_b,
    stride_t,
    stride_v,
    tokens,
    entries,
    size,
    COUNT: tl.constexpr,
    CANDIDATES: tl.constexpr,
    IN_ORDER: tl.constexpr,
    LARGEST: tl.constexpr,
    UNUSED: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """Program (row, piece): the ``COUNT`` best of ``size`` entries of a row, or of its candidates."""
    row, piece = tl.program_id(0), tl.program_id(1)
    base = values + (row // tokens).to(tl.int64) * stride_b + (row % tokens).to(tl.int64) * stride_t
    lanes = tl.arange(0, BLOCK)
    present = tl.minimum(size, entries - piece * size)
    inside = lanes < present
    ids = piece * size + lanes
    if CANDIDATES:
        ids = tl.load(candidates + row.to(tl.int64) * entries + ids, mask=inside, other=0)
    loaded = tl.load(base + ids.to(tl.int64) * stride_v, mask=inside, other=0.0)
    keys = tl.where(inside, _sortable(loaded, LARGEST, UNUSED), -2147483648)
    threshold = _threshold(keys, present, COUNT, UNUSED)
    above = (keys > threshold).to(tl.int32)
    level = ((keys == threshold) & inside).to(tl.int32)
    both = (above << 16) | level  # one scan counts both
    earlier = tl.cumsum(both, 0) - both
    room = COUNT - tl.sum(above, 0)  # for those at the threshold: the first ids get it
    earlier_level = earlier & 0xFFFF
    place = (earlier >> 16) + tl.minimum(earlier_level, room)
    taken = (above != 0) | ((level != 0) & (earlier_level < room))
    target = chosen + (row.to(tl.int64) * tl.num_programs(1) + piece) * COUNT
    tl.store(target + place, ids, mask=taken)
    if IN_ORDER:
        tl.debug_barrier()  # other threads of the program have written them
        _put_in_order(target, base, stride_v, COUNT, LARGEST, UNUSED, PADDED, OTHERS)


def can_select(values: Tensor, count: int) -> bool:
    """Whether ``select_largest`` has a kernel for so many entries of such rows."""
    return count <= MOST_ENTRIES and values.dtype in _UNUSED_BITS and _block(values.shape[-1], count) is not None


def select_largest(values: Float[Tensor, "... V"], count: int, largest: bool = True) -> Int[Tensor, "... k"]:
    """Ids of the ``count`` largest (or smallest) entries of each row, best first; equal ones in order of their ids.

    Equivalent to:
        >>> values.sort(dim=-1, descending=largest, stable=True).indices[..., :count]

    Args:
        values: (V,), (R, V) or (B, T, V) with any strides, any floating dtype. Two zeros are equal whatever their
            sign. A row with NaN gives some distinct ids.
        count: How many are wanted; at most V are there.
        largest: Whether the largest or the smallest are.

    Returns:
        (..., min(count, V)) int64, contiguous.

    Cost: one read of the values and at most two launches. float64, more than 256 entries of a row, or rows of more
    than about a million entries, are sorted by torch instead.
    """
    count = min(count, values.shape[-1])
    if not can_select(values, count):
        return values.sort(dim=-1, descending=largest, stable=True).indices[..., :count].contiguous()
    result = torch.empty((*values.shape[:-1], count), dtype=torch.int64, device=values.device)
    if result.numel() == 0:
        return result
    rows = values[(None,) * (3 - values.ndim)]
    vocabulary = values.shape[-1]
    block = _block(vocabulary, count) or 0
    if vocabulary <= block:
        _launch(rows, None, result, vocabulary, vocabulary, largest)
        return result
    pieces = kernels.ceiling_division(vocabulary, block)
    size = 16 * kernels.ceiling_division(vocabulary, 16 * pieces)  # even pieces, each beginning where wide loads can
    best = torch.empty((*values.shape[:-1], pieces, count), dtype=torch.int32, device=values.device)
    _launch(rows, None, best, vocabulary, size, largest)
    _launch(rows, best, result, pieces * count, pieces * count, largest)
    return result


@lru_cache(maxsize=256)
def _block(vocabulary: int, count: int) -> int | None:
    """Entries that a program of the first launch holds at most: all of them, or so many that few pieces are left."""
    for block in _BLOCKS:
        pieces = kernels.ceiling_division(vocabulary, block)
        if pieces == 1 or (pieces <= _MOST_PIECES and pieces * count <= _SECOND_BLOCK):
            return block
    return None


def _launch(rows: Tensor, candidates: Tensor | None, chosen: Tensor, entries: int, size: int, largest: bool) -> None:
    """Select among all entries of (B, T, V) rows, or among ``entries`` candidates of each, in pieces of ``size``."""
    batch, tokens, _ = rows.shape
    count = chosen.shape[-1]
    pieces = kernels.ceiling_division(entries, size)
    block, padded = kernels.power_of_two(size), kernels.power_of_two(count)
    kernels.launch(
        _select,
        (batch * tokens, pieces),
        rows,
        candidates,
        chosen,
        *rows.stride(),
        tokens,
        entries,
        size,
        COUNT=count,
        CANDIDATES=candidates is not None,
        IN_ORDER=pieces == 1,
        LARGEST=largest,
        UNUSED=_UNUSED_BITS[rows.dtype],
        BLOCK=block,
        PADDED=padded,
        OTHERS=min(_OTHERS, padded),
        num_warps=max(8 if padded > 64 else 4, min(16, block // 512)),
        num_stages=1,
    )
