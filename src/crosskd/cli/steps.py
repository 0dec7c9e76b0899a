"""Verbs that are called in order, each shown as the command line that it is."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from crosskd.cli.console import console
from crosskd.cli.main import run_verb
from crosskd.errors import UsageError


@dataclass(frozen=True)
class Step:
    """One verb of several.

    Attributes:
        title: What it does, in a phrase.
        words: The verb and its flags.
        result: Stands when the step is finished; None for one that finds out by itself.
        resumable: Whether the verb takes ``--resume``.
    """

    title: str
    words: list[str]
    result: Path | None
    resumable: bool = False


def run_step(step: Step, *, resume: bool) -> None:
    """Run a step, unless its result stands.

    Args:
        step: The step.
        resume: Whether an earlier run may have begun it: it goes on where it stopped, or is done again.

    Raises:
        UsageError: The verb failed; it has said why.
    """
    if step.result is not None and step.result.exists():
        console.print(f"done before: {step.title}", style="dim")
        return
    again = ["--resume" if step.resumable else "--overwrite"] if resume else []
    words = [*step.words, *(word for word in again if word not in step.words)]
    console.rule(Text(step.title, style="bold"), align="left")
    console.print(f"$ crosskd {shlex.join(words)}", style="cyan", soft_wrap=True)
    if code := run_verb(words[0], words[1:]):
        raise UsageError(f"step {step.title!r}", got=f"exit code {code}", fix="see the line above")
