"""``crosskd inspect``: real command lines over folders of tiny models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from crosskd.cli.main import main
from helpers_models import tiny_model


def inspect_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main(["inspect", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def pair(teacher_folder: Path, student_folder: Path) -> tuple[str, str]:
    return str(teacher_folder), str(student_folder)


def test_json_holds_models_tokens_costs_and_warnings(
    pair: tuple[str, str], data_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    found = inspect_json(capsys, *pair, "--data", str(data_folder), "--limit", "5", "--number_few_shot", "1")
    for role, family in (("teacher", "gemma3"), ("student", "llama")):
        model = tiny_model(family)
        assert found["models"][role]["parameters"] == sum(weight.numel() for weight in model.parameters())
        assert found["models"][role]["output_entries"] == 540
    student = tiny_model("llama")
    outside = student.lm_head.weight.numel() + student.get_input_embeddings().weight.numel()
    assert found["models"]["student"]["layer_parameters"] == found["models"]["student"]["parameters"] - outside
    assert found["data"]["examples"] == 12
    assert found["tokenizers"]["examples"] == 5
    assert found["tokenizers"]["teacher"]["limit"] == 512
    assert found["tokenizers"]["teacher"]["shared_prompt_tokens"] > 0
    assert {size["method"] for size in found["cache"]} == {"multilevel_ot", "uld", "mined"}
    assert found["time"]["student_epoch_seconds"] > 0
    assert all(set(warning) == {"code", "text"} for warning in found["warnings"])


def test_the_cache_is_as_large_as_expected(
    pair: tuple[str, str], data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data_folder), "--number_few_shot", "1"]
    found = inspect_json(capsys, *pair, *words)
    expected = next(size for size in found["cache"] if size["method"] == "multilevel_ot")
    assert (expected["bytes_per_token"], expected["bytes_per_example"]) == (105, 200)
    assert main(["cache", "--teacher", pair[0], *words, "--output", str(tmp_path / "cache")]) == 0
    written = 0
    for path in (tmp_path / "cache").glob("*.safetensors"):
        with safe_open(path, framework="pt") as shard:
            tensors = [shard.get_tensor(name) for name in shard.keys()]  # noqa: SIM118
        written += sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
    assert written == pytest.approx(expected["total_bytes"], rel=0.05)


def test_tables_fit_eighty_columns(
    pair: tuple[str, str], data_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", *pair, "--data", str(data_folder), "--number_few_shot", "1"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for title in ("Models", "How text is cut", "Vocabularies", "Answer lengths", "Cost, estimated"):
        assert title in shown


def test_what_is_known_to_hurt_is_said(
    student_folder: Path,
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shutil.copytree(student_folder, tmp_path / "twin")
    words = ["inspect", str(tmp_path / "twin"), str(student_folder), "--data", str(data_folder)]
    assert main([*words, "--number_few_shot", "0"]) == 0
    shown = capsys.readouterr().out
    assert "Watch out" in shown
    assert "have the same vocabulary" in " ".join(shown.split())


def test_models_come_by_place_by_flag_or_from_a_file(
    pair: tuple[str, str], data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--data", str(data_folder), "--number_few_shot", "0"]
    file = tmp_path / "pair.yaml"
    file.write_text(f"teacher: {pair[0]}\nstudent: {pair[1]}\ndata: {data_folder}\nnumber_few_shot: 0\n")
    ways = [
        [*pair, *few],
        [*few, "--teacher", pair[0], "--student", pair[1]],
        ["--student", pair[1], *few, pair[0]],
        ["--json", *pair, *few],
        ["--config", str(file)],
    ]
    found = [inspect_json(capsys, *words) for words in ways]
    for one in found:
        assert one["tokenizers"] == found[0]["tokenizers"]
        assert [one["models"][role]["name"] for role in ("teacher", "student")] == list(pair)
    swapped = inspect_json(capsys, "--config", str(file), pair[1], pair[0])
    assert swapped["models"]["teacher"]["name"] == pair[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{teacher}"], "required: --student"),
        (["{teacher}", "{student}", "third"], "TEACHER STUDENT and flags"),
        (["{teacher}", "/nowhere/at/all"], "no such folder"),
        (["{teacher}", "{student}", "--limit", "0"], "--limit"),
        (["{teacher}", "{student}", "--split", "tran"], "did you mean 'train'"),
        (["{teacher}", "{student}", "--studnt", "x"], "did you mean '--student'"),
        (["{teacher}", "{student}", "--max_length", "3"], "none that fits the teacher's 512 tokens and"),
    ],
)
def test_bad_input_gets_one_line(
    words: list[str], said: str, pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    places = dict(zip(("teacher", "student"), pair, strict=True))
    assert main(["inspect", *(word.format(**places) for word in words)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("crosskd inspect: error: ")
    assert said in lines[0]
