"""What the verbs show: messages, progress with remaining time, quiet libraries."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)
output = Console()


def start_logging() -> None:
    """Show crosskd's own log on the terminal, warnings of the libraries, and none of their chatter."""
    handler = RichHandler(console=console, show_path=False, show_time=False, markup=False)
    root = logging.getLogger("crosskd")
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False
    # hugging face's bars for loading weights last a blink; ours and the trainer's say what is worth waiting for
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from datasets.utils import logging as datasets_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_warning()
    datasets_logging.disable_progress_bar()


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` examples with elapsed and remaining time; yields what advances it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(description, total=total)
        yield lambda count: bars.advance(task, count)
