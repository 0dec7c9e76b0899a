"""Checksums of files, computed once, and the folder in which crosskd keeps what it computed once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from crosskd.files import write_text

logger = logging.getLogger(__name__)
_SETTLED = 2.0  # seconds: a file changed more recently may change again within one tick of the file system's clock


def cache_directory() -> Path:
    """Where crosskd keeps what it made once: ``$CROSSKD_CACHE``, else ``$XDG_CACHE_HOME/crosskd``."""
    if chosen := os.environ.get("CROSSKD_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crosskd"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; the whole file is read."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def known_sha256(path: Path) -> str:
    """SHA-256 of a file, read again only if the file changed since it was last computed.

    The checksum is kept in the user's cache directory beside the file's size, times and inode. Whatever writes to the
    file or replaces it changes one of these (the time of the last status change cannot be set back), so a checksum
    that is out of date is never given; only a disk that loses bits on its own goes unnoticed, and `file_sha256` finds
    that. A cache directory that cannot be written costs the computation each time.

    Args:
        path: A file.

    Returns:
        What `file_sha256` returns.
    """
    memo = cache_directory() / "checksums" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
    state = _state(path)
    with suppress(OSError, ValueError, AttributeError):  # absent or damaged: computed again
        kept = json.loads(memo.read_text(encoding="utf-8"))
        if kept.get("state") == state and isinstance(kept.get("sha256"), str):
            return kept["sha256"]
    checksum = file_sha256(path)
    if _state(path) == state and time.time() - max(state["mtime_ns"], state["ctime_ns"]) / 1e9 > _SETTLED:
        try:
            write_text(memo, json.dumps({"file": str(path.resolve()), "sha256": checksum, "state": state}) + "\n")
        except OSError as error:
            logger.debug("the checksum of %s could not be kept: %s", path, error)
    return checksum


def _state(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
    }
