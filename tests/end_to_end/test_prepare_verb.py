"""``crosskd prepare`` as users type it: kinds of files, the four data sets, own tasks, and mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from crosskd.cli.main import main
from crosskd.data.prepare import load_examples
from helpers_data import EXAMPLES, ROWS, write_lines
from helpers_formats import WRITERS, save, write_json, write_table

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def plain_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of the terminal are as wide as they need."""
    monkeypatch.setattr("crosskd.cli.console.output._width", 200)
    datasets.disable_progress_bars()


def prepare(data: object, output: Path, *more: str) -> int:
    return main(["prepare", "--data", str(data), "--output", str(output), *more])


def prepared(data: object, output: Path, *more: str, split: str = "train") -> Rows:
    """The examples of one split that a command line wrote."""
    assert prepare(data, output, *more) == 0
    return load_examples(output, split).to_list()


def refused(capsys: pytest.CaptureFixture[str], data: object, output: Path, *more: str) -> str:
    """The one line that a bad command line gets; nothing is written."""
    before = sorted(output.parent.rglob("*"))
    capsys.readouterr()
    assert prepare(data, output, *more) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert sorted(output.parent.rglob("*")) == before
    return error.removeprefix("crosskd prepare: error: ")


def summary(output: Path) -> dict[str, Any]:
    return json.loads((output / "prepare_summary.json").read_text(encoding="utf-8"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None], datasets.DatasetDict]:
    """Data sets that the hub holds, by name and configuration; it is otherwise out of reach."""
    held: dict[tuple[str, str | None], datasets.DatasetDict] = {}

    def load_dataset(name: str, configuration: str | None) -> datasets.DatasetDict:
        if (name, configuration) not in held:
            raise ConnectionError(f"Couldn't reach '{name}' on the Hub (OfflineModeIsEnabled)\nand more")
        return held[name, configuration]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return held


def on_hub(**splits: Rows) -> datasets.DatasetDict:
    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_and_folder(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    assert prepared(tmp_path / name, tmp_path / "out", "--task", "QED") == EXAMPLES
    counts = summary(tmp_path / "out")["splits"]["train"]
    assert (counts["rows"], counts["examples"], counts["joined_answers"]) == (10, 10, 0)


def test_the_installed_command_ends_with_its_exit_code(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", ROWS)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "crosskd.cli.main", "prepare", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)

    good = run("--data", "rows.jsonl", "--output", "out", "--limit", "3")
    assert (good.returncode, good.stderr) == (0, "")
    assert len(load_examples(tmp_path / "out", "train")) == 3
    bad = run("--data", "nobody/nothing", "--output", "other")
    assert bad.returncode == 2
    assert bad.stderr.startswith("crosskd prepare: error: nobody/nothing is neither a file nor a hub data set within")
    assert len(bad.stderr.splitlines()) == 1
    assert not (tmp_path / "other").exists()


# --- the four data sets as the hub, or their authors, publish them


def test_pubmedqa_of_the_hub(tmp_path: Path, hub: dict, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "pubid": 21645374 + number,
            "question": f"Do mitochondria remodel leaves {number}?",
            "context": {
                "contexts": [f"Programmed death {number}.", "Leaves were studied."],
                "labels": ["BACKGROUND", "RESULTS"],
                "meshes": ["Alismataceae"],
                "reasoning_required_pred": ["y"],
                "reasoning_free_pred": ["e"],
            },
            "long_answer": f"Results depict dynamics {number}.",
            "final_decision": "yes",
        }
        for number in range(10)
    ]
    hub["qiaojin/PubMedQA", "pqa_labeled"] = on_hub(train=rows)
    words = ["--task", "pubmedqa", "--validation_fraction", "0.2"]
    assert prepare("qiaojin/PubMedQA:pqa_labeled", tmp_path / "out", *words) == 0
    train, validation = (load_examples(tmp_path / "out", split).to_list() for split in ("train", "validation"))
    assert (len(train), len(validation)) == (8, 2)
    first = next(row for row in [*train, *validation] if row["id"] == "21645374")
    assert (first["context"], first["question"]) == (
        "Programmed death 0. Leaves were studied.", "Do mitochondria remodel leaves 0?",
    )  # fmt: skip
    assert first["answers"] == ["Results depict dynamics 0."]
    decided = prepared("qiaojin/PubMedQA:pqa_labeled", tmp_path / "d", *words[:2], "--map", "final_decision=answer")
    assert decided[0]["answers"] == ["yes"]
    assert "neither a file nor a hub data set" in refused(capsys, "qiaojin/PubMedQA", tmp_path / "x", *words)


def test_dialogsum_with_three_summaries_in_a_row_and_with_a_row_for_each(tmp_path: Path, hub: dict) -> None:
    train = [{"id": "train_0", "dialogue": "#Person1#: Hi.", "summary": "A greeting.", "topic": "hi"}]
    three = {"id": "test_0", "dialogue": "#Person1#: Bye.", "summary1": "a", "summary2": "b", "summary3": "c"}
    hub["first/dialogsum", None] = on_hub(train=train, test=[three])
    rows = [{**train[0], "id": f"test_0_{n}", "dialogue": "#Person1#: Bye.", "summary": s} for n, s in enumerate("abc")]
    hub["second/dialogsum", None] = on_hub(train=train, test=rows)
    for name in ("first", "second"):
        (example,) = prepared(f"{name}/dialogsum", tmp_path / name, "--task", "dialogsum", split="test")
        assert (example["context"], example["question"]) == ("#Person1#: Bye.", "")
        assert example["answers"] == ["a", "b", "c"]
        assert load_examples(tmp_path / name, "train")["answers"][:] == [["A greeting."]]
    assert summary(tmp_path / "second")["splits"]["test"]["joined_answers"] == 2


def test_fairytaleqa_of_both_hubs_has_the_answers_and_not_the_questions(tmp_path: Path, hub: dict) -> None:
    generation = {
        "story_name": "three-dogs", "content": "once upon a time", "answer": "a king", "question": "who ?",
        "gem_id": "GEM-FairytaleQA-train-0", "target": "who ?", "references": ["who ?"], "attribute": "character",
    }  # fmt: skip
    hub["GEM/FairytaleQA", None] = on_hub(train=[generation])
    two = {"story_name": "T", "story_section": "C", "question": "Q", "answer1": "a", "answer2": "b", "ex-or-im": "ex"}
    hub["WorkInTheDark/FairytaleQA", None] = on_hub(train=[{**two, "answer2": ""}], validation=[two])
    (example,) = prepared("GEM/FairytaleQA", tmp_path / "one", "--task", "fairytaleqa")
    assert (example["title"], example["context"], example["answers"]) == ("three-dogs", "once upon a time", ["a king"])
    (example,) = prepared("WorkInTheDark/FairytaleQA", tmp_path / "two", "--task", "fairytaleqa", split="validation")
    assert example["answers"] == ["a", "b"]
    assert load_examples(tmp_path / "two", "train")["answers"][:] == [["a"]]


def test_qed_as_published_and_squad(tmp_path: Path) -> None:
    span = {"start": 0, "end": 4, "string": "1560s"}
    qed = {
        "example_id": -4408, "title_text": "Rail", "url": "u", "question_text": "when", "paragraph_text": "In 1560s .",
        "sentence_starts": [0], "original_nq_answers": [[span, {**span, "string": "1570s"}], [span]], "annotation": {},
    }  # fmt: skip
    folder = tmp_path / "qed"
    folder.mkdir()
    write_lines(folder / "qed-train.jsonlines", [qed])
    write_lines(folder / "qed-dev.jsonlines", [qed])
    (example,) = prepared(folder, tmp_path / "one", "--task", "qed", split="validation")
    assert (example["id"], example["title"], example["answers"]) == ("-4408", "Rail", ["1560s, 1570s", "1560s"])
    answers = {"text": ["a", "b", "a"], "answer_start": [1, 2, 1]}
    squad = {"id": "s", "title": "T", "context": "C", "question": "Q", "answers": answers}
    data = save(tmp_path / "squad", validation=[squad, {**squad, "id": "n", "question": "no", "answers": {"text": []}}])
    (example,) = prepared(data, tmp_path / "two", "--task", "qa", split="validation")
    assert example["answers"] == ["a", "b"]
    assert summary(tmp_path / "two")["splits"]["validation"]["dropped"]["empty answer"] == 1


# --- what is said


def test_what_was_dropped_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dropped = [
        {**ROWS[0], "answer": ""}, {**ROWS[0], "context": " "}, {**ROWS[0], "question": None}, ROWS[1],
        {**ROWS[1], "answer": "b"}, {**ROWS[1], "context": "long " * 99},
    ]  # fmt: skip
    write_lines(tmp_path / "rows.jsonl", [*ROWS, *dropped])
    assert prepare(tmp_path / "rows.jsonl", tmp_path / "out", "--max_characters", "99") == 0
    shown = capsys.readouterr().out
    assert [cell.strip() for cell in shown.split("│")[1:5]] == [
        "train", "16", "10",
        "1 empty answer, 1 empty context, 1 empty question, 1 too long, 2 duplicate (answers kept as references: 1)",
    ]  # fmt: skip
    assert "columns: id from id, title from title, context from context, question from question, answers from" in shown
    written = summary(tmp_path / "out")
    assert (written["task"], written["max_characters"], written["mapping"]) == ("qa", 99, {})
    counts = written["splits"]["train"]
    assert counts["rows"] == counts["examples"] + sum(counts["dropped"].values()) == 16
    assert counts["dropped"] == {
        "empty answer": 1, "empty context": 1, "empty question": 1, "too long": 1, "duplicate": 2, "over limit": 0,
    }  # fmt: skip


def test_a_fraction_beside_a_validation_split_is_said_to_be_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "rows.json", {"train": ROWS, "validation": ROWS[:2]})
    words = ["--validation_fraction", "0.5"]
    assert len(prepared(tmp_path / "rows.json", tmp_path / "out", *words, split="validation")) == 2
    assert "--validation_fraction is ignored" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "given",
    [
        ["--map", "body=context", "ask=question", "gold=answer", "gold2=answers"],
        ["--map", "body=context", "--map", "ask=question", "gold=answer", "--map=gold2=answers"],
        ["--config", "flags.yaml"],
    ],
)
def test_columns_may_be_mapped_in_one_flag_in_several_and_in_a_file(given: list[str], tmp_path: Path) -> None:
    write_table(tmp_path / "rows.tsv", [{"body": "C", "ask": "Q", "gold": "a", "gold2": "b", "answer_2": "no"}], "\t")
    flags = tmp_path / "flags.yaml"
    flags.write_text("map: {body: context, ask: question, gold: answer, gold2: answers}\n")
    words = [str(flags) if word == "flags.yaml" else word for word in given]
    (example,) = prepared(tmp_path / "rows.tsv", tmp_path / "out", *words)
    assert (example["context"], example["question"], example["answers"]) == ("C", "Q", ["a", "b"])


# --- mistakes: one line, exit 2, nothing written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", "0"], "--limit: got 0"),
        (["--limit", "many"], "--limit"),
        (["--validation_fraction", "0"], "--validation_fraction: got 0.0; expected a number between 0 and 1"),
        (["--validation_fraction", "10"], "--validation_fraction: got 10.0"),
        (["--split", "test"], "has no split 'test': expected one of train, validation"),
        (["--map", "body=context"], "has no column 'body': expected one of id, title, context, question, answer"),
        (["--map", "title=contxt"], "there is no field 'contxt': did you mean 'context'?"),
        (["--map", "title=context", "id=context"], "'title' is mapped to 'context' already"),
        (["--map", "title=context", "--map", "title=id"], "--map title=id: 'title' is mapped to 'context' already"),
        (["--map", "title"], "--map: got 'title'; expected old=new"),
        (["--map", '{"title": '], "expected old=new"),
        (["--task", "dialogsums"], "did you mean 'dialogsum'?"),
        (["--task", "none.yaml"], "there is no task file none.yaml"),
        (["--answers", "none.jsonl"], "no such file"),
        (["--limt", "3"], "did you mean '--limit'?"),
    ],
)
def test_flags_that_cannot_be(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "rows.json", {"train": ROWS, "validation": ROWS})
    assert message in refused(capsys, tmp_path / "rows.json", tmp_path / "out", *words)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (["a", 7], "row 11, column 'answer': got 'a list of number and text'; expected references that are all text"),
        ([["a"], "b"], "references that are all text"),
        ({"b": "c"}, "got 'a list of mapping'"),
        (True, "got 'true/false'; expected text"),
    ],
)
def test_answers_of_a_wrong_kind(
    answer: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "rows.jsonl", [*ROWS, {**ROWS[0], "context": "new", "answer": answer}])
    assert message in refused(capsys, tmp_path / "rows.jsonl", tmp_path / "out")


def test_outputs_that_would_lose_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    data = write_lines(tmp_path / "data" / "rows.jsonl", ROWS)
    assert "--overwrite" in refused(capsys, data, tmp_path / "data")
    assert "another folder" in refused(capsys, data, tmp_path / "data", "--overwrite")
    assert "another folder" in refused(capsys, tmp_path / "data", tmp_path / "data", "--overwrite")
    assert "is a file" in refused(capsys, tmp_path / "data", tmp_path / "data" / "rows.jsonl")
    for limit in ("4", "2"):
        assert len(prepared(data, tmp_path / "out", "--limit", limit, "--overwrite")) == int(limit)


# --- a task of one's own


OWN = """
system: Name the colour that the text speaks of. Write one word.
format: |
  Text: {context}
  Colour:
shots:
  - {context: The sky is blue., answer: blue}
metrics: [exact_match]
"""


def test_an_own_task_through_prepare_and_evaluate(tmp_path: Path, student_folder: Path) -> None:
    task = tmp_path / "colours.yaml"
    task.write_text(OWN)
    colours = [{"text": f"Leaf {number} is green.", "answer": "green"} for number in range(3)]
    write_lines(tmp_path / "test.jsonl", colours)
    rows = prepared(tmp_path / "test.jsonl", tmp_path / "data", "--task", str(task), split="test")
    assert [row["context"] for row in rows] == [row["text"] for row in colours]
    assert summary(tmp_path / "data")["task"] == "colours"
    words = ["evaluate", "--model", str(student_folder), "--data", str(tmp_path / "data"), "--split", "test"]
    words += ["--task", str(task), "--number_few_shot", "1", "--max_new_tokens", "3"]
    assert main([*words, "--output", str(tmp_path / "scores")]) == 0
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert (scores["task"], scores["examples"], scores["number_few_shot"]) == ("colours", 3, 1)
    assert "exact_match" in scores["scores"]
    assert scores["settings"]["metrics"] == ["exact_match"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("system:", "sytem:", "unknown key 'sytem': did you mean 'system'?"),
        ("{context}", "{contxt}", "unknown placeholder {contxt}: did you mean 'context'?"),
        (", answer: blue", "", "shot 1 has no 'answer'"),
        ("exact_match", "exact_mach", "did you mean 'exact_match'?"),
        ("metrics: [", "metrics: ]", "is not YAML"),
    ],
)
def test_mistakes_in_an_own_task(
    old: str, new: str, message: str, tmp_path: Path, student_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "colours.yaml"
    task.write_text(OWN.replace(old, new))
    data = write_lines(tmp_path / "rows.jsonl", ROWS)
    assert message in refused(capsys, data, tmp_path / "out", "--task", str(task))
    words = ["evaluate", "--model", str(student_folder), "--data", "sample:qed", "--output", str(tmp_path / "out")]
    assert main([*words, "--task", str(task)]) == 2
    assert message in capsys.readouterr().err
