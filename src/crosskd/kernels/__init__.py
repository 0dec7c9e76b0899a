"""Triton kernels for what a GPU does slowly in torch operations: passes over logits, rankings, matchings, Sinkhorn.

Each stands behind a function of `crosskd.transport` or `crosskd.losses`, whose torch code is the reference and what
runs on a CPU. ``CROSSKD_KERNELS`` set to ``torch`` or ``triton`` overrides the choice by device; Triton's interpreter
(``TRITON_INTERPRET=1``) runs the kernels on a CPU, slowly, for tests.

Triton comes with torch on machines with a GPU, and is imported only there: this module does not import it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

from torch import Tensor

from crosskd.errors import UsageError

VARIABLE = "CROSSKD_KERNELS"
MOST_TEMPERATURES = 3
"""Temperatures that the kernels' passes over logits take; torch does more."""


def use_triton(tensor: Tensor) -> bool:
    """Whether what is done with ``tensor`` is done by Triton kernels.

    Raises:
        UsageError: ``CROSSKD_KERNELS`` is something else than ``torch`` or ``triton``.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen not in ("", "torch", "triton"):
        raise UsageError(VARIABLE, got=chosen, expected="torch or triton", fix="unset it to choose by device")
    if chosen:
        return chosen == "triton"
    return tensor.is_cuda and _has_triton()


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None
