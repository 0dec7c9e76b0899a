"""Errors of the user's making, told in one line: what, got, expected, how to fix it; and the end by a signal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

_CONTROLS = [*range(32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _CONTROLS if chr(code) not in "\n\t"}


class UsageError(ValueError):
    """Bad input: the command line prints it as one line and exits with code 2.

    Args:
        what: The thing that is wrong, by the name the user gave it (``--data``, ``top_k``).
        got: What was found.
        expected: What would have been right.
        fix: How to fix it, as an imperative.

    Example:
        >>> str(UsageError("--top_k", got=0, expected="an integer of at least 1"))
        '--top_k: got 0; expected an integer of at least 1'
    """

    def __init__(self, what: str, *, got: object = None, expected: str | None = None, fix: str | None = None) -> None:
        parts = []
        if got is not None:
            parts.append(f"got {got!r}" if isinstance(got, str) else f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if fix is not None:
            parts.append(fix)
        message = f"{what}: " + "; ".join(parts) if parts else what
        super().__init__(" ".join(message.split()))


class TrainingFailed(RuntimeError):
    """Training cannot go on, and not by bad input: the command line prints it as one line and exits with code 1."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived (a preempted job, `kill`): handled as Ctrl-C is, but the exit code is 143.

    Whoever has something to save catches ``KeyboardInterrupt``, saves, and raises again. The command line prints the
    text of the exception if it has one, else how the verb goes on.
    """


def visible(text: str) -> str:
    """``text`` with its control characters escaped (``\\x1b``), except line breaks and tabs.

    A terminal obeys them: text of a model or a data file could rewrite, hide or reorder what stands there. The marks
    that reverse the direction of writing are among them, as ``\\u202e``.
    """
    return text.translate(_ESCAPES)


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip()


def list_differences(made: Mapping[str, object], wanted: Mapping[str, object], names: Iterable[str]) -> str:
    """What each field is there and here, for messages that refuse what was made from something else.

    Example:
        >>> list_differences({"seed": 7}, {"seed": 8}, ["seed"])
        'seed: there 7, here 8'
    """
    return "; ".join(f"{name}: there {_short(made.get(name))}, here {_short(wanted.get(name))}" for name in names)


def _short(value: object) -> str:
    """A value as text; of a hash its beginning."""
    text = str(value)
    return f"{text[:12]}…" if len(text) > 40 and " " not in text and "/" not in text else text


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Suggest the nearest of ``choices`` to a mistyped ``name``, or list them when none is near."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else "choose from " + ", ".join(known)
