"""What a cache of targets says of itself: read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crosskd.errors import UsageError
from crosskd.files import read_json

IDENTITY = "identity.json"
FORMAT = 2
"""Raised when caches are written in a way that earlier or later versions cannot read."""


def identity_of(folder: str | Path) -> dict[str, Any]:
    """The identity of a cache that ``--teacher_cache`` names.

    Raises:
        UsageError: No cache is there, or as for `read_identity`.
    """
    what = f"--teacher_cache {folder}"
    if not (Path(folder) / IDENTITY).is_file():
        raise UsageError(what, got="no cache", expected="a folder written by `crosskd cache`")
    return read_identity(Path(folder), what)


def read_identity(folder: Path, what: str) -> dict[str, Any]:
    """What a cache says of itself: how many shards there are, whose they are, and the rest of its identity.

    Args:
        folder: The cache's.
        what: What the user called it, for errors.

    Raises:
        UsageError: Another version wrote it, or it is not what `crosskd.teacher.cache.TargetCache.create` wrote.
    """
    identity = read_json(folder / IDENTITY)
    if identity.get("format") != FORMAT:
        raise UsageError(
            what,
            got=f"a cache of format {identity.get('format', 1)}",
            expected=f"format {FORMAT}",
            fix="make it again: the same `crosskd cache` command with --overwrite",
        )
    sizes = [identity.get(name) for name in ("examples", "shard_size")]
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not whole or not isinstance(identity.get("teacher"), str):
        raise UsageError(
            f"{folder / IDENTITY} does not say what the cache holds",
            expected="the examples, shard_size and teacher that `crosskd cache` wrote",
            fix="write the cache again",
        )
    return identity
