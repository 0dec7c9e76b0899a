"""Run a published script: errors of the user's making become one line and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from crosskd.cli.failures import exit_code_of
from crosskd.cli.main import terminated_by_signal
from crosskd.errors import Terminated


def run_script(name: str, run: Callable[[Sequence[str]], None], words: Sequence[str] | None) -> int:
    """Run ``run`` with the words of the command line.

    Args:
        name: The script's, for messages.
        run: Does the work.
        words: What stands after the script's name; None takes the process's own.

    Returns:
        0; 1 where training failed; 2 for bad input; 130 after Ctrl-C, 143 after SIGTERM.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    given = list(sys.argv[1:] if words is None else words)
    try:
        with terminated_by_signal():
            return exit_code_of(name, lambda: run(given))
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"{name}: {str(interrupt) or 'stopped'}\n")
        return 143 if isinstance(interrupt, Terminated) else 130
