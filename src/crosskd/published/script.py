"""Run a published script: errors of the user's making become one line and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from crosskd.cli.main import terminated_by_signal
from crosskd.errors import Terminated, TrainingFailed, UsageError


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
    try:
        with terminated_by_signal():
            run(list(sys.argv[1:] if words is None else words))
    except UsageError as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        return 2
    except TrainingFailed as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"{name}: {str(interrupt) or 'stopped'}\n")
        return 143 if isinstance(interrupt, Terminated) else 130
    return 0
