"""Names and texts reach the terminal as they are: no markup, no emoji codes, no control characters."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from rich.table import Table

from crosskd.cli import console
from crosskd.cli.console import PlainConsole, progress, say, say_json
from crosskd.cli.main import main
from crosskd.cli.steps import Step, run_step
from crosskd.errors import visible
from helpers_models import examples

NAME = "[/v1] [v1] [bold]x[/bold] :smile: 'é"
CLEAR = "\x1b[2J\x1b]0;title\x07 \x9b1m \u202ereversed"


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    return tmp_path / NAME


def test_every_verb_shows_names_as_they_are(
    odd: Path, student_folder: Path, teacher_folder: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A verb that fails on a name would fail after hours of work: each writes its results into an odd folder."""
    raw = data_folder.parent / "raw"
    teacher, shots = ["--teacher", str(teacher_folder)], ["--number_few_shot", "0"]
    base = ["--model", str(student_folder), "--data", str(odd / "data"), "--max_new_tokens", "4"]
    commands = [
        ["prepare", "--data", str(raw), "--output", str(odd / "data")],
        ["inspect", str(teacher_folder), str(student_folder), "--data", str(odd / "data"), *shots],
        ["answer", *teacher, "--data", str(odd / "data"), "--output", str(odd / "a"), "--max_new_tokens", "4", *shots],
        ["cache", *teacher, "--data", str(odd / "data"), "--output", str(odd / "cache"), *shots],
        ["distill", "--student", str(student_folder), "--data", str(odd / "data"), "--method", "sft",
         "--output_dir", str(odd / "run"), "--max_steps", "1", "--report_to", "none"],
        ["recipes", "copy", "table1/opt-350m/qed/sft", "--output", str(odd / "recipe.yaml")],
    ]  # fmt: skip
    for words in commands:
        assert main(words) == 0, words
        assert str(odd) in capsys.readouterr().out, words
    for name in (NAME, f"{NAME} 2"):
        assert main(["evaluate", *base, "--output", str(odd / name), "--name", name]) == 0
        shown = capsys.readouterr()
        assert NAME.split()[0] in shown.out
        assert ":smile:" in shown.err  # the bar
    assert main(["compare", str(odd / NAME), str(odd / f"{NAME} 2"), "--metrics", "f1", "--examples", "1"]) == 0
    assert "[bold]x[/bold]" in capsys.readouterr().out
    assert main(["report", str(odd), "--output", str(odd / "page.html")]) == 0
    assert str(odd / "page.html") in capsys.readouterr().out
    assert main(["evaluate", *base, "--output", str(odd / NAME)]) == 2
    assert str(odd) in capsys.readouterr().err


def test_steps_show_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_step(Step(NAME, ["cache"], tmp_path), resume=True)
    assert f"done before: {NAME}" in capsys.readouterr().err


def test_texts_of_data_and_models_cannot_steer_a_terminal(
    student_folder: Path, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "question": f"{CLEAR} {row['question']}"} for row in examples(8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["prepare", "--data", str(tmp_path / "train.jsonl"), "--output", str(tmp_path / "data")]) == 0
    models = [str(teacher_folder), str(student_folder)]
    assert main(["inspect", *models, "--data", str(tmp_path / "data"), "--number_few_shot", "0"]) == 0
    inspected = capsys.readouterr().out
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        row = {"id": f"a{CLEAR}", "question": CLEAR, "answers": ["x"], "prediction": f"{CLEAR} {run}"}
        (tmp_path / run / "predictions.jsonl").write_text(json.dumps(row) + "\n")
    runs = [str(tmp_path / run / "predictions.jsonl") for run in ("one", "two")]
    assert main(["compare", *runs, "--metrics", "f1", "--examples", "1"]) == 0
    compared = capsys.readouterr().out
    assert main(["compare", *runs, "--metrics", "f1", "--examples", "1", "--json"]) == 0
    as_json = capsys.readouterr().out
    for shown in (inspected, compared, as_json):
        assert not set(shown) & (set(CLEAR) - set(" ;0123456789[]BJablmtiedrsv"))
    assert r"\x1b[2J" in inspected
    assert r"\x1b[2J" in compared
    record = json.loads(as_json)["most_different"]["examples"][0]
    assert record["answers"][1]["prediction"] == f"{CLEAR} two"


def test_errors_and_logs_cannot_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / f"none{CLEAR}")]) == 2
    console.start_logging("datasets", "transformers")
    logging.getLogger("crosskd.test").warning("%s of %s", NAME, CLEAR)
    told = capsys.readouterr().err
    assert told.count("\\x1b[2J") == 2
    assert "[/v1] [v1] [bold]x[/bold] :smile:" in " ".join(told.split())
    assert not set("\x1b\x07\x9b\u202e") & set(told)


def test_what_rich_tells_the_terminal_passes() -> None:
    """Colours and cursor movements are rich's own; only the texts in between are escaped."""
    shown = PlainConsole()
    shown.file, shown._force_terminal, shown._color_system = io.StringIO(), True, 1  # pyright: ignore
    table = Table(NAME)
    table.add_row("red \x1b[31m", style="bold")
    shown.print(table)
    written = shown.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "\x1b[1m" in written
    assert "\x1b[31m" not in written
    assert r"\x1b[31m" in written


def test_say_breaks_no_line_and_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    say("x" * 300)
    say_json({"name": "é\x9b"})
    assert capsys.readouterr().out == "x" * 300 + '\n{\n  "name": "\\u00e9\\u009b"\n}\n'
    with progress(NAME, 2) as advance:
        advance(2)
    assert "[/v1]" in capsys.readouterr().err


def test_visible_escapes_controls_alone() -> None:
    assert visible("a\tb\nc é 漢 👩‍👧") == "a\tb\nc é 漢 👩‍👧"
    assert visible(CLEAR) == r"\x1b[2J\x1b]0;title\x07 \x9b1m \u202ereversed"
    assert visible(visible(CLEAR)) == visible(CLEAR)
