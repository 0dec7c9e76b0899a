"""The model card: what the hub reads is complete and true, and nothing tells where things lay on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from crosskd.cli.main import main
from crosskd.models.card import CARD, CardFacts, hub_id, shown_name, write_card


def card(folder: Path, **facts: Any) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a card, read as the hub's own library reads it."""
    usual: dict[str, Any] = {
        "base_model": "facebook/opt-350m", "teacher": "meta-llama/Llama-2-7b-chat-hf", "method": "multilevel_ot",
        "task": "qa", "data": "sample:qed", "examples": 3,
    }  # fmt: skip
    path = write_card(folder, CardFacts(**{**usual, **facts}))
    return ModelCard.load(path).data.to_dict(), path.read_text()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder as the hub's library downloads it."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / CARD).write_text("---\nlicense: other\nlicense_name: opt\nlicense_link: https://x.org/l\n---\n# OPT\n")
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "facebook/opt-350m"}))
    return folder


def test_metadata_of_a_hub_model(tmp_path: Path) -> None:
    metadata, text = card(tmp_path)
    assert metadata == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "facebook/opt-350m",
        "base_model_relation": "finetune",
        "tags": ["crosskd", "knowledge-distillation", "multilevel-ot"],
    }
    assert "`meta-llama/Llama-2-7b-chat-hf`" in text
    metadata, _ = card(tmp_path, adapter=True)
    assert (metadata["library_name"], metadata["base_model_relation"]) == ("peft", "adapter")


def test_a_folder_is_asked_for_its_id_and_licence(base: Path, tmp_path: Path) -> None:
    metadata, text = card(tmp_path, base_model=str(base))
    assert metadata["base_model"] == "facebook/opt-350m"
    assert [metadata[name] for name in ("license", "license_name", "license_link")] == [
        "other", "opt", "https://x.org/l",
    ]  # fmt: skip
    assert str(tmp_path) not in text
    (base / CARD).write_text("---\nbase_model: facebook/opt-125m\nlicense: mit\n---\n")
    metadata, _ = card(tmp_path, base_model=str(base))
    assert (metadata["base_model"], metadata["license"]) == ("facebook/opt-125m", "mit")


@pytest.mark.parametrize("config", ["{}", "no JSON", '{"_name_or_path": "/home/me/model"}', '{"_name_or_path": "."}'])
def test_what_only_this_machine_has_is_no_base_model(config: str, base: Path, tmp_path: Path) -> None:
    (base / CARD).write_text("---\nlicense: [: broken\n---\n")
    (base / "config.json").write_text(config)
    metadata, text = card(tmp_path, base_model=str(base), teacher=str(base / "x.gguf"), task=str(base / "own.yaml"))
    assert "base_model" not in metadata
    assert "license" not in metadata
    assert str(tmp_path) not in text
    assert "| Student | `base` |" in text
    assert "| Teacher | `x.gguf` |" in text
    assert "| Task | `own.yaml` |" in text


def test_a_path_into_the_hub_s_cache_is_a_hub_id() -> None:
    assert hub_id("/c/hub/models--facebook--opt-350m/snapshots/0a1b") == "facebook/opt-350m"
    assert shown_name("/c/hub/models--gpt2-xl--x.y/snapshots/0a1b/model.gguf") == "gpt2-xl/x.y"
    assert hub_id("gpt2") == "gpt2"
    assert hub_id("./gpt2") is None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("squad/plain:en", ["squad/plain"]),
        ("knkarthick/dialogsum", ["knkarthick/dialogsum"]),
        ("raw/rows.jsonl", None),
        ("/home/me/rows", None),
        ("sample:qed", None),
    ],
)
def test_data_of_the_hub_are_named(source: str, expected: list[str] | None, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "prepare_summary.json").write_text(json.dumps({"source": source}))
    metadata, text = card(tmp_path, data=str(data))
    assert metadata.get("datasets") == expected
    assert str(tmp_path) not in text


def test_a_trained_and_scored_student_tells_no_local_path(
    student_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    run, shots = tmp_path / "run", ["--number_few_shot", "0"]
    words = ["--student", str(student_folder), "--teacher", str(teacher_folder), "--data", str(data_folder), *shots]
    assert main(["distill", *words, "--output_dir", str(run), "--max_steps", "1"]) == 0
    words = ["--model", str(run), "--data", str(data_folder), "--max_new_tokens", "3"]
    assert main(["evaluate", *words, "--output", str(tmp_path / "scores")]) == 0
    text = (run / CARD).read_text()
    assert f"4 examples of {data_folder.name} (validation)" in text
    for path in (student_folder, teacher_folder, data_folder, tmp_path):
        assert str(path.parent) not in text
