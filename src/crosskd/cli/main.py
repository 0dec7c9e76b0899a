"""``crosskd VERB ...``: find the verb, run it, and tell errors of the user's making in one line."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from crosskd.cli.failures import exit_code_of
from crosskd.cli.verbs import RESUMABLE, VERBS
from crosskd.errors import Terminated, UsageError, did_you_mean, visible


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Returns:
        The exit code: 0; 1 where training failed; 2 for bad input; 130 after Ctrl-C and 143 after SIGTERM, which says
        how to go on.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # chosen before torch and transformers are imported by a verb
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0
    if words[0] == "--version":
        from crosskd import __version__

        sys.stdout.write(f"crosskd {__version__}\n")
        return 0
    try:
        with terminated_by_signal():
            return run_verb(words[0], words[1:])
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"crosskd {words[0]}: {visible(str(interrupt)) or _how_to_go_on(words)}\n")
        return 143 if isinstance(interrupt, Terminated) else 130


def run_verb(verb: str, words: Sequence[str]) -> int:
    """Run ``verb`` with its flags; see `crosskd.cli.failures.exit_code_of` for what is returned."""

    def work() -> None:
        if verb not in VERBS:
            raise UsageError("verb", got=verb, expected="a verb of crosskd", fix=did_you_mean(verb, VERBS))
        # a verb takes seconds to import: help and most mistakes need not wait for it
        from crosskd.cli.early import check_early

        check_early(verb, words)
        importlib.import_module(f"crosskd.cli.{verb}").run(words)

    return exit_code_of(f"crosskd {verb}", work)


@contextmanager
def terminated_by_signal() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated` wherever the program is; a second SIGTERM ends it at once.

    Does nothing outside of the main thread, where Python takes no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _how_to_go_on(words: Sequence[str]) -> str:
    if words[0] not in RESUMABLE:
        return "stopped; the same command starts from the beginning"
    if "--resume" in words:
        return "stopped; the same command goes on"
    instead = " instead of --overwrite" if "--overwrite" in words else ""
    return f"stopped; the same command with --resume{instead} goes on"


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    return (
        "usage: crosskd VERB [flags]\n\n"
        "Distil a large language model into a small one that has another tokenizer.\n\n"
        f"{verbs}\n\n"
        "`crosskd VERB --help` explains the flags of a verb. Every verb takes --config FILE.yaml;\n"
        "flags on the command line win over the file, the file wins over the defaults.\n"
        "New here? `crosskd demo --help`.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
