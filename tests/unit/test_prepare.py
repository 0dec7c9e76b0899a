"""Preparation: what is kept, dropped, held out, written and loaded."""

from __future__ import annotations

import json
import logging
import math

import datasets
import pytest

from crosskd.data.prepare import load_examples, prepare_examples, save_prepared
from crosskd.errors import UsageError
from crosskd.text.tasks import TASKS, load_task
from helpers_data import EXAMPLES, ROWS, only, write_lines

QA = TASKS["qa"]


def test_what_is_dropped_is_counted_by_reason(tmp_path):
    rows = [
        {"context": " C1 \n", "question": "Q", "answer": " a ", "id": "x"},
        {"context": "C2", "question": "Q", "answer": " ", "id": "x"},
        {"context": "C3", "question": "Q", "answer": None, "id": "x"},
        {"context": "C4", "question": "Q", "answer": math.nan, "id": "x"},
        {"context": "", "question": "Q", "answer": "a", "id": "x"},
        {"context": "C5", "question": "", "answer": "a", "id": "x"},
        {"context": "C1", "question": "Q", "answer": "b", "id": "x"},
        {"context": "C" * 100, "question": "Q", "answer": "b", "id": "x"},
        {"context": "C1", "question": "Q2", "answer": 7, "id": "x"},
    ]
    prepared = prepare_examples(write_lines(tmp_path / "rows.jsonl", rows), QA, max_characters=99)
    assert [tuple(example.values()) for example in only(prepared)] == [
        ("x", "", "C1", "Q", ["a", "b"]),
        ("x#2", "", "C1", "Q2", ["7"]),
    ]
    counts = prepared.summary["splits"]["train"]
    assert (counts["rows"], counts["examples"]) == (9, 2)
    assert counts["dropped"] == {
        "empty answer": 3, "empty context": 1, "empty question": 1, "too long": 1, "duplicate": 1, "over limit": 0,
    }  # fmt: skip


def test_tasks_without_a_question_do_not_ask_for_one(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("system: ''\nformat: '{context} Colour:'")
    path = write_lines(tmp_path / "rows.jsonl", [{"text": "The sky", "answer": "blue"}])
    assert only(prepare_examples(path, load_task(own)))[0]["answers"] == ["blue"]


def test_a_split_without_labels_is_left_out_but_not_all_may_be(tmp_path):
    write_lines(tmp_path / "train.jsonl", ROWS)
    unlabelled = [{**row, "answer": ""} for row in ROWS]
    write_lines(tmp_path / "test.jsonl", unlabelled)
    prepared = prepare_examples(tmp_path, QA)
    assert only(prepared) == EXAMPLES
    assert prepared.summary["splits"]["test"]["dropped"]["empty answer"] == 10
    with pytest.raises(UsageError, match=r"no example is left of 10 rows: .*10 empty answer"):
        prepare_examples(tmp_path, QA, split="test")


def test_a_test_split_may_lack_the_column_of_answers(tmp_path):
    write_lines(tmp_path / "train.jsonl", ROWS)
    write_lines(tmp_path / "test.jsonl", [{"context": "C", "question": "Q"}])
    prepared = prepare_examples(tmp_path, QA)
    assert only(prepared) == EXAMPLES
    assert prepared.summary["splits"]["test"]["dropped"]["empty answer"] == 1
    with pytest.raises(UsageError, match=r"\(test\) has no column for 'answers'"):
        prepare_examples(tmp_path, QA, split="test")


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 50])
@pytest.mark.parametrize("fraction", [None, 0.3])
def test_every_row_read_is_an_example_or_dropped(tmp_path, limit, fraction):
    rows = [*ROWS[:3], {**ROWS[0], "answer": "b"}, {**ROWS[3], "answer": ""}, {**ROWS[4], "context": ""}, *ROWS]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    prepared = prepare_examples(path, QA, limit=limit, validation_fraction=fraction)
    for name, counts in prepared.summary["splits"].items():
        assert counts["examples"] == len(prepared.examples[name]) <= (limit or 10)
        assert counts["rows"] == counts["examples"] + sum(counts["dropped"].values())
    if fraction or limit is None or limit > 10:
        assert sum(counts["rows"] for counts in prepared.summary["splits"].values()) == len(rows)


def test_ids_differ_also_where_the_data_repeat_them_with_a_number(tmp_path):
    rows = [{**row, "id": name} for row, name in zip(ROWS, ["x", "x#2", "x", "x"], strict=False)]
    examples = only(prepare_examples(write_lines(tmp_path / "rows.jsonl", rows), QA))
    assert [row["id"] for row in examples] == ["x", "x#2", "x#3", "x#4"]


def test_limit_keeps_the_first_examples_and_stops_reading(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{**ROWS[0], "answer": ""}, *ROWS])
    path.write_text(path.read_text(encoding="utf-8") + "no JSON", encoding="utf-8")
    prepared = prepare_examples(path, QA, limit=4)
    assert only(prepared) == EXAMPLES[:4]
    assert prepared.summary["splits"]["train"]["rows"] == 5


def test_hold_out_is_a_seeded_share_of_the_training_split(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", ROWS)
    first, again, other = (
        prepare_examples(path, QA, validation_fraction=0.3, seed=seed).examples for seed in (1, 1, 2)
    )
    assert (len(first["train"]), len(first["validation"])) == (7, 3)
    assert sorted([*first["train"]["id"], *first["validation"]["id"]]) == [row["id"] for row in ROWS]
    assert first["validation"]["id"] == again["validation"]["id"] != other["validation"]["id"]
    limited = prepare_examples(path, QA, validation_fraction=0.3, seed=1, limit=2)
    assert {name: list(rows["id"]) for name, rows in limited.examples.items()} == {
        "train": list(first["train"]["id"])[:2], "validation": list(first["validation"]["id"])[:2]
    }  # fmt: skip
    assert limited.summary["splits"]["validation"]["examples"] == 2


def test_hold_out_leaves_a_validation_split_alone_and_says_so(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("crosskd"), "propagate", True)
    write_lines(tmp_path / "train.jsonl", ROWS)
    write_lines(tmp_path / "validation.jsonl", ROWS[:1])
    examples = prepare_examples(tmp_path, QA, validation_fraction=0.5).examples
    assert (len(examples["train"]), len(examples["validation"])) == (10, 1)
    assert "--validation_fraction is ignored" in caplog.text


def test_there_is_nothing_to_hold_out_of_a_test_split_or_one_example(tmp_path):
    with pytest.raises(UsageError, match=r"--validation_fraction: got 'no training split in .*only test'"):
        prepare_examples(write_lines(tmp_path / "test.jsonl", ROWS), QA, validation_fraction=0.5)
    with pytest.raises(UsageError, match="--validation_fraction: got '1 training examples'; expected at least 2"):
        prepare_examples(write_lines(tmp_path / "rows.jsonl", ROWS[:1]), QA, validation_fraction=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "--limit: got 0"),
        ({"max_characters": 0}, "--max_characters: got 0"),
        ({"validation_fraction": 1.0}, "--validation_fraction: got 1.0"),
        ({"mapping": {"contxt": "context"}}, "has no column 'contxt': expected one of id, title, context"),
        ({"mapping": {"context": "contxt"}}, r"no field 'contxt': did you mean 'context'\?"),
        ({"mapping": {"title": "context", "id": "context"}}, "'title' is mapped to 'context' already"),
        ({"mapping": {"context": "title"}}, "no column for 'context': .*columns there are: id, title, context"),
        ({"mapping": {"answer": "title"}}, "no column for 'answers'"),
    ],
)
def test_options_that_cannot_be_are_named(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        prepare_examples(write_lines(tmp_path / "rows.jsonl", ROWS), QA, **options)


def test_half_a_character_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**ROWS[0], "answer": "\ud83d"}))
    with pytest.raises(UsageError, match=r"rows\.jsonl \(train\), id 'q0': got .*half of a character"):
        prepare_examples(path, QA)


def test_data_are_told_apart_by_their_content(tmp_path):
    """`datasets` caches what it computes from saved data under their fingerprint."""
    path = write_lines(tmp_path / "rows.jsonl", ROWS)
    first, again = (prepare_examples(path, QA).examples["train"] for _ in range(2))
    other = prepare_examples(path, QA, limit=9).examples["train"]
    assert first._fingerprint == again._fingerprint != other._fingerprint


def test_saved_examples_load_with_plain_datasets_and_nothing_else_is_written(tmp_path, capfd):
    datasets.enable_progress_bars()
    path = write_lines(tmp_path / "rows.jsonl", ROWS)
    prepared = prepare_examples(path, QA, validation_fraction=0.2)
    folder = save_prepared(prepared, tmp_path / "deep" / "examples")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["deep", "rows.jsonl"]
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["examples"]
    assert json.loads((folder / "prepare_summary.json").read_text()) == prepared.summary
    assert load_examples(folder, "train").to_list() == prepared.examples["train"].to_list()
    assert capfd.readouterr() == ("", "")
    assert datasets.load_from_disk(str(folder))["validation"].to_list() == prepared.examples["validation"].to_list()
    assert prepare_examples(folder, QA).examples["train"].to_list() == prepared.examples["train"].to_list()


def test_an_empty_folder_is_filled_and_another_is_not(tmp_path, monkeypatch):
    prepared = prepare_examples(write_lines(tmp_path / "rows.jsonl", ROWS), QA)
    (tmp_path / "empty").mkdir()
    save_prepared(prepared, tmp_path / "empty")
    for taken in (tmp_path / "empty", tmp_path / "rows.jsonl"):
        with pytest.raises(UsageError, match=r"is not empty|is a file"):
            save_prepared(prepared, taken)
    monkeypatch.setattr("crosskd.data.storage.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_prepared(prepared, tmp_path / "broken")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "rows.jsonl"]


def test_what_is_overwritten_stays_until_the_new_is_whole(tmp_path, monkeypatch):
    rows = [write_lines(tmp_path / f"rows{size}.jsonl", ROWS[:size]) for size in (3, 2)]
    old, new = (prepare_examples(path, QA) for path in rows)
    folder = save_prepared(old, tmp_path / "examples")
    (tmp_path / "link").symlink_to(folder)
    names = sorted(tmp_path.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    def full_for_folders(path, target):
        return full() if path.is_dir() else path.rename(target)

    for place, broken in (("crosskd.data.storage.write_json", full), ("pathlib.Path.replace", full_for_folders)):
        with monkeypatch.context() as patch:
            patch.setattr(place, broken)
            with pytest.raises(OSError, match="No space left"):
                save_prepared(new, folder, overwrite=True)
        assert len(load_examples(folder, "train")) == 3
        assert sorted(tmp_path.iterdir()) == names
    save_prepared(new, tmp_path / "link", overwrite=True)
    assert len(load_examples(folder, "train")) == 2
    assert sorted(tmp_path.iterdir()) == names
    assert (tmp_path / "link").is_symlink()


def test_load_examples_names_what_is_missing(tmp_path):
    with pytest.raises(UsageError, match="there is no folder"):
        load_examples(tmp_path / "none", "train")
    with pytest.raises(UsageError, match=r"does not hold prepared examples.*crosskd prepare"):
        load_examples(tmp_path, "train")
    raw = datasets.DatasetDict(train=datasets.Dataset.from_list([{"dialogue": "C"}]))
    raw.save_to_disk(str(tmp_path / "raw"))
    with pytest.raises(UsageError, match=r"has no column 'id'.*there are: dialogue"):
        load_examples(tmp_path / "raw", "train")
    with pytest.raises(UsageError, match=r"has no split 'trian': did you mean 'train'\?"):
        load_examples("sample:qed", "trian")


@pytest.mark.parametrize(
    ("name", "task", "sizes"), [("qed", "qa", (240, 60)), ("fairytaleqa", "qa_generative", (40, 20))]
)
def test_samples_are_whole_short_and_apart_from_the_shots(name, task, sizes):
    train, validation = (load_examples(f"sample:{name}", split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == sizes
    everything = [*train, *validation]
    assert len({(row["context"], row["question"]) for row in everything}) == sum(sizes)
    assert all(100 <= len(row["context"]) <= 450 and row["title"] and row["answers"][0] for row in everything)
    assert not {shot.question for shot in TASKS[task].shots} & {row["question"] for row in everything}
