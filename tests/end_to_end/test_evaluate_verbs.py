"""`evaluate`, `compare` and `report` as command lines: BERTScore, aggregates, a baseline, intervals."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from crosskd.cli.main import main
from crosskd.evaluation.bertscore import bert_score_scores
from crosskd.evaluation.compare import compare_predictions
from helpers_encoders import save_bert

SHORT = ["--max_new_tokens", "6"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, student_folder: Path, data_folder: Path) -> Path:
    """Two evaluations of one split, with 0 shots and with 1, the second with other answers for certain."""
    folder = tmp_path_factory.mktemp("scored")
    encoder = str(save_bert(folder / "encoder"))
    for name, shots in (("untouched", "0"), ("student", "1")):
        words = ["--model", str(student_folder), "--data", str(data_folder), "--output", str(folder / "runs" / name)]
        words += ["--name", name, "--number_few_shot", shots, "--bert_score_model", encoder, "--bert_score_layer", "2"]
        assert main(["evaluate", *words, *SHORT]) == 0
    path = folder / "runs" / "student" / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:3]:
        row["prediction"] = row["answers"][0]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "runs"


def test_bert_score_stands_in_files_and_table(
    scored: Path, student_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "100")
    encoder = str(scored.parent / "encoder")
    words = ["--model", str(student_folder), "--data", str(data_folder), "--output", str(tmp_path / "out"), *SHORT]
    assert main(["evaluate", *words, "--bert_score_model", encoder, "--bert_score_layer", "3"]) == 0
    shown = capsys.readouterr().out
    assert re.search("F1 .* EM .* ROUGE-Lsum .* BERTScore .* examples", shown)
    assert "encoder, layer 3, bert-score 0.3.13" in " ".join(shown.split())
    record = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert record["settings"]["bert_score"] == {"model": encoder, "layer": 3, "version": "0.3.13"}
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    expected = bert_score_scores(
        [row["prediction"] for row in rows], [row["answers"] for row in rows], model=encoder, layer=3
    )
    for part, values in expected.items():
        assert [row["scores"][f"bert_score_{part}"] for row in rows] == pytest.approx(values, abs=1e-6)
        assert record["scores"][f"bert_score_{part}"] == pytest.approx(sum(values) / 4, abs=1e-6)
    assert 0 < record["scores"]["bert_score_f1"] < 1


def test_compare_gives_differences_with_intervals(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [str(scored / "untouched"), str(scored / "student")]
    words = ["compare", *places, "--metrics", "f1", "exact_match", "--seed", "3", "--resamples", "500", "--json"]
    assert main([*words, "--examples", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = compare_predictions(*places, metrics=["f1", "exact_match"], seed=3, resamples=500)
    assert expected["exact_match"].difference == pytest.approx(0.75)
    assert (found["base"], found["models"][0]["name"]) == ("untouched", "student")
    for metric, each in expected.items():
        told = found["models"][0]["metrics"][metric]
        assert (told["difference"], told["low"], told["high"]) == (each.difference, each.low, each.high)
        assert told["excludes_zero"] is each.excludes_zero
    most = found["most_different"]["examples"]
    assert [answer["score"] for answer in most[0]["answers"]] == [0.0, 1.0]
    assert most[0]["answers"][1]["prediction"] == most[0]["references"][0]
    assert len(most) == 3


def test_compare_shows_a_table_and_examples(
    scored: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    places = [str(scored / "untouched"), str(scored / "student"), str(scored / "student" / "predictions.jsonl")]
    assert main(["compare", "--seed", "5", *places[:2], "--examples", "2"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert [name for name in ("F1", "EM", "ROUGE-Lsum", "BERTScore") if re.search(rf"│ {name} +│ +│", shown)] == [
        "F1", "EM", "ROUGE-Lsum", "BERTScore",
    ]  # fmt: skip
    assert re.search(r"student .* 75\.00 .* \+75\.00 .* \+25\.00 to \+100\.00 .* yes", shown)
    told = " ".join(shown.split())
    assert "10,000 resamples, seed 5. ROUGE: best of the references. BERTScore:" in told
    assert shown.count("│ references") == 2
    assert main(["compare", "--runs", *places, "--json"]) == 0  # two of one name: told apart by their places
    names = [model["name"] for model in json.loads(capsys.readouterr().out)["models"]]
    assert names == [f"student ({place})" for place in places[1:]]


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("md", "| F1 | student |"),
        ("csv", "f1,untouched,student,"),
        ("tex", r"F1 & student & "),
        ("json", '"base": "untouched"'),
    ],
)
def test_compare_writes_its_table(scored: Path, tmp_path: Path, ending: str, expected: str) -> None:
    words = ["compare", str(scored / "untouched"), str(scored / "student"), "--metrics", "f1"]
    output = tmp_path / f"table.{ending}"
    assert main([*words, "--output", str(output)]) == 0
    text = output.read_text()
    assert expected in text
    output.write_text("mine")
    assert main([*words, "--output", str(output)]) == 2
    assert output.read_text() == "mine"
    assert main([*words, "--output", str(output), "--overwrite"]) == 0
    assert output.read_text() == text


def test_mean_and_best_over_the_references(
    student_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", str(student_folder), "--data", str(data_folder), *SHORT]
    for how in ("best", "mean"):
        assert main(["evaluate", *common, "--output", str(tmp_path / how), "--rouge_aggregate", how]) == 0
        assert json.loads((tmp_path / how / "scores.json").read_text())["settings"]["rouge_aggregate"] == how
    capsys.readouterr()
    both = [str(tmp_path / "best"), str(tmp_path / "mean")]
    assert main(["compare", *both, "--metrics", "rougeL"]) == 2
    assert "--rouge_aggregate" in capsys.readouterr().err
    assert main(["compare", *both, "--metrics", "rougeL", "--rouge_aggregate", "mean", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["notes"] == ["ROUGE: mean of the references."]
    record = found["models"][0]["metrics"]["rougeL"]
    expected = json.loads((tmp_path / "mean" / "scores.json").read_text())["scores"]["rougeL"]
    assert record["base_score"] == record["score"] == pytest.approx(expected)


def test_a_report_has_the_baseline_that_is_named(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "report.html")
    assert main(["report", "--runs", str(scored), "--output", output, "--baseline", "studnet"]) == 2
    assert "did you mean 'student'" in capsys.readouterr().err
    assert main(["report", str(scored), "--output", output, "--baseline", "student"]) == 0
    text = Path(output).read_text()
    assert "Difference to student" in text
    assert "BERTScore" in text


def test_a_report_that_ends_as_a_table_is_one(scored: Path, tmp_path: Path) -> None:
    assert main(["report", str(scored), "--output", str(tmp_path / "results.csv")]) == 0
    head, *rows = (tmp_path / "results.csv").read_text().splitlines()
    assert {"f1", "bert_score_f1", "bert_score_layer"} <= set(head.split(","))
    assert {row.split(",")[0] for row in rows} == {"untouched", "student"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: [a], "at least one other"),
        (lambda a, b: [a, b, "--metrics", "f11"], "f1"),
        (lambda a, b: [a, "no/such/folder"], "no/such/folder"),
        (lambda a, b: [a, b, "--confidence", "2"], "confidence"),
        (lambda a, b: [a, b, "--output", "table.docx"], ".docx"),
        (lambda a, b: [a, b, "--metric", "f1"], "--metrics"),
    ],
)
def test_mistakes_of_compare(scored: Path, capsys: pytest.CaptureFixture[str], change, message: str) -> None:
    assert main(["compare", *change(str(scored / "untouched"), str(scored / "student"))]) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith("crosskd compare: error: ")
    assert message in err
    assert "\n" not in err


def test_other_examples_are_not_compared(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(scored / "student", tmp_path / "fewer")
    path = tmp_path / "fewer" / "predictions.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    assert main(["compare", str(scored / "untouched"), str(tmp_path / "fewer")]) == 2
    assert "different examples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bert_score_layer", "2"], "--bert_score_model"),
        (["--bert_score_model", "no/such/folder/there", "--bert_score_layer", "2"], "--bert_score_model"),
        (["--bert_score_model", "ENCODER"], "recommends no layer for"),
        (["--bert_score_model", "ENCODER", "--bert_score_layer", "9"], "from 1 to 3"),
        (["--rouge_aggregate", "worst"], "worst"),
    ],
)
def test_mistakes_of_evaluate_come_before_the_model_is_loaded(
    scored: Path, student_folder: Path, data_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, words: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("crosskd.cli.evaluate.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    common = ["--model", str(student_folder), "--data", str(data_folder), "--output", str(tmp_path / "out")]
    words = [str(scored.parent / "encoder") if word == "ENCODER" else word for word in words]
    assert main(["evaluate", *common, *words]) == 2
    assert message in capfd.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_before_the_model_is_loaded(
    scored: Path, student_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "bert_score", None)
    monkeypatch.setattr("crosskd.cli.evaluate.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    common = ["--model", str(student_folder), "--data", str(data_folder), "--output", str(tmp_path / "out")]
    words = ["--bert_score_model", str(scored.parent / "encoder"), "--bert_score_layer", "2"]
    assert main(["evaluate", *common, *words]) == 2
    assert 'pip install "crosskd[bert-score]"' in capsys.readouterr().err
