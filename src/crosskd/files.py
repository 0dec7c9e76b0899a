"""Files that are either whole or absent: everything is written beside its place and moved into it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from crosskd.errors import UsageError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8 to ``path`` in one step; folders on the way are created.

    A reader sees the old file or the new one, never half of one, also when the writer is killed.

    Args:
        path: The file.
        text: Its whole content.

    Returns:
        ``path`` as a :class:`~pathlib.Path`.
    """
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write ``content`` to ``path`` in one step (see :func:`write_text`)."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content)
        beside.replace(target)
    except BaseException:
        with suppress(OSError):  # of a disk that failed the first error is the one to tell
            beside.unlink(missing_ok=True)
        raise
    return target


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON to ``path`` in one step (see :func:`write_text`)."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write ``rows`` to ``path`` in one step, one JSON object a line (see :func:`write_text`)."""
    return write_text(path, "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows))


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        UsageError: The file is missing, is not JSON, or holds something other than an object.
    """
    try:
        value = json.loads(_read_text(Path(path)))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: line {error.lineno}: {error.msg}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds a JSON {type(value).__name__}", expected="one JSON object")
    return value


def read_jsonl(path: str | Path, *, unfinished: bool = False) -> list[dict[str, Any]]:
    """Read a file with one JSON object a line; empty lines are skipped.

    Args:
        path: The file.
        unfinished: Whether another program may be appending to the file, or was killed while it did: a last line
            that is not whole is then left out instead of being an error.

    Returns:
        The objects in the order of their lines.

    Raises:
        UsageError: The file is missing, or a line (named) is not a JSON object.
    """
    lines = _read_text(Path(path)).split("\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if unfinished and number == len(lines):
                break
            raise UsageError(f"{path}, line {number}: {error.msg}", expected="one JSON object a line") from error
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number} is a {type(row).__name__}", expected="one JSON object a line")
        rows.append(row)
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder", expected="a file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text file in UTF-8") from error


def check_output_folder(path: str | Path, *, overwrite: bool = False, resume: bool = False) -> Path:
    """Make sure that :func:`prepare_output_folder` would succeed, and touch nothing.

    For verbs that load models first: a mistake shows at once, and an old result is deleted only when all is ready.

    Args:
        path: The output folder; it need not exist.
        overwrite: A folder that is not empty may lose what it holds (``--overwrite``).
        resume: A folder that is not empty keeps what it holds (``--resume``).

    Returns:
        The folder.

    Raises:
        UsageError: Both flags are set; ``path`` is a file; the folder is not empty and neither flag is set; or
            ``overwrite`` would delete the current folder, the home folder, one of their parents or a repository.
    """
    folder = Path(path)
    if overwrite and resume:
        raise UsageError("--overwrite and --resume", fix="give one of the two: they contradict each other")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output folder {folder} is a file", expected="a folder")
    if resume or not folder.is_dir() or not any(folder.iterdir()):
        return folder
    if not overwrite:
        raise UsageError(
            f"output folder {folder} is not empty",
            fix="give --resume to go on from it, --overwrite to delete what it holds, or another folder",
        )
    if _holds_more_than_results(folder.resolve()):
        raise UsageError(f"--overwrite {folder}", fix="this folder holds more than results; choose another one")
    return folder


def prepare_output_folder(path: str | Path, *, overwrite: bool = False, resume: bool = False) -> Path:
    """Make ``path`` a folder that a verb may write into: create it, and empty it if ``overwrite`` says so.

    Arguments, result and errors as for :func:`check_output_folder`.
    """
    folder = check_output_folder(path, overwrite=overwrite, resume=resume)
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    return folder


@contextmanager
def disk_errors(folder: str | Path, fix: str) -> Iterator[None]:
    """Say in one line that a folder can no longer be written: the disk is full, its owner or its mount changed.

    Args:
        folder: Where the block writes.
        fix: How to go on once there is room again.

    Raises:
        UsageError: The block failed on the disk; errors of any other kind are passed on as they are.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _rust_errno(error)
        if number not in _DISK_ERRORS:
            raise
        raise UsageError(f"writing to {folder}", got=os.strerror(number).lower(), fix=fix) from error


def _rust_errno(error: Exception) -> int | None:
    """The error number in what safetensors raises, which is no OSError: ``... (os error 28)``."""
    found = re.search(r"\b(?:os error|code:) (\d+)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


def _holds_more_than_results(folder: Path) -> bool:
    starts = (Path.cwd().resolve(), Path.home().resolve())
    return (folder / ".git").exists() or any(folder == start or folder in start.parents for start in starts)
