"""A model's files before anything is loaded: what is missing or damaged is named, what is whole passes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from crosskd.errors import UsageError
from crosskd.models.files import check_model_files


@pytest.fixture
def model(student_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(student_folder, tmp_path / "model"))


def sharded(model: Path, *names: str) -> None:
    """Say that the weights lie in these files."""
    index = {"weight_map": {f"layer.{number}": name for number, name in enumerate(names)}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def adapter(folder: Path, base: Path | str, weights: str = "adapter_model.safetensors") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (folder / weights).write_bytes(b"")
    return folder


def test_a_whole_model_passes(model: Path) -> None:
    check_model_files(model)
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    shutil.copy(model / "model-1.safetensors", model / "model-2.safetensors")
    sharded(model, "model-1.safetensors", "model-2.safetensors")
    check_model_files(model)


def test_a_missing_or_damaged_shard_is_named(model: Path) -> None:
    sharded(model, "model.safetensors", "model-2.safetensors")
    with pytest.raises(UsageError, match=r"no file model-2\.safetensors"):
        check_model_files(model)
    whole = (model / "model.safetensors").read_bytes()
    (model / "model-2.safetensors").write_bytes(whole[:-1])
    with pytest.raises(UsageError, match=r"model-2\.safetensors is damaged"):
        check_model_files(model)
    (model / "model.safetensors.index.json").write_text('{"weight_map": 7}')
    with pytest.raises(UsageError, match="no weight_map"):
        check_model_files(model)


def test_weights_may_be_elsewhere_or_pickled_where_that_is_asked_for(model: Path) -> None:
    (model / "model.safetensors").unlink()
    check_model_files(model, weights=False)
    with pytest.raises(UsageError, match="no weights"):
        check_model_files(model)
    (model / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"pytorch_model\.bin.*--allow_pickle"):
        check_model_files(model)
    check_model_files(model, allow_pickle=True)


def test_an_adapter_is_looked_at_with_its_base(model: Path, tmp_path: Path) -> None:
    check_model_files(adapter(tmp_path / "one", model))
    with pytest.raises(UsageError, match=r"adapter_model\.bin.*--allow_pickle"):
        check_model_files(adapter(tmp_path / "pickled", model, "adapter_model.bin"))
    with pytest.raises(UsageError, match="no such folder"):
        check_model_files(adapter(tmp_path / "lost", tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="no base_model_name_or_path"):
        check_model_files(adapter(tmp_path / "nameless", ""))
    check_model_files(adapter(tmp_path / "itself", tmp_path / "itself"))  # told when it is loaded, not in a circle


def test_a_damaged_tokenizer_is_named(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").write_text('{"model": 7}')
    with pytest.raises(UsageError, match="tokenizer of"):
        check_model_files(model)
    with_own = adapter(tmp_path / "with_own", model)
    (with_own / "tokenizer_config.json").write_text("{}")
    check_model_files(with_own)
    for path in model.glob("tokenizer*"):
        path.unlink()
    check_model_files(model)  # other files may hold it, of which only its class knows


def test_a_hub_id_is_looked_up_on_this_machine_only_where_there_is_no_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    check_model_files("nobody/nothing")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="no copy from the hub"):
        check_model_files("nobody/nothing")
    with pytest.raises(UsageError, match="'a b'"):
        check_model_files("a b")
    kept = tmp_path / "models--nobody--nothing"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    (kept / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (kept / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    check_model_files("nobody/nothing")
