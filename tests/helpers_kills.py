"""Command lines in processes of their own that are killed: by the clock, or right before the n-th change on disk.

Children are forked from a server that has imported everything and run nothing, so that a start takes a moment instead
of the 10 seconds that importing torch and transformers costs, and 20 kills of one verb are affordable.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# what the verbs import, some of it only when a model is loaded
_PRELOADED = [
    *(f"crosskd.cli.{verb}" for verb in ("main", "prepare", "cache", "answer", "distill", "evaluate", "recipes")),
    *(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "gemma3", "gpt_neox", "opt", "bloom", "t5")),
    "transformers.trainer",
    "helpers_kills",
]
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_LIMIT = 300.0  # seconds after which a child counts as hanging

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOADED)


@dataclass(frozen=True)
class KilledRun:
    """How a command line ended.

    Attributes:
        status: Its exit code, or minus the signal that ended it (-9: killed).
        events: Changes on disk under the watched folder that it made or was about to make.
        seconds: From its start (imports done) to its end.
        output: What it wrote to stdout and stderr.
    """

    status: int
    events: int
    seconds: float
    output: str

    @property
    def killed(self) -> bool:
        """Whether SIGKILL hit it before it was finished."""
        return self.status == -signal.SIGKILL


def run_and_kill(
    words: Sequence[str],
    *,
    after_seconds: float | None = None,
    at_event: int | None = None,
    fail: int | None = None,
    watched: Path | None = None,
    send: signal.Signals = signal.SIGKILL,
    environment: Mapping[str, str] | None = None,
) -> KilledRun:
    """Run ``crosskd WORDS`` in a process of its own, and kill it if it lives that long.

    Args:
        words: The command line, the verb first.
        after_seconds: Send the signal so long after the start.
        at_event: Send it right before the n-th change on disk under ``watched``, counted from 1: a file opened for
            writing by Python, a rename, a removal, a new or removed folder. A file is thus found empty, half written
            (its buffer is lost) or whole and not yet moved into place. What C++ and Rust write is not counted: the
            clock finds that.
        fail: With ``at_event``: no signal, but an OSError of this number from that change on, whatever is changed, as
            on a disk that is full or in a folder that became unwritable.
        watched: The folder whose changes count, or a folder above it.
        send: The signal; SIGKILL leaves the process no chance to tidy up.
        environment: Variables to set beside those of this process.

    Returns:
        How it ended. Without ``after_seconds`` and ``at_event`` that is an undisturbed run, whose ``seconds`` and
        ``events`` say between which numbers a moment can be drawn.
    """
    events = _context.Value("q", 0, lock=False)
    ready, started_end = _context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile(prefix="crosskd-killed-", suffix=".log") as log:
        settings = {
            "environment": {**os.environ, **(environment or {})},
            "log": log.name,
            "watched": None if watched is None else str(watched.resolve()),
            "at_event": at_event,
            "send": int(send),
            "fail": fail,
        }
        process = _context.Process(target=_child, args=(list(words), settings, events, started_end))
        process.start()
        started_end.close()
        assert ready.poll(_LIMIT), "the child did not start"
        ready.close()
        started = time.monotonic()
        process.join(_LIMIT if after_seconds is None else after_seconds)
        if after_seconds is not None and process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, send)
            process.join(_LIMIT)
        hangs = process.is_alive()
        process.kill()
        process.join()
        output = Path(log.name).read_text(encoding="utf-8", errors="replace")
        assert not hangs, f"still running after {_LIMIT:.0f} s: {output[-2000:]}"
        assert process.exitcode is not None
        return KilledRun(process.exitcode, int(events.value), time.monotonic() - started, output)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _child(words: list[str], settings: Mapping[str, Any], events: Any, ready: Any) -> None:
    os.environ.clear()
    os.environ.update(settings["environment"])
    log = os.open(settings["log"], os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    warnings.simplefilter("ignore")
    from tqdm import tqdm

    from crosskd.cli.main import main

    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process would leave behind

    if settings["watched"] is not None:
        _watch(settings, events)
    ready.send(None)
    status = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(status)


def _watch(settings: Mapping[str, Any], events: Any) -> None:
    """Count changes under the watched folder, and send the signal to ourselves before the one that was asked for."""
    folder, at_event = settings["watched"], settings["at_event"]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & _WRITING:
                return
        elif event not in _CHANGES:
            return
        if not _path_of(event, arguments).startswith(folder):
            return
        events.value += 1
        if settings["fail"] is not None and events.value >= at_event:
            raise OSError(settings["fail"], os.strerror(settings["fail"]), arguments[0])
        if events.value == at_event:
            os.kill(os.getpid(), settings["send"])

    sys.addaudithook(hook)


def _path_of(event: str, arguments: tuple[Any, ...]) -> str:
    """The absolute path that a change is about; ``rmtree`` names its files relative to an open folder."""
    path = arguments[0]
    if not isinstance(path, str | bytes | os.PathLike):
        return ""
    name = os.fsdecode(path)
    if Path(name).is_absolute():
        return name
    at = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
    start = str(Path(f"/proc/self/fd/{at}").readlink()) if isinstance(at, int) and at >= 0 else str(Path.cwd())
    return str(Path(start) / name)
