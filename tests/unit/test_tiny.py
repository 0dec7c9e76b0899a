"""Tiny stand-ins: the family of each name, its tokenizer's kind, the same weights each time, answers that hold text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crosskd.errors import UsageError
from crosskd.evaluation.generation import generate_answers
from crosskd.hashes import cache_directory, file_sha256
from crosskd.models.load import load_model, load_tokenizer
from crosskd.models.tiny import FAMILIES, tiny_stand_in
from crosskd.text.prompts import PromptBuilder
from crosskd.text.tasks import load_task

SOURCES = {
    "facebook/opt-350m": ("opt", False),
    "EleutherAI/pythia-410m-deduped": ("gpt_neox", False),
    "bigscience/bloomz-560m": ("bloom", False),
    "bigscience/mt0-small": ("mt5", False),
    "google/mt5-small": ("mt5", False),
    "google/flan-t5-small": ("t5", False),
    "google-t5/t5-small": ("t5", False),
    "meta-llama/Llama-2-7b-chat-hf": ("llama", True),
    "meta-llama/Llama-2-7b-hf": ("llama", False),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("llama", True),
    "mistralai/Mistral-7B-Instruct-v0.3": ("mistral", True),
    "Qwen/Qwen-7B-Chat": ("qwen2", True),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama", True),
    "google/gemma-3-270m-it": ("gemma3_text", True),
    "models/SmolLM2-135M-Instruct.Q4_1.gguf": ("llama", True),
    "somebody/something-new": ("llama", False),
}
PLAIN = "Context: Ann lived in Rome, in house 12.\nQuestion: where did Ann live?\nAnswer:"


@pytest.mark.parametrize("source", SOURCES)
def test_a_stand_in_is_of_its_family_and_answers(source: str) -> None:
    loaded = load_model(tiny_stand_in(source, "teacher"), encoder_decoder=True)
    model_type, chat = SOURCES[source]
    assert loaded.model.config.model_type == model_type
    assert (loaded.tokenizer.chat_template is not None) == chat
    assert len(loaded.tokenizer) == loaded.model.config.vocab_size <= 800
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) < 300_000
    assert loaded.model.config.eos_token_id == loaded.tokenizer.eos_token_id
    prompts = [PromptBuilder(loaded.tokenizer, load_task("qa"), number_few_shot=shots) for shots in (0, 5)]
    ids = [builder.build({"context": "Ann lives in Rome.", "question": "where is Ann?"}).ids for builder in prompts]
    assert len(ids[1]) < 4096
    answers = generate_answers(loaded.model, loaded.tokenizer, ids, max_new_tokens=12)
    assert all(answer.strip() for answer in answers)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_survives_its_tokenizer(family: str) -> None:
    tokenizer = FAMILIES[family].tokenizer(chat=False)
    ids = tokenizer(PLAIN, add_special_tokens=False).input_ids
    assert len(ids) < len(PLAIN)
    assert str(tokenizer.decode(ids)).strip() == (
        PLAIN.replace("\n", " ") if FAMILIES[family].kind == "unigram" else PLAIN
    )


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_rare_characters_fall_back_to_bytes(kind: str) -> None:
    family = next(family for family in FAMILIES.values() if family.kind == kind)
    tokenizer = family.tokenizer(chat=False)
    ids = tokenizer("中🙂", add_special_tokens=False).input_ids
    assert str(tokenizer.decode(ids)).strip() == "中🙂"
    assert tokenizer.unk_token_id not in ids


def test_families_and_roles_differ_and_one_family_is_made_once() -> None:
    student, teacher = (tiny_stand_in("facebook/opt-350m", role) for role in ("student", "teacher"))
    assert student != teacher
    assert file_sha256(student / "model.safetensors") != file_sha256(teacher / "model.safetensors")
    before = (student / "model.safetensors").stat().st_mtime_ns
    assert tiny_stand_in("facebook/opt-1.3b") == student
    assert (student / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in (cache_directory() / "tiny").iterdir() if path.name.startswith(".")] == []
    sizes = [family.vocab_size for family in FAMILIES.values()]
    assert len(set(sizes)) == len(sizes)


def test_the_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    tiny_stand_in("bigscience/bloom-560m", "teacher")
    assert torch.equal(torch.rand(1), expected)


def test_another_process_makes_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "from crosskd.models.tiny import tiny_stand_in as t\nfor n in ('mt0', 'mistral-it', 'opt'): t(n)"
    other = tmp_path / "other"
    monkeypatch.setenv("CROSSKD_CACHE", str(other))
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    monkeypatch.setenv("CROSSKD_CACHE", str(tmp_path / "here"))
    for name in ("mt0", "mistral-it", "opt"):
        here = tiny_stand_in(name)
        for file in ("model.safetensors", "tokenizer.json"):
            assert file_sha256(here / file) == file_sha256(other / "tiny" / here.name / file)


def test_a_folder_is_named_by_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "gpt_neox"}')
    assert load_model(tiny_stand_in(tmp_path / "mine")).model.config.model_type == "gpt_neox"
    (tmp_path / "mine" / "config.json").write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        tiny_stand_in(tmp_path / "mine")
    assert load_tokenizer(tiny_stand_in("EleutherAI/pythia-70m")).eos_token == "<|endoftext|>"


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'student'"):
        tiny_stand_in("facebook/opt-350m", "studnt")  # pyright: ignore[reportArgumentType]
