"""Command lines in a fresh process, to see what they import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from crosskd.cli import flags

SOURCES = Path(flags.__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "numpy", "rich")
# Prints for each command line its exit code, what it wrote, and what was imported until then.
_RUNNER = """
import contextlib, io, json, os, sys
from crosskd.cli.main import main
found = []
for folder, words in json.load(sys.stdin):
    os.chdir(folder)
    shown, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(told):
        try:
            code = main(words)
        except SystemExit as stopped:
            code = stopped.code
    found.append([code, shown.getvalue(), told.getvalue(), [name for name in HEAVY if name in sys.modules]])
print(json.dumps(found))
"""


def in_a_fresh_process(
    commands: Sequence[Sequence[str]], folders: Sequence[Path] | None = None
) -> list[tuple[int, str, str, list[str]]]:
    """Run command lines one after the other, each in its folder.

    Returns:
        For each its exit code, what it wrote to both streams, and which of `HEAVY` are imported after it.
    """
    places = [str(folder) for folder in folders or [Path.cwd()] * len(commands)]
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER.replace("HEAVY", repr(HEAVY))],
        input=json.dumps(list(zip(places, commands, strict=True))), capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )  # fmt: skip
    return [tuple(each) for each in json.loads(done.stdout)]
