"""`evaluate`, `compare` and `report` as command lines: BERTScore, aggregates, a baseline, intervals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from crosskd.cli.main import main
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


def test_bert_score_stands_in_file_and_table(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((scored / "untouched" / "scores.json").read_text())
    assert 0 < record["scores"]["bert_score_f1"] < 1
    assert record["settings"]["bert_score"]["layer"] == 2
    assert record["settings"]["bert_score"]["model"].endswith("encoder")
    assert main(["compare", str(scored / "untouched"), str(scored / "student"), "--json"]) == 0
    assert "bert" in capsys.readouterr().out.lower()


def test_compare_gives_differences_with_intervals(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [str(scored / "untouched"), str(scored / "student")]
    assert (
        main(["compare", *places, "--metrics", "f1", "exact_match", "--seed", "3", "--resamples", "500", "--json"]) == 0
    )
    found = json.dumps(json.loads(capsys.readouterr().out))
    expected = compare_predictions(*places, metrics=["f1", "exact_match"], seed=3, resamples=500)
    assert expected["exact_match"].difference == pytest.approx(0.75)
    for metric in expected.values():
        assert str(metric.low) in found
        assert str(metric.high) in found


@pytest.mark.parametrize("ending", ["md", "csv", "tex", "json"])
def test_compare_writes_its_table(scored: Path, tmp_path: Path, ending: str) -> None:
    words = ["compare", str(scored / "untouched"), str(scored / "student"), "--metrics", "f1", "--examples", "2"]
    output = tmp_path / f"table.{ending}"
    assert main([*words, "--output", str(output)]) == 0
    text = output.read_text()
    assert "student" in text
    assert main([*words, "--output", str(output)]) == 2
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
    assert main(["compare", *both, "--metrics", "rougeL", "--rouge_aggregate", "mean"]) == 0


def test_a_report_has_the_baseline_that_is_named(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "report.html")
    assert main(["report", "--runs", str(scored), "--output", output, "--baseline", "studnet"]) == 2
    assert "did you mean 'student'" in capsys.readouterr().err
    assert main(["report", "--runs", str(scored), "--output", output, "--baseline", "student"]) == 0
    assert "student" in Path(output).read_text()


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
        (["--rouge_aggregate", "worst"], "worst"),
    ],
)
def test_mistakes_of_evaluate_come_before_any_work(
    student_folder: Path, data_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str],
    message: str,
) -> None:  # fmt: skip
    common = ["--model", str(student_folder), "--data", str(data_folder), "--output", str(tmp_path / "out")]
    assert main(["evaluate", *common, *words]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert "answers of" not in err
    assert not (tmp_path / "out").exists()
