"""Data that mislead: passages on both sides of a hold-out, answers of several lines, cells that stand for nothing."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosskd.cli.main import main
from crosskd.data.hold_out import hold_out
from crosskd.data.oddities import LONG_CONTEXT
from crosskd.data.prepare import load_examples, prepare_examples
from crosskd.errors import UsageError
from crosskd.text.tasks import TASKS
from helpers_data import only, write_lines

QA = TASKS["qa"]


@pytest.fixture(autouse=True)
def logged(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("crosskd"), "propagate", True)
    caplog.set_level(logging.INFO, "crosskd")


def row(context, question="Q", answer="a"):
    return {"context": context, "question": question, "answer": answer}


# --- hold-out


def test_the_questions_about_a_passage_stay_on_one_side(tmp_path, caplog):
    rows = [
        row(f"Passage {passage}." if number % 2 else f" Passage\n  {passage}. ", f"Question {number}?")
        for number in range(4)
        for passage in range(40)
    ]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    first, again, other = (prepare_examples(path, QA, validation_fraction=0.25, seed=seed) for seed in (1, 1, 2))
    sides = [{" ".join(text.split()) for text in first.examples[name]["context"]} for name in ("train", "validation")]
    assert not sides[0] & sides[1]
    assert (len(sides[0]), len(sides[1])) == (30, 10)
    assert len(first.examples["validation"]) == 40
    assert first.summary["splits"]["validation"]["held_out_passages"] == 10
    assert "validation holds out 40 of 160 examples (25.0 %; asked for: 25 %): 10 of 40 passages" in caplog.text
    held = [prepared.examples["validation"]["context"] for prepared in (first, again, other)]
    assert list(held[0]) == list(held[1]) != list(held[2])


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=12),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_whole_passages_come_close_to_the_share_of_rows(sizes, fraction, seed):
    rows = [{"id": f"{p}-{n}", "context": f"C{p}"} for p, size in enumerate(sizes) for n in range(size)]
    kept, counts = {"train": list(rows)}, {"train": {"rows": len(rows), "examples": len(rows)}}
    hold_out(kept, counts, fraction, seed)
    sides = [{example["context"] for example in kept[name]} for name in ("train", "validation")]
    assert not sides[0] & sides[1]
    assert all(sides)
    assert [r for r in rows if r in kept["train"]] == kept["train"]
    assert counts["train"]["rows"] + counts["validation"]["rows"] == len(rows)
    wanted = max(1, round(len(rows) * fraction))
    if len(sides[0]) > 1:  # else the last passage is left over, whatever its size
        assert abs(len(kept["validation"]) - wanted) <= max(sizes) / 2 or len(kept["validation"]) == min(sizes)


def test_one_passage_cannot_be_on_both_sides(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [row("The same", f"Q{number}") for number in range(8)])
    with pytest.raises(UsageError, match=r"--validation_fraction: got 'one passage in all 8 training examples'"):
        prepare_examples(path, QA, validation_fraction=0.5)


def test_examples_without_a_context_are_drawn_one_by_one():
    kept = {"train": [{"id": str(number), "context": ""} for number in range(10)]}
    hold_out(kept, {"train": {"rows": 10}}, 0.3, seed=0)
    assert (len(kept["train"]), len(kept["validation"])) == (7, 3)


# --- answers of several lines, and contexts without end


def test_answers_of_several_lines_are_warned_of(tmp_path, caplog):
    rows = [row("C1"), row("C2", answer="- one\n- two"), row("C3", answer="x\r\n" + 99 * "y")]
    prepare_examples(write_lines(tmp_path / "rows.jsonl", rows), QA)
    (warning,) = (record.message for record in caplog.records if record.levelno >= logging.WARNING)
    assert warning.startswith("train: 2 of 3 examples have answers of several lines, such as '1' ('- one\\n- two')")
    assert "only the first line" in warning


def test_inspect_warns_of_them_too(student_folder, teacher_folder, tmp_path, capsys):
    path = write_lines(tmp_path / "rows.jsonl", [row("C1"), row("C2", answer="one\ntwo")])
    assert main(["prepare", "--data", str(path), "--output", str(tmp_path / "data")]) == 0
    capsys.readouterr()
    words = ["inspect", str(teacher_folder), str(student_folder), "--data", str(tmp_path / "data"), "--json"]
    assert main([*words, "--number_few_shot", "0"]) == 0
    warnings = {found["code"]: found["text"] for found in json.loads(capsys.readouterr().out)["warnings"]}
    assert warnings["answers_of_several_lines"].startswith("1 of 2 examples have answers of several lines")


def test_answers_of_one_line_are_not(tmp_path, caplog):
    prepare_examples(write_lines(tmp_path / "rows.jsonl", [row("C\n" * 9, answer=" a \n")]), QA)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_context_without_end_is_warned_of(tmp_path, caplog):
    rows = [row("C" * LONG_CONTEXT), row("D" * (LONG_CONTEXT + 1))]
    prepare_examples(write_lines(tmp_path / "rows.jsonl", rows), QA)
    assert "train: 1 of 2 contexts have more than 200,000 characters, the longest 200,001 (id '1')" in caplog.text
    caplog.clear()
    prepare_examples(tmp_path / "rows.jsonl", QA, max_characters=LONG_CONTEXT)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# --- cells of tables


@pytest.mark.parametrize("cell", ["nan", "NaN", "None", "<NA>"])
def test_cells_that_stand_for_nothing_are_missing(tmp_path, cell, caplog):
    (tmp_path / "rows.csv").write_text(f"id,title,context,question,answer\n,{cell},C1,Q,{cell}\n{cell},T,C2,Q,a\n")
    prepared = prepare_examples(tmp_path / "rows.csv", QA)
    assert [(example["context"], example["answers"]) for example in only(prepared)] == [("C2", ["a"])]
    assert only(prepared)[0]["id"] == "0"
    assert prepared.summary["splits"]["train"]["dropped"]["empty answer"] == 1
    assert f"rows.csv: cells read as missing values: 3 {cell!r}" in caplog.text


def test_words_that_only_look_so_stay(tmp_path):
    answers = ["none", "NONE", "Nan", "null", "NA", "n/a", "None of them"]
    lines = "".join(f"C{number},Q,{answer}\n" for number, answer in enumerate(answers))
    (tmp_path / "rows.csv").write_text("context,question,answer\n" + lines)
    assert [example["answers"] for example in only(prepare_examples(tmp_path / "rows.csv", QA))] == [
        [answer] for answer in answers
    ]
    written = [row("C1", answer="None"), row("C2", answer="nan")]
    examples = only(prepare_examples(write_lines(tmp_path / "rows.jsonl", written), QA))
    assert [example["answers"] for example in examples] == [["None"], ["nan"]]


# --- what helps with columns that are not found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "context;question;answer\nC;Q;a\n", r"cells seem to be separated by ';': save the file with commas"),
        ("b.csv", "context\tquestion\tanswer\nC\tQ\ta\n", r"separated by '\\t': .*or with tabs as \.tsv"),
        ("c.jsonl", '{"body": "C"}', "one named context or paragraph_text or .* or passage or text; the columns"),
        ("d.jsonl", '{"messages": []}', r"holds conversations \(column 'messages'\), which are not supported yet"),
        ("e.jsonl", '{"prompt": "p", "completion": "c"}', "--map prompt=context completion=answer"),
    ],
)
def test_columns_that_are_not_found_are_told_with_a_way_out(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        prepare_examples(tmp_path / name, QA)


def test_prompt_and_completion_become_examples(tmp_path, capsys):
    """The way that docs/data.md shows."""
    (tmp_path / "plain.yaml").write_text("system: ''\nformat: |\n  {context}\n  Answer:\n")
    path = write_lines(tmp_path / "rows.jsonl", [{"prompt": "2 + 2 =", "completion": " 4"}])
    words = ["prepare", "--data", str(path), "--task", str(tmp_path / "plain.yaml"), "--output", str(tmp_path / "out")]
    assert main([*words, "--map", "prompt=context", "completion=answer"]) == 0
    (example,) = load_examples(tmp_path / "out", "train").to_list()
    assert (example["context"], example["answers"]) == ("2 + 2 =", ["4"])
