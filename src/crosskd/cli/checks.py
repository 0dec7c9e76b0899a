"""What holds for a flag wherever it occurs, checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crosskd.errors import UsageError
from crosskd.training.ranges import LARGEST_SEED

_LEAST = {
    "limit": 1, "batch_size": 1, "shard_size": 1, "max_new_tokens": 1, "max_length": 2, "teacher_max_length": 2,
    "max_characters": 1, "tensor_parallel_size": 1, "generation_max_new_tokens": 1, "examples": 0,
}  # fmt: skip


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse what no flag can mean: numbers that are not finite or out of range, and texts with a NUL.

    Args:
        values: The flags of a verb, by name; None is fine.

    Raises:
        UsageError: Names the flag.
    """
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{name}", got=str(value), expected="a finite number")
        if any("\0" in text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)):
            raise UsageError(f"--{name}", got=str(value), expected="text without NUL characters")
        if name in _LEAST and isinstance(value, int) and value < _LEAST[name]:
            raise UsageError(f"--{name}", got=value, expected=f"an integer of at least {_LEAST[name]}")
    seed = values.get("seed")
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise UsageError("--seed", got=seed, expected=f"an integer from 0 to {LARGEST_SEED}")


def parse_part(text: str) -> tuple[int, int]:
    """Read ``i/n`` with 1 <= i <= n."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError("--shard", got=text, expected="i/n with 1 <= i <= n, such as 2/8")
    return int(number), int(count)


def check_apart(data: str, output: str) -> None:
    """Refuse an output folder that is the one of the data, or holds it: it would be replaced while they are read.

    Raises:
        UsageError: It is such a folder.
    """
    source, folder = Path(data).resolve(), Path(output).resolve()
    if source.exists() and (source == folder or folder in source.parents):
        raise UsageError(f"--output {output}", got="the folder of the data", expected="another folder")
