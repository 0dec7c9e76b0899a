"""Models are found, checked and loaded, or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from crosskd.errors import UsageError
from crosskd.hashes import file_sha256
from crosskd.models import gguf
from crosskd.models.limits import context_length
from crosskd.models.load import load_model
from helpers_models import tiny_model
from helpers_tokenizers import byte_level_tokenizer


def test_a_folder_gives_model_and_tokenizer(student_folder: Path) -> None:
    loaded = load_model(student_folder, dtype="bfloat16")
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert loaded.name == str(student_folder)
    assert loaded.tokenizer.pad_token_id is not None
    assert context_length(loaded.model.config, loaded.tokenizer) == 512


def test_the_tokenizers_limit_counts_too(student_folder: Path) -> None:
    loaded = load_model(student_folder)
    loaded.tokenizer.model_max_length = 100
    assert context_length(loaded.model.config, loaded.tokenizer) == 100


def test_pickled_weights_need_a_word(student_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(student_folder, folder)
    (folder / "model.safetensors").unlink()
    weights = dict(tiny_model("llama", seed=1).state_dict())
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="--allow_pickle"):
        load_model(folder)
    loaded = load_model(folder, allow_pickle=True)
    torch.testing.assert_close(dict(loaded.model.named_parameters())["lm_head.weight"].data, weights["lm_head.weight"])


def test_remote_code_needs_a_word(student_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(student_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="unheard_of", auto_map={"AutoConfig": "configuration.C", "AutoModelForCausalLM": "m.M"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="--trust_remote_code"):
        load_model(folder)


def test_a_tokenizer_without_an_end_is_refused(student_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "endless"
    shutil.copytree(student_folder, folder)
    tokenizer = byte_level_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    with pytest.raises(UsageError, match="no end-of-sequence token"):
        load_model(folder)


def test_a_model_without_a_tokenizer_takes_one_from_elsewhere(
    student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(student_folder / name, tmp_path / name)
    with pytest.raises(UsageError, match="tokenizer"):
        load_model(tmp_path)
    loaded = load_model(tmp_path, tokenizer=teacher_folder)
    assert loaded.tokenizer.get_vocab() == load_model(teacher_folder).tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none" / "x" / "y", "no such folder"),
        (lambda p: p, "without config.json"),
        (lambda p: _file(p / "weights.bin"), "a .bin file"),
        (lambda p: p / "model.gguf", "no such file"),
        (lambda p: _file(p / "broken.gguf"), "GGUF file"),
    ],
)
def test_what_is_no_model_is_named(make, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(make(tmp_path))


def test_a_gguf_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, made = _file(tmp_path / "model.gguf"), []

    def convert(source: Path, folder: Path) -> None:
        made.append(source)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(gguf, "_write_plain_model", convert)
    first = gguf.convert_gguf(path)
    assert gguf.convert_gguf(path) == first
    assert made == [path]
    assert json.loads((first / "crosskd_source.json").read_text())["sha256"] == file_sha256(path)
    path.write_bytes(b"other bytes")
    assert gguf.convert_gguf(path) != first


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSKD_CACHE", str(tmp_path / "cache"))

    def fail(source: Path, folder: Path) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "_write_plain_model", fail)
    with pytest.raises(KeyboardInterrupt):
        gguf.convert_gguf(_file(tmp_path / "model.gguf"))
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


@pytest.mark.real_models
def test_the_demo_student_loads_from_its_gguf_file() -> None:
    from crosskd.cli.demo_models import find_demo_models

    try:
        _, student = find_demo_models()
    except UsageError as error:
        pytest.skip(str(error))
    loaded = load_model(student)
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        best = loaded.model(**ids).logits[0, -1].argmax()
    assert loaded.tokenizer.decode(best) == " Paris"


def _file(path: Path) -> Path:
    path.write_bytes(b"not a model")
    return path
