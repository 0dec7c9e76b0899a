"""The `datasets` library, without the progress bars that it draws by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep `datasets` from drawing progress bars; what the user had set holds again afterwards."""
    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()
