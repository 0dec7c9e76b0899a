"""What holds for flags of several verbs, checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crosskd.errors import UsageError

_LARGEST_SEED = 2**32 - 1  # what numpy takes


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse what no flag can mean: numbers that are not finite, and texts with a NUL, which no file's name can have.

    Args:
        values: The flags of a verb, by name.

    Raises:
        UsageError: Names the flag.
    """
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{name}", got=str(value), expected="a finite number")
        if any("\0" in text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)):
            raise UsageError(f"--{name}", got=str(value), expected="text without NUL characters")


def check_counts(arguments: Any, flags: Sequence[str], *, least: int = 1) -> None:
    """Refuse flags, out of those given, that are smaller than ``least``; None is fine.

    Raises:
        UsageError: Names the flag.
    """
    for flag in flags:
        value = getattr(arguments, flag)
        if value is not None and value < least:
            raise UsageError(f"--{flag}", got=value, expected=f"an integer of at least {least}")


def check_seed(seed: int) -> None:
    """Refuse a seed that random number generators do not take.

    Raises:
        UsageError: It is negative or too large.
    """
    if not 0 <= seed <= _LARGEST_SEED:
        raise UsageError("--seed", got=seed, expected=f"an integer from 0 to {_LARGEST_SEED}")
