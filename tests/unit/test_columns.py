"""Columns: those of well-known data sets are found, a mapping goes before them, and cells become text."""

from __future__ import annotations

import pytest

from crosskd.data.prepare import prepare_examples
from crosskd.evaluation.metrics import exact_match, f1, rouge
from crosskd.text.tasks import TASKS, load_task
from helpers_data import ROWS, only, write_lines
from helpers_formats import write_table

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
        ({"story_name": "T", "content": "C", "answer": "a", "question": "Q", "gem_id": "g", "target": "Q",
          "references": ["Q"]}, "qa_generative", ("g", "T", "C", "Q", ["a"])),
        ({**FAIRY, "answer": None, "answer_2": ["b", None]}, "qa_generative", ("0", "T", "C", "Q", ["b"])),
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


def test_rows_that_repeat_a_text_give_one_example_with_all_references(tmp_path):
    """The hub's test split of DialogSum has a row for each of the three summaries."""
    rows = [
        {"id": f"test_{text}_{number}", "dialogue": f"C{text}", "summary": f"s{text}{number}", "topic": "t"}
        for text in range(2)
        for number in (1, 2, 3)
    ]
    rows[4]["summary"] = "s11"
    path = write_lines(tmp_path / "test.jsonl", rows)
    prepared = prepare_examples(path, load_task("dialogsum"))
    assert [(row["id"], row["answers"]) for row in only(prepared, "test")] == [
        ("test_0_1", ["s01", "s02", "s03"]), ("test_1_1", ["s11", "s13"]),
    ]  # fmt: skip
    counts = prepared.summary["splits"]["test"]
    assert (counts["rows"], counts["dropped"]["duplicate"], counts["joined_answers"]) == (6, 4, 3)
    limited = prepare_examples(path, load_task("dialogsum"), limit=1)
    assert only(limited, "test")[0]["answers"] == ["s01", "s02", "s03"]
    assert limited.summary["splits"]["test"]["rows"] == 3


def test_both_references_of_a_prepared_example_are_scored(tmp_path):
    rows = [{"story_name": "T", "content": "C", "question": "Q", "answer": "a red fox", "answer_2": "the old bear"}]
    (example,) = only(prepare_examples(write_lines(tmp_path / "rows.jsonl", rows), load_task("FairytaleQA")))
    predictions, references = ["old bear"], [example["answers"]]
    assert (f1(predictions, references), exact_match(predictions, references)) == (1.0, 1.0)
    assert rouge(predictions, references)["rouge1"] == pytest.approx(0.8)
    assert rouge(predictions, references, aggregate="mean")["rouge1"] == pytest.approx(0.4)


def test_the_first_rows_may_lack_columns(tmp_path):
    rows = [{"context": "C1", "question": "Q"}, {"question": "Q", "answer": "a"}, ROWS[0]]
    prepared = prepare_examples(write_lines(tmp_path / "rows.jsonl", rows), QA)
    assert [row["title"] for row in only(prepared)] == ["Ann"]
    dropped = prepared.summary["splits"]["train"]["dropped"]
    assert (dropped["empty answer"], dropped["empty context"]) == (1, 1)


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


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', \"b's\"]", ["a", "b's"]),
        ("['a' 'b']", ["['a' 'b']"]),
        ("{'text': ['a', 'b'], 'answer_start': [1, 2]}", ["a", "b"]),
        ('{"text": ["a"]}', ["a"]),
        ("[1] see", ["[1] see"]),
        ("{x}", ["{x}"]),
        ('{"x": 1}', ['{"x": 1}']),
        ("[1, 2]", ["[1, 2]"]),
        ("[]", []),
    ],
)
def test_cells_of_tables_may_stand_for_lists(tmp_path, cell, answers):
    write_table(tmp_path / "rows.csv", [{"context": "C", "question": "Q", "answers": cell}])
    prepared = prepare_examples(tmp_path / "rows.csv", QA, unlabelled=True)
    assert only(prepared)[0]["answers"] == answers


def test_texts_of_json_lines_stay_texts(tmp_path):
    row = {"context": '["C"]', "question": "Q", "answer": '["a", "b"]'}
    (example,) = only(prepare_examples(write_lines(tmp_path / "rows.jsonl", [row]), QA))
    assert (example["context"], example["answers"]) == ('["C"]', ['["a", "b"]'])
