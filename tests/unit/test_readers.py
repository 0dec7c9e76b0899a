"""Sources: every kind of file gives the same rows, and what is wrong with one is named."""

from __future__ import annotations

import csv
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosskd.data.prepare import prepare_examples
from crosskd.errors import UsageError
from crosskd.text.tasks import TASKS
from helpers_data import EXAMPLES, ROWS, only, write_lines

QA = TASKS["qa"]


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_table(path, delimiter):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_arrow(path, make):
    table = pa.Table.from_pylist(ROWS)
    with make(str(path), table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "rows.json": lambda path: write_json(path, ROWS),
    "lines.json": lambda path: write_lines(path, ROWS),
    "data.json": lambda path: write_json(path, {"version": "1", "data": ROWS}),
    "by_id.json": lambda path: write_json(path, {r["id"]: {k: v for k, v in r.items() if k != "id"} for r in ROWS}),
    "by_split.json": lambda path: write_json(path, {"train": ROWS}),
    "rows.jsonl": lambda path: write_lines(path, ROWS),
    "rows.csv": lambda path: write_table(path, ","),
    "rows.tsv": lambda path: write_table(path, "\t"),
    "rows.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "stream.arrow": lambda path: write_arrow(path, pa.ipc.new_stream),
    "file.arrow": lambda path: write_arrow(path, pa.ipc.new_file),
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(str(path)),
    "saved_splits": lambda path: datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(str(path)),
    "folder": lambda path: (path.mkdir(), write_lines(path / "anything.jsonl", ROWS)),
    "shards": lambda path: (
        path.mkdir(),
        write_lines(path / "train-00000-of-00002.jsonl", ROWS[:4]),
        write_lines(path / "train-00001-of-00002.jsonl", ROWS[4:]),
    ),
}


@pytest.fixture(autouse=True)
def quiet_writers():
    """The tests' own writers draw no progress bars either, so that the output shows what the package draws."""
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_source_gives_the_same_examples(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert only(prepare_examples(tmp_path / name, QA)) == EXAMPLES


def test_folder_with_a_file_for_each_split(tmp_path):
    write_lines(tmp_path / "dev.jsonl", ROWS[:3])
    write_lines(tmp_path / "train.jsonl", ROWS)
    write_table(tmp_path / "test.csv", ",")
    (tmp_path / "README.md").write_text("about")
    prepared = prepare_examples(tmp_path, QA)
    assert {name: len(split) for name, split in prepared.examples.items()} == {"train": 10, "validation": 3, "test": 10}
    assert only(prepare_examples(tmp_path, QA, split="validation"), "validation") == EXAMPLES[:3]
    with pytest.raises(UsageError, match="has no split 'dev': expected one of train, validation, test"):
        prepare_examples(tmp_path, QA, split="dev")


def test_a_lone_file_is_named_by_its_stem_or_by_the_option(tmp_path):
    test = write_lines(tmp_path / "test_data.jsonl", ROWS)
    assert list(prepare_examples(test, QA).examples) == ["test"]
    other = write_lines(tmp_path / "questions.jsonl", ROWS)
    assert list(prepare_examples(other, QA, split="test").examples) == ["test"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"context": "C", "question": "Q", "answer": "a"}\n\n{"a" 1}\n', "line 3 is not JSON"),
        ("rows.jsonl", b"[1]\n", "line 1 is a list: expected"),
        ("rows.jsonl", b"\x93NUMPY\xff", "not a text file in UTF-8"),
        ("rows.jsonl", b"", "holds no rows"),
        ("rows.json", b'[{"a": 1},\n {"a" 1}]', "line 2 is not JSON"),
        ("rows.json", b"7", "row 1 is a int"),
        ("rows.csv", b"context,question,answer\nC,Q\n", "line 2 has more or fewer cells than the header: expected 3"),
        ("rows.csv", b"context,question,answer\nC,Q,a,b\n", "line 2 has more or fewer cells"),
        ("rows.csv", b'context,question,answer\n"C,Q,a\n', "after line 1: unexpected end of data"),
        ("rows.csv", b"context,question,answer\n", "holds no rows"),
        ("rows.parquet", b"PAR1 no", "is not a Parquet file"),
        ("rows.arrow", b"nothing of the kind", "is not an Arrow file"),
        ("rows.txt", b"text", "unknown kind: got '.txt'; expected one of .json"),
        ("rows.jsonl", b'{"context": "C", "question": "Q", "answer": ["a", 7]}', "a list of number and text"),
        ("rows.jsonl", b'{"context": "C", "question": "Q", "answer": [["a"], "b"]}', "references that are all text"),
        (
            "rows.jsonl",
            b'{"context": "C", "question": "Q", "answer": {"b": "c"}}',
            "row 1, column 'answer': got 'a list of mapping'",
        ),
        ("rows.jsonl", b'{"context": "C", "question": "Q", "answer": true}', "got 'true/false'; expected text"),
        ("rows.jsonl", b'{"context": {"x": 1}, "question": "Q", "answer": "a"}', "column 'context': got 'mapping'"),
        ("rows.jsonl", b'{"context": "C", "answer": "a"}', "no column for 'question': .*there are: context, answer"),
    ],
)
def test_files_of_a_wrong_kind_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        prepare_examples(tmp_path / name, QA)


def test_sources_that_are_not_there_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"there is no file or folder .*none\.jsonl"):
        prepare_examples(tmp_path / "none.jsonl", QA)
    with pytest.raises(UsageError, match=r"unknown sample 'qad': did you mean 'qed'\?"):
        prepare_examples("sample:qad", QA)
    with pytest.raises(UsageError, match="nobody/nothing is neither a file nor a hub data set within reach"):
        prepare_examples("nobody/nothing", QA)
    with pytest.raises(UsageError, match="no data files"):
        prepare_examples(tmp_path, QA)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(UsageError, match="cannot be read as a saved data set"):
        prepare_examples(tmp_path, QA)


def test_hub_ids_may_name_a_configuration(monkeypatch):
    asked = []

    def load_dataset(*names):
        asked.append(names)
        return datasets.DatasetDict(validation=datasets.Dataset.from_list(ROWS), train=datasets.Dataset.from_list(ROWS))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(prepare_examples("owner/name:pqa_labeled", QA).examples) == ["train", "validation"]
    assert list(prepare_examples("owner/name", QA, split="validation").examples) == ["validation"]
    assert asked == [("owner/name", "pqa_labeled"), ("owner/name", None)]
