"""What the tests of a GPU share: when they run, and how often the host waits for the device."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "0",
        reason="needs a CUDA device and TRITON_INTERPRET=0",
    ),
]


@contextmanager
def _watched(mode: str) -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def no_waits() -> Iterator[None]:
    """Whatever makes the host wait for the device is an error."""
    with _watched("error"):
        yield


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    """Of each wait of the host for the device, what torch says; complete when the block has ended."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _watched("warn"):
            yield found
    # torch says of the mode itself, too, that it is a prototype
    found += [str(each.message) for each in caught if "called a synchronizing" in str(each.message)]
