"""Columns: those of well-known data sets are found, a mapping goes before them, and cells become text."""

from __future__ import annotations

import pytest

from crosskd.data.prepare import prepare_examples
from crosskd.text.tasks import TASKS
from helpers_data import ROWS, only, write_lines

QA = TASKS["qa"]
QED = {
    "example_id": -35,
    "title_text": "Super Bowl",
    "question_text": "who played",
    "paragraph_text": "`` Coldplay '' and Beyonce",
    "original_nq_answers": [
        [{"start": 0, "end": 14, "string": "`` Coldplay ''"}, {"start": 19, "end": 26, "string": "Beyonce"}],
        [{"start": 3, "end": 11, "string": "Coldplay"}],
    ],
    "annotation": {"explanation_type": "none"},
}
QED_TEXTS = ("-35", "Super Bowl", "`` Coldplay '' and Beyonce", "who played")
FLAT = [{"start": 3, "end": 11, "string": "Coldplay"}, {"start": 19, "end": 26, "string": "Beyonce"}]
SQUAD = {
    "id": "s",
    "title": "T",
    "context": "C",
    "question": "Q",
    "answers": {"text": ["a", "b", "a"], "answer_start": [0]},
}
FAIRY = {"story_name": "T", "content": "C", "question": "Q", "answer": "a", "answer_2": ""}
PUBMED = {
    "pubid": 9,
    "question": "Q",
    "context": {"contexts": ["C1.", "C2."], "labels": ["A"]},
    "long_answer": "a",
}
DIALOGUE = {"fname": "d", "dialogue": "C", "summary1": "a", "summary2": "b", "summary3": "c", "topic": "t"}


@pytest.mark.parametrize(
    ("row", "task", "expected"),
    [
        (QED, "qa", (*QED_TEXTS, ["`` Coldplay '', Beyonce", "Coldplay"])),
        ({**QED, "question": "who played", "original_nq_answers": FLAT}, "qa", (*QED_TEXTS, ["Coldplay", "Beyonce"])),
        ({**QED, "original_nq_answers": {"start": [3, 19], "string": ["Coldplay", "Beyonce"]}}, "qa",
         (*QED_TEXTS, ["Coldplay", "Beyonce"])),
        (SQUAD, "qa", ("s", "T", "C", "Q", ["a", "b"])),
        (FAIRY, "qa_generative", ("0", "T", "C", "Q", ["a"])),
        ({**FAIRY, "answer_2": "b"}, "qa_generative", ("0", "T", "C", "Q", ["a", "b"])),
        ({**FAIRY, "answers": ["a", "c"]}, "qa_generative", ("0", "T", "C", "Q", ["a", "c"])),
        ({"story_name": "T", "story_section": "C", "question": "Q", "answer1": "a", "answer2": "b"}, "qa_generative",
         ("0", "T", "C", "Q", ["a", "b"])),
        (DIALOGUE, "summary_dialogue", ("d", "", "C", "", ["a", "b", "c"])),
        ({"fname": "d", "dialogue": "C", "summary": "a", "topic": "t"}, "summary_dialogue", ("d", "", "C", "", ["a"])),
        ({"id": 3, "article": "C", "highlights": "a"}, "summary", ("3", "", "C", "", ["a"])),
        (PUBMED, "qa_medical", ("9", "", "C1. C2.", "Q", ["a"])),
        ({"QUESTION": "Q", "CONTEXTS": ["C1.", "C2."], "LONG_ANSWER": "a"}, "qa_medical",
         ("0", "", "C1. C2.", "Q", ["a"])),
    ],
)  # fmt: skip
def test_columns_of_known_data_sets_are_found(tmp_path, row, task, expected):
    prepared = prepare_examples(write_lines(tmp_path / "rows.jsonl", [row]), TASKS[task])
    assert [tuple(example.values()) for example in only(prepared)] == [expected]


def test_further_references_may_be_missing_in_the_first_row(tmp_path):
    rows = [{"dialogue": "C1", "summary": "a"}, {"dialogue": "C2", "summary": "b", "summary2": "c"}]
    prepared = prepare_examples(write_lines(tmp_path / "rows.jsonl", rows), TASKS["summary_dialogue"])
    assert [example["answers"] for example in only(prepared)] == [["a"], ["b", "c"]]
    assert prepared.summary["splits"]["train"]["columns"]["answers"] == ["summary", "summary2"]


def test_mapping_goes_before_names_that_are_known(tmp_path):
    row = {"text": "no", "body": "C", "ask": "Q", "gold": "a", "second": "b", "answer_2": "no", "key": "k"}
    path = write_lines(tmp_path / "rows.jsonl", [row])
    mapping = {"body": "context", "ask": "question", "gold": "answer", "second": "answers", "key": "id"}
    (example,) = only(prepare_examples(path, QA, mapping=mapping))
    assert tuple(example.values()) == ("k", "", "C", "Q", ["a", "b"])


def test_a_mapped_column_no_longer_counts_under_its_own_name(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"context": "T", "text": "C", "question": "Q", "answer": "a"}])
    (example,) = only(prepare_examples(path, QA, mapping={"context": "title"}))
    assert (example["title"], example["context"]) == ("T", "C")


def test_teacher_answers_stay(tmp_path):
    rows = [{**ROWS[0], "teacher_answer": "in Rome"}, ROWS[1]]
    examples = only(prepare_examples(write_lines(tmp_path / "rows.jsonl", rows), QA))
    assert [example["teacher_answer"] for example in examples] == ["in Rome", ""]


def test_csv_answers_may_be_a_json_list(tmp_path):
    (tmp_path / "rows.csv").write_text('context,question,answers\nC,Q,"[""a"", ""b""]"\nD,Q,[1] see\n')
    assert [e["answers"] for e in only(prepare_examples(tmp_path / "rows.csv", QA))] == [["a", "b"], ["[1] see"]]
