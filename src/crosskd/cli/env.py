"""``crosskd env``: versions, machine, and what crosskd finds there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from crosskd.cli.console import output, say_json
from crosskd.cli.demo_models import find_demo_models
from crosskd.cli.parsing import VerbParser
from crosskd.errors import UsageError
from crosskd.hashes import cache_directory
from crosskd.models.precision import fast_bfloat16
from crosskd.provenance import describe_machine, package_versions


@dataclass
class EnvArguments:
    """Flags of ``crosskd env``."""

    json: bool = field(default=False, metadata={"help": "print JSON, for a bug report or a script"})


def parsers() -> list[VerbParser]:
    """What reads the command line."""
    return [VerbParser("env", "Show versions, machine, and what crosskd finds there.", [EnvArguments])]


def run(words: Sequence[str]) -> None:
    """Print what this machine is and has."""
    (arguments,) = parsers()[0].parse(words)
    facts = {**package_versions(), **describe_machine(), **_found()}
    if arguments.json:
        say_json(facts)
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value))
    output.print(table)


def _found() -> dict[str, Any]:
    try:
        models = ", ".join(path.name for path in find_demo_models())
    except UsageError:
        models = "not installed"
    return {"fast bfloat16": fast_bfloat16(), "demo models": models, "cache": str(cache_directory())}
