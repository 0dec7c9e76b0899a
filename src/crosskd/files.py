"""Files that are either whole or absent: everything is written beside its place and moved into it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

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
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
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
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: {error}", expected="one JSON object a line") from error
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number} is a {type(row).__name__}", expected="one JSON object a line")
        rows.append(row)
    return rows


class _UniqueKeys(yaml.SafeLoader):
    """YAML without tags for Python objects, in which no mapping says one thing twice."""


def _unique_mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    seen: set[str] = set()
    for key in own:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice", key.start_mark
                )
            seen.add(key.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def parse_yaml(text: str) -> Any:
    """Read YAML as plain values (``yaml.safe_load``); unlike there, a key that occurs twice is an error.

    Raises:
        yaml.YAMLError: The text is not YAML, names a Python object, or repeats a key.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)  # derived from SafeLoader
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except ValueError as error:  # a date such as 2024-99-99
        raise yaml.YAMLError(f"it holds a value that cannot be: {error}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder", expected="a file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text file in UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def check_writable(path: str | Path, what: str = "output") -> None:
    """Make sure that ``path`` could be written or created: by a file without a name in the folder that would hold it.

    Args:
        path: A file or folder, which need not exist, nor do the folders above it.
        what: What messages call it.

    Raises:
        UsageError: A file stands where a folder must be, or the place cannot be written.
    """
    try:
        place = Path(path).resolve()
        while not place.exists() and place != place.parent:
            place = place.parent
        if place.is_dir():
            with tempfile.TemporaryFile(dir=place):
                return
        if place == Path(path).resolve():
            with place.open("ab"):
                return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{what} {path} cannot be written: {reason}", fix="choose another place") from error
    raise UsageError(f"{what} {path} cannot be written: {place} is a file", fix="choose another place")


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
        UsageError: Both flags are set; ``path`` is a file or cannot be written; the folder is not empty and neither
            flag is set; or ``overwrite`` would delete the current folder, the home folder, one of their parents or a
            repository.
    """
    folder = Path(path)
    if overwrite and resume:
        raise UsageError("--overwrite and --resume", fix="give one of the two: they contradict each other")
    check_writable(folder, "output folder")
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
