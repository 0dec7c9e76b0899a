"""What went wrong outside of crosskd, in one line: files that cannot be read or written, and what libraries say."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable

import yaml

from crosskd.errors import TrainingFailed, UsageError, first_line, visible


def exit_code_of(name: str, work: Callable[[], None]) -> int:
    """Do some work, and say in one line on stderr what went wrong, if it is something that a user can act on.

    With the environment variable ``CROSSKD_DEBUG`` set, an error shows where it came from. Interrupts pass through.

    Args:
        name: What the line begins with.
        work: The work.

    Returns:
        0; 1 where training failed; 2 for bad input, unreadable files and what libraries say of them.
    """
    try:
        work()
    except TrainingFailed as error:
        sys.stderr.write(f"{name}: {visible(str(error))}\n")
        return 1
    except Exception as error:
        told = str(error) if isinstance(error, UsageError) else one_line(error)
        if told is None or os.environ.get("CROSSKD_DEBUG"):
            raise
        sys.stderr.write(f"{name}: error: {visible(' '.join(told.split()))}\n")
        return 2
    return 0


def one_line(error: BaseException) -> str | None:
    """What a user can do something about: a file, a folder, a disk, or content that a library cannot read.

    Args:
        error: What ended a verb.

    Returns:
        One line, or None for everything else: such errors are ours, and their traceback is worth having.
    """
    if isinstance(error, OSError):
        return _of_file(error)
    if isinstance(error, yaml.YAMLError | json.JSONDecodeError | UnicodeError | MemoryError):
        return f"{_kind(error)}: {first_line(error)}"
    if isinstance(error, pickle.UnpicklingError):  # torch reads tensors and plain values only
        return f"a pickled file holds more than numbers and is not read: {first_line(error)}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, for a GPU; by name, since torch is not imported for it
        return f"out of memory: {first_line(error)} Take smaller batches; docs/troubleshooting.md says more"
    if isinstance(error, ImportError) or "to be installed" in str(error):
        return first_line(error)
    # by name: these libraries are not imported for the sake of an error
    if type(error).__module__.split(".")[0] in ("safetensors", "pyarrow", "huggingface_hub", "datasets"):
        return f"{_kind(error)}: {first_line(error)}"
    return None


def _of_file(error: OSError) -> str:
    """The file that the error names, and what is wrong with it; libraries write a text instead."""
    if error.strerror is None:
        return first_line(error)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([" and ".join(names), error.strerror]) if names else error.strerror


def _kind(error: BaseException) -> str:
    return type(error).__name__
