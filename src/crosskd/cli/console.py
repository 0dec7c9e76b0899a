"""What the verbs show: messages, progress with remaining time, quiet libraries.

Names of files and models and the texts of data and answers are shown as they are: rich's markup (``[bold]``) and emoji
codes (``:smile:``) are off, and control characters, which could rewrite what a terminal shows, become visible.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from crosskd.errors import visible


class PlainConsole(Console):
    """A console that shows every text as it is, control characters in a visible form."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As `rich.console.Console.render`; what rich itself tells the terminal (colours, cursor) passes."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


console = PlainConsole(stderr=True)
output = PlainConsole()


def say(text: str) -> None:
    """Print a line to standard output; a long one is not broken, so that paths can be copied."""
    output.print(Text(text), soft_wrap=True)


def say_json(value: Any) -> None:
    """Print JSON for a script, in ASCII."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def start_logging(*libraries: Literal["datasets", "transformers"]) -> None:
    """Show crosskd's own log on the terminal, warnings of the libraries, and none of their chatter.

    Args:
        libraries: Those that the verb uses; they are imported.
    """
    handler = RichHandler(console=console, show_path=False, show_time=False, markup=False)
    root = logging.getLogger("crosskd")
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False
    if "datasets" in libraries:
        from datasets.utils import logging as datasets_logging

        datasets_logging.disable_progress_bar()
    if "transformers" in libraries:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_warning()
        # its bars for loading weights last a blink; ours and the trainer's say what is worth waiting for
        transformers_logging.disable_progress_bar()
        # that padding, which is masked, got the tokenizer's id
        logging.getLogger("transformers.trainer_utils").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("The tokenizer has new PAD/BOS/EOS tokens")


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` examples with elapsed and remaining time; yields what advances it."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(description, total=total)
        yield lambda count: bars.advance(task, count)
