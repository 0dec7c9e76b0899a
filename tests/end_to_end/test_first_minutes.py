"""Help and typing mistakes are answered at once: nothing large is imported for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crosskd.cli import flags
from crosskd.cli.distill import parsers as distill_parsers
from crosskd.cli.flags import FILE, file_text, known_flags
from crosskd.cli.main import VERBS, main
from crosskd.cli.parsing import FlagParser
from crosskd.cli.recipes import ACTIONS
from helpers_fresh import in_a_fresh_process

COMMANDS = [[verb] for verb in VERBS] + [["recipes", action] for action in ACTIONS]


def test_help_imports_nothing_large() -> None:
    commands = [[*words, "--help"] for words in COMMANDS] + [["distill", "--help_all"], ["--version"], []]
    for words, (code, shown, told, imported) in zip(commands, in_a_fresh_process(commands), strict=True):
        assert (code, told, imported) == (0, "", []), words
        assert "crosskd" in shown


def test_typing_mistakes_import_nothing_large(tmp_path: Path) -> None:
    config = tmp_path / "flags.yaml"
    config.write_text("learnin_rate: 1\n")
    mistakes = [[*words, "--ouput", "x"] for words in COMMANDS if words != ["recipes"]]
    mistakes += [
        ["distil", "--help"],
        ["recipes", "lst"],
        ["distill", "--learnin_rate", "1"],
        ["distill", "--config", str(config)],
        ["distill", "--config", str(tmp_path / "none.yaml")],
        ["distill", "--student", "s", "--data", "d", "--max_steps", "many"],
        ["distill", "--student", "s", "--data", "d", "--matching", "quick"],
        ["evaluate", "--model", "m", "--data", "d"],
        ["prepare", "--data", "d", "--output", "o", "--limit"],
    ]
    for words, (code, shown, told, imported) in zip(mistakes, in_a_fresh_process(mistakes), strict=True):
        assert (code, shown, imported) == (2, "", []), words
        assert told.count("\n") == 1
        assert told.startswith(f"crosskd {words[0]}: error: ")


def test_the_file_of_flags_is_that_of_the_dataclasses() -> None:
    assert FILE.read_text(encoding="utf-8") == file_text(), "python -m crosskd.cli.flags writes it"


def test_early_help_is_late_help() -> None:
    early = known_flags("distill")
    assert early is not None
    (late,) = distill_parsers()
    assert early.hidden == late.declared().hidden
    assert FlagParser(early).format_help() == FlagParser(late.declared()).format_help()


def test_flags_made_from_something_else_are_not_believed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = flags._version
    monkeypatch.setattr(flags, "_version", lambda name: "5.0.0" if name == "transformers" else version(name))
    assert known_flags("evaluate") is not None
    assert known_flags("distill") is None
    assert main(["distill", "--learnin_rate", "1"]) == 2  # by the dataclasses then
    assert "did you mean '--learning_rate'" in capsys.readouterr().err


def test_a_changed_field_shows_and_a_changed_function_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "_PACKAGE", tmp_path)
    text = "import os\n\n\nclass Flags:\n    top_k: int = 5\n\n\ndef run():\n    return 1\n"
    digests = []
    for number, version in enumerate((text, text.replace("return 1", "return 2"), text.replace("= 5", "= 6"))):
        (tmp_path / f"verb{number}.py").write_text(version)
        digests.append(flags._version(f"verb{number}.py"))
    assert digests[0] == digests[1] != digests[2]


def test_a_pipe_is_left_to_the_verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What stands in a pipe can be read only once."""
    from crosskd.cli.early import check_early

    os.mkfifo(tmp_path / "flags.yaml")
    check_early("distill", ["--config", str(tmp_path / "flags.yaml")])  # else it waits for a writer
