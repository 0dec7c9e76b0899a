"""Sources: every kind of file gives the same rows, and what is wrong with one is named."""

from __future__ import annotations

import gzip
import json
from codecs import BOM_UTF8

import datasets
import pytest

from crosskd.data.prepare import prepare_examples
from crosskd.errors import UsageError
from crosskd.text.tasks import TASKS
from helpers_data import EXAMPLES, ROWS, only, write_lines
from helpers_formats import WRITERS, save, write_json, write_table

QA = TASKS["qa"]


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
    write_table(tmp_path / "test.csv", ROWS)
    (tmp_path / "README.md").write_text("about")
    prepared = prepare_examples(tmp_path, QA)
    assert {name: len(split) for name, split in prepared.examples.items()} == {"train": 10, "validation": 3, "test": 10}
    assert only(prepare_examples(tmp_path, QA, split="validation"), "validation") == EXAMPLES[:3]
    assert only(prepare_examples(tmp_path, QA, split="dev"), "validation") == EXAMPLES[:3]
    with pytest.raises(UsageError, match="has no split 'tset': expected one of train, validation, test"):
        prepare_examples(tmp_path, QA, split="tset")


def test_a_lone_file_is_named_by_its_stem_or_by_the_option(tmp_path):
    test = write_lines(tmp_path / "test_data.jsonl", ROWS)
    assert list(prepare_examples(test, QA).examples) == ["test"]
    other = write_lines(tmp_path / "questions.jsonl", ROWS)
    assert list(prepare_examples(other, QA, split="test").examples) == ["test"]
    assert list(prepare_examples(other, QA, split="dev").examples) == ["validation"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.csv.gz"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, name):
    WRITERS[name](tmp_path / name)
    content = (tmp_path / name).read_bytes()
    marked = gzip.compress(BOM_UTF8 + gzip.decompress(content)) if name.endswith(".gz") else BOM_UTF8 + content
    (tmp_path / name).write_bytes(marked)
    assert only(prepare_examples(tmp_path / name, QA)) == EXAMPLES


def test_the_split_may_be_the_last_part_of_the_name_too(tmp_path):
    for name in ("qed-train.jsonlines", "qed-dev.jsonlines", "dialogsum.test.jsonl", "set-train-00000-of-00001.jsonl"):
        write_lines(tmp_path / name, [{**ROWS[0], "context": name}])
    examples = prepare_examples(tmp_path, QA).examples
    assert {name: len(split) for name, split in examples.items()} == {"train": 2, "validation": 1, "test": 1}
    assert list(prepare_examples(tmp_path / "qed-dev.jsonlines", QA).examples) == ["validation"]


def test_json_with_splits_keeps_their_order_and_names(tmp_path):
    path = write_json(tmp_path / "all.json", {"test": ROWS[:1], "dev": ROWS[:2], "train": ROWS})
    examples = prepare_examples(path, QA).examples
    assert {name: len(split) for name, split in examples.items()} == {"train": 10, "validation": 2, "test": 1}
    write_json(tmp_path / "train.json", {"train": ROWS, "test": ROWS})
    with pytest.raises(UsageError, match=r"train\.json holds the splits train, test: expected the rows of one split"):
        prepare_examples(tmp_path, QA)


def test_a_json_file_is_parsed_once(tmp_path, monkeypatch):
    path = write_json(tmp_path / "rows.json", ROWS)
    calls = []
    parse = json.loads
    monkeypatch.setattr(json, "loads", lambda text: calls.append(1) or parse(text))
    prepare_examples(path, QA)
    assert len(calls) == 1


def test_files_in_gzip_that_are_not_whole_are_named(tmp_path):
    WRITERS["rows.jsonl.gz"](tmp_path / "rows.jsonl.gz")
    whole = (tmp_path / "rows.jsonl.gz").read_bytes()
    for content, message in ((b"plain", "Not a gzipped file"), (whole[:60], "ended before")):
        (tmp_path / "rows.jsonl.gz").write_bytes(content)
        with pytest.raises(UsageError, match=rf"rows\.jsonl\.gz cannot be read: .*{message}"):
            prepare_examples(tmp_path / "rows.jsonl.gz", QA)
    (tmp_path / "rows.parquet.gz").write_bytes(whole)
    with pytest.raises(UsageError, match=r"unknown kind: got '\.gz'"):
        prepare_examples(tmp_path / "rows.parquet.gz", QA)


def test_saved_classes_are_read_by_their_names(tmp_path):
    features = datasets.Features(
        {"context": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = {"context": ["C1", "C2", "C3"], "label": [1, 0, -1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    prepared = prepare_examples(tmp_path / "saved", TASKS["summary"], mapping={"label": "answer"})
    assert [row["answers"] for row in only(prepared)] == [["good"], ["bad"]]
    assert prepared.summary["splits"]["train"]["dropped"]["empty answer"] == 1


def test_an_empty_split_beside_others_is_left_out(tmp_path):
    write_lines(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "test.jsonl").touch()
    prepared = prepare_examples(tmp_path, QA)
    assert only(prepared) == EXAMPLES
    assert prepared.summary["splits"]["test"]["rows"] == 0
    with pytest.raises(UsageError, match=r"\(test\) holds no rows"):
        prepare_examples(tmp_path, QA, split="test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"context": "C", "question": "Q", "answer": "a"}\n\n{"a" 1}\n', "line 3 is not JSON"),
        ("rows.jsonl", b"[1]\n", "line 1 is a list: expected"),
        ("rows.jsonl", b"\x93NUMPY\xff", "line 1 is not UTF-8: .*save the file as UTF-8"),
        ("rows.jsonl", b"", "holds no rows"),
        ("rows.json", b'[{"a": 1},\n {"a" 1}]', "line 2 is not JSON"),
        ("rows.json", b"7", "row 1 is a int"),
        ("rows.csv", b"context,question,answer\nC,Q\n", "line 2 has more or fewer cells than the header: expected 3"),
        ("rows.csv", b"context,question,answer\nC,Q,a,b\n", "line 2 has more or fewer cells"),
        ("rows.csv", b'context,question,answer\n"C,Q,a\n', "after line 1: unexpected end of data"),
        ("rows.csv", b"context,question,answer\n", "holds no rows"),
        ("rows.csv", b"", "holds no rows"),
        ("rows.csv", b"context,question,answer,answer\nC,Q,a,b\n", "has 2 columns named 'answer'"),
        (
            "rows.csv",
            "context,question,answer\nC,Q,\u00e9\n".encode("latin-1"),
            "is not UTF-8: .*save the file as UTF-8",
        ),
        ("rows.csv", b"context;question;answer\nC;Q;a\n", "the columns there are: context;question;answer"),
        ("rows.jsonl", '{"context": "C"}'.encode("utf-16"), "line 1 is not UTF-8"),
        ("rows.json", b"", "line 1 is not JSON"),
        ("rows.json", b"[]", "holds no rows"),
        ("rows.json", b'[{"a": 1}, 7]', "row 2 is a int"),
        ("rows.arrow", b"", "is not a whole Arrow file"),
        ("rows.parquet", b"PAR1 no", "is not a whole Parquet file"),
        ("rows.arrow", b"nothing of the kind", "is not a whole Arrow file"),
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
    (tmp_path / "plain_text").mkdir()
    with pytest.raises(UsageError, match=r"no data files.*one of the folders in it: plain_text"):
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


def test_a_hub_id_without_its_configuration_gets_the_choice(monkeypatch):
    def load_dataset(*_):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nExample: x")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = r"owner/name has several configurations: expected one of 'a', 'b'; choose with owner/name:<configuration>"
    with pytest.raises(UsageError, match=message):
        prepare_examples("owner/name", QA)


def test_cut_arrow_files_are_named(tmp_path):
    save(tmp_path / "saved", train=ROWS)
    (shard,) = (tmp_path / "saved" / "train").glob("*.arrow")
    (tmp_path / "cut.arrow").write_bytes(shard.read_bytes()[:-900])
    with pytest.raises(UsageError, match=r"cut\.arrow is not a whole Arrow file"):
        prepare_examples(tmp_path / "cut.arrow", QA)
