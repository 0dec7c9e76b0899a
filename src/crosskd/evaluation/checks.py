"""What every metric asks of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

from crosskd.errors import UsageError


def check_references(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Make sure that each prediction has a list of at least one reference.

    Raises:
        UsageError: The lengths differ, nothing was given, or an example has no reference.
    """
    if len(predictions) != len(references):
        raise UsageError(f"{len(predictions)} predictions for {len(references)} lists of references")
    if not predictions:
        raise UsageError("there are no predictions to score")
    for index, several in enumerate(references):
        # A bare string would silently be taken as a list of one-letter references.
        if isinstance(several, str):
            raise UsageError(f"references[{index}] is one string", expected="a list of strings")
        if not several:
            raise UsageError(f"references[{index}] is empty", expected="at least one reference")


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one number."""
    return sum(values) / len(values)
