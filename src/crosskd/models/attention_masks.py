"""No attention row is empty: a position that may attend to nothing attends to itself.

Padding on the left makes a row of every padding position in which all columns are masked, and so does padding on the
right under a sliding window. What attention gives there never reaches an answer, but the softmax of such a row has no
meaning, and kernels differ in what they make of it: the backward pass of cuDNN's attention gives NaN, which then is in
every gradient. One finite column makes the row as good as any other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

MaskFunction = Callable[..., Any]

_lock = threading.Lock()
_users = 0
_wrapped: dict[str, MaskFunction] = {}  # what transformers used before we came
_overridden: set[str] = set()  # those of them that somebody had put in place of the library's own


@contextmanager
def no_empty_rows() -> Iterator[None]:
    """While this is open, the masks that transformers makes let every query attend to one key at least.

    transformers makes the masks of a forward in one place, `transformers.masking_utils`, once a forward and outside of
    the blocks that gradient checkpointing computes again. The two functions of it that give arrays are replaced: that
    of ``sdpa`` (true where a query may attend) and that of ``eager`` (0 there, the dtype's minimum elsewhere). Rows
    that are not empty keep their masks to the bit, and where transformers needs no mask none is made.

    It may be opened within itself and by several threads; the last one out puts the functions back. The threads of
    `torch.nn.DataParallel` see what the thread that started them has opened.

    Not covered: models that make their masks themselves (remote code), masks given as (B, 1, Q, K), and
    attention of other kinds: flash attention computes no padding at all, and flex attention defines an empty row as 0.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _users
    with _lock:
        _users += 1
        if _users > 1:
            return
        for kind, ours in _OURS.items():
            _wrapped[kind] = ALL_MASK_ATTENTION_FUNCTIONS[kind]
            if _remove_override(kind):
                _overridden.add(kind)
            ALL_MASK_ATTENTION_FUNCTIONS[kind] = ours


def _leave() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users:
            return
        for kind in _OURS:
            _remove_override(kind)
            if kind in _overridden:
                ALL_MASK_ATTENTION_FUNCTIONS[kind] = _wrapped[kind]
        _overridden.clear()


def _remove_override(kind: str) -> bool:
    """Give the library's own function its place back; whether there was another."""
    try:
        del ALL_MASK_ATTENTION_FUNCTIONS[kind]
    except KeyError:
        return False
    return True


# Functions of the module and not closures: `torch.compile` compiles a model again when they change.
def _sdpa_mask(*arguments: Any, **options: Any) -> Any:
    return _opened(_wrapped["sdpa"](*arguments, **options), options)


def _eager_mask(*arguments: Any, **options: Any) -> Any:
    return _opened(_wrapped["eager"](*arguments, **options), options)


_OURS: dict[str, MaskFunction] = {"sdpa": _sdpa_mask, "eager": _eager_mask}


def _opened(mask: Any, options: dict[str, Any]) -> Any:
    """A mask (B, 1, Q, K), bool or floating, in which each empty row has its own column; anything else as it is."""
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return mask
    queries, keys = mask.shape[-2:]
    attended = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
    # the first query is behind all cached keys, unless the cache says otherwise (it has room for keys to come)
    first = options["q_offset"] - options.get("kv_offset", 0) if "q_offset" in options else keys - queries
    own = (torch.arange(queries, device=mask.device) + first).clamp(0, keys - 1)
    opened = ~attended.any(-1, keepdim=True) & (own[:, None] == torch.arange(keys, device=mask.device))
    return mask | opened if mask.dtype == torch.bool else mask.masked_fill(opened, 0)
