"""Command lines in README and documentation name verbs and flags that exist."""

from __future__ import annotations

import contextlib
import io
import re
from functools import cache
from pathlib import Path

import pytest

from crosskd.cli.main import VERBS, run_verb

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@cache
def flags_of(verb: str) -> frozenset[str]:
    """Every flag that the help of a verb shows."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        run_verb(verb, ["--help"])
    return frozenset(re.findall(r"^\s+(--\w+)", shown.getvalue(), flags=re.MULTILINE))


def command_lines(page: Path) -> list[tuple[str, str]]:
    """(verb, rest) of every command line in the page's sh blocks, continued lines joined."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return re.findall(r"^(?:\$ )?crosskd ([a-z]+)(.*)$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_use_flags_that_exist(page: Path) -> None:
    for verb, rest in command_lines(page):
        assert verb in VERBS
        unknown = set(re.findall(r"(?<!\S)--\w+", rest.split(" #")[0])) - flags_of(verb)
        assert not unknown, f"crosskd {verb}{rest}"


def test_each_verb_has_a_section_with_its_flags() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL))
    assert set(VERBS) <= set(sections)
    for verb in VERBS:
        assert set(re.findall(r"`(--\w+)`", sections[verb])) <= flags_of(verb), verb
        assert f"crosskd {verb}" in sections[verb]


def test_the_readme_lists_the_verbs() -> None:
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert table == list(VERBS)
