"""The published evaluation: its data, its prompts, its scores and the files it writes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from crosskd import load_model
from crosskd.errors import UsageError
from crosskd.published.benchmark import main, run, shown_task
from crosskd.published.benchmark_data import read_examples
from crosskd.published.benchmark_flags import BenchmarkFlags
from crosskd.published.benchmark_scores import published_scores
from crosskd.text.prompts import PromptBuilder
from crosskd.text.tasks import TASKS
from helpers_tokenizers import CHAT_TEMPLATE, byte_level_tokenizer

ROWS = [
    {"title": "T", "context": "Ann lives in Rome.", "question": "where?", "answers": {"text": ["Rome", "in Rome"]}},
    {"title": "U", "context": "Bob sings. " * 9, "question": "what?", "answers": {"text": []}},
]
KEYS = [
    "model", "dataset", "title", "number_few_shot", "samples_number", "f1", "precision", "recall", "em", "squad",
    "rouge1", "rouge2", "rougeL", "rougeLsum",
]  # fmt: skip


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr("crosskd.published.benchmark.start_logging", lambda *_: None)
    monkeypatch.setattr(logging.getLogger("crosskd"), "propagate", True)
    caplog.set_level(logging.INFO, logger="crosskd")
    return caplog


def saved(folder: Path, rows: list[dict[str, Any]], split: str | None = "test") -> Path:
    dataset = Dataset.from_list(rows)
    (DatasetDict({split: dataset}) if split else dataset).save_to_disk(str(folder))
    return folder


def flags_for(data: Path, **more: Any) -> BenchmarkFlags:
    return BenchmarkFlags(model_id="m", dataset_id=str(data), **more)


def test_scores_have_their_published_names() -> None:
    found = published_scores(["the cat sat", "dog"], [["a cat sat down", "bird"], ["cats"]], {"bert_score_f1": 0.98765})
    assert list(found) == [*KEYS[5:], "f1_bert"]
    assert found["precision"] == 50.0  # both words of the first, none of the second
    assert found["recall"] == 33.33
    assert found["f1"] == 40.0
    assert found["em"] == 0.0
    assert found["squad"] == 20.0
    assert found["rouge1"] == round(100 * (2 * 2 / 7) / 2, 2)  # words as they stand: cat, sat
    assert found["f1_bert"] == 98.77
    assert published_scores(["cats"], [["cat"]], {})["rouge1"] == 0.0  # no stemmer
    assert published_scores([""], [[""]], {})["f1"] == 100.0
    # a text is one sentence, whatever its full stops
    two = published_scores(["c d. a b."], [["a b. c d."]], {})
    assert two["rougeLsum"] == two["rougeL"] == 50.0


@pytest.mark.parametrize("from_disk", [True, False])
def test_a_saved_data_set_is_read(from_disk: bool, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    flags = flags_for(saved(tmp_path / "d", ROWS), from_disk=from_disk, title=True)
    examples, titled = read_examples(flags, TASKS["qa"])
    assert titled
    assert [example["title"] for example in examples] == ["T", "U"]
    assert [example["answers"] for example in examples] == [["Rome", "in Rome"], [""]]
    assert "1 of 2 examples have no answer" in log.text
    examples, titled = read_examples(replace(flags, title=False), TASKS["qa"])
    assert not titled
    assert [example["title"] for example in examples] == ["", ""]


def test_columns_are_renamed_and_answers_looked_up(tmp_path: Path) -> None:
    rows = [{"passage_x": "P", "ask": "q?", "given": [{"span": "a", "at": 1}, {"span": "b", "at": 2}], "other": 1}]
    mapping = tmp_path / "mapping.json"
    mapping.write_text(json.dumps({"passage_x": "context", "ask": "question", "given": "answers", "other": "spare"}))
    flags = flags_for(saved(tmp_path / "d", rows), mapping=str(mapping), mapping_dict="span")
    (example,), _ = read_examples(flags, TASKS["qa"])
    assert (example["context"], example["question"], example["answers"]) == ("P", "q?", ["a", "b"])


def test_names_of_the_papers_data_need_no_mapping(tmp_path: Path) -> None:
    rows = [{"title_text": "T", "paragraph_text": "P", "question": "q", "original_nq_answers": [{"string": "a"}]}]
    (example,), titled = read_examples(flags_for(saved(tmp_path / "d", rows), title=True), TASKS["qa"])
    assert titled
    assert (example["title"], example["context"], example["answers"]) == ("T", "P", ["a"])


def test_a_data_set_without_splits_is_read_whole(tmp_path: Path) -> None:
    flags = flags_for(saved(tmp_path / "d", ROWS, split=None), from_disk=True, split_name="validation")
    assert len(read_examples(flags, TASKS["qa"])[0]) == 2
    flags = flags_for(saved(tmp_path / "e", ROWS, split="dev"), split_name="dev")
    assert len(read_examples(flags, TASKS["qa"])[0]) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"split_name": "validation"}, r"--split_name validation.*expected one of test"),
        ({"mapping": '{"nothing": "context"}'}, r"--mapping .*has no column 'nothing'.*one of title, context"),
        ({"mapping": "[1]"}, r"holds a JSON list"),
        ({"mapping": '{"context": "id"}'}, r"no column for 'context'.*map yours, by --mapping, to context"),
        ({"mapping_dict": "span"}, r"--mapping_dict span.*expected one of text"),
        ({"dataset_id": "./nowhere"}, r"no file or folder"),
        ({"dataset_id": "nowhere", "from_disk": True}, r"--dataset_id nowhere.*with --from_disk"),
    ],
)
def test_data_that_cannot_be_used(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    if "mapping" in more:
        (tmp_path / "mapping.json").write_text(more["mapping"])
        more = {"mapping": str(tmp_path / "mapping.json")}
    flags = replace(flags_for(saved(tmp_path / "d", ROWS)), **more)
    with pytest.raises(UsageError, match=message):
        read_examples(flags, TASKS["qa"])


@pytest.mark.parametrize("shots", [0, 1])
def test_the_explanation_stands_where_context_asks_for_it(shots: int, student_folder: Path) -> None:
    loaded, task = load_model(student_folder), TASKS["qa"]

    def text(context: bool) -> str:
        flags = flags_for(Path("d"), context=context, number_few_shot=shots)
        shown = shown_task(task, loaded, flags, titled=False)
        return PromptBuilder(loaded.tokenizer, shown, number_few_shot=shots).build(ROWS[0]).text

    assert text(True) == f"{task.system}\n\n{text(False)}"
    assert task.system not in text(False)
    assert text(False).count("Title:") == 1  # the example's own; the shots' are left out with the rest


def test_chat_models_are_told_anyhow(student_folder: Path) -> None:
    loaded = load_model(student_folder)._replace(tokenizer=byte_level_tokenizer(CHAT_TEMPLATE))
    for context in (True, False):
        assert shown_task(TASKS["qa"], loaded, flags_for(Path("d"), context=context), titled=True) == TASKS["qa"]


def words_for(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        "--model_id", str(model), "--dataset_id", str(data), "--output_path", str(output), "--max_new_tokens", "4",
        *more,
    ]  # fmt: skip


def test_files_are_the_published_ones(student_folder: Path, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    data, output = saved(tmp_path / "d", ROWS), tmp_path / "deep" / "out"
    words = words_for(student_folder, data, output, "--title", "--number_few_shot", "1", "--save_predictions")
    run([*words, "--num_workers", "1", "--f", "1"])
    record = json.loads((output / "1shots.json").read_text())
    assert list(record) == KEYS
    assert (record["model"], record["dataset"]) == (str(student_folder), str(data))
    assert (record["title"], record["number_few_shot"], record["samples_number"]) == (True, 1, 2)
    lines = [json.loads(line) for line in (output / "predictions_1shots.json").read_text().splitlines()]
    assert [list(line) for line in lines] == [["answers", "prediction_text"]] * 2
    assert lines[0]["answers"] == ["Rome", "in Rome"]
    answers = [line["prediction_text"] for line in lines]
    assert {name: record[name] for name in KEYS[5:]} == published_scores(answers, [x["answers"] for x in lines], {})
    assert "--num_workers has no effect" in log.text
    before = (output / "1shots.json").read_bytes()
    with pytest.raises(UsageError, match=r"1shots.json exists: give --overwrite"):
        run(words)
    assert (output / "1shots.json").read_bytes() == before
    run([*words, "--overwrite"])
    run(words_for(student_folder, data, output))  # other shots, another file
    assert (output / "0shots.json").is_file()


def test_long_prompts_are_left_out(student_folder: Path, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    data = saved(tmp_path / "d", ROWS)
    run(words_for(student_folder, data, tmp_path / "out", "--context_length", "60"))
    assert json.loads((tmp_path / "out" / "0shots.json").read_text())["samples_number"] == 1
    assert "1 of 2 examples are left out" in log.text
    with pytest.raises(UsageError, match=r"--context_length 3.*no prompt"):
        run(words_for(student_folder, data, tmp_path / "other", "--context_length", "3"))


def test_the_folder_without_output_path(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    data = saved(tmp_path / "qed", ROWS)
    words = ["--model_id", str(student_folder), "--dataset_id", str(data), "--max_new_tokens", "2", "--title"]
    run(words)
    assert (tmp_path / "benchmark_results" / student_folder.name / "qed" / "titled" / "0shots.json").is_file()


def test_a_checkpoint_without_tokenizer_takes_another(student_folder: Path, tmp_path: Path) -> None:
    load_model(student_folder).model.save_pretrained(tmp_path / "bare")
    data = saved(tmp_path / "d", ROWS)
    for model, name in ((tmp_path / "bare", "a"), (student_folder, "b")):
        more = ["--model_tokenizer", str(student_folder), "--save_predictions"]
        assert main(words_for(model, data, tmp_path / name, *more)) == 0
    both = [(tmp_path / name / "predictions_0shots.json").read_text() for name in ("a", "b")]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", "summarization"], "unknown task 'summarization'"),
        (["--seq2seq"], "--seq2seq True"),
        (["--number_few_shot", "99"], "number_few_shot"),
        (["--output_path", "FILE"], "expected a folder"),
        (["--model_id", "./nowhere"], "no such folder"),
        (["--mapping", "FILE.json"], "there is no file"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    more: list[str], message: str, student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "FILE").write_text("")
    data = saved(tmp_path / "d", ROWS)
    more = [word.replace("FILE", str(tmp_path / "FILE")) for word in more]
    assert main([*words_for(student_folder, data, tmp_path / "out"), *more]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("benchmark.py: error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_said_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bert_score", None)
    data = saved(tmp_path / "d", ROWS)
    assert main(words_for(tmp_path / "nowhere", data, tmp_path / "out", "--bert_score")) == 2
    assert "crosskd[bert-score]" in capsys.readouterr().err
