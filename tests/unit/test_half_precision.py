"""A student in half precision is warned of, with what it costs at the learning rate of the run."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from crosskd import DistillationConfig, DistillationTrainer, load_model
from crosskd.training.student import trained_model
from helpers_models import examples, tiny_model

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("crosskd"), "propagate", True)


def config(folder: Path, **settings: Any) -> DistillationConfig:
    return DistillationConfig(output_dir=str(folder), method="sft", disable_tqdm=True, **settings)


def test_a_checkpoint_in_bfloat16_that_is_loaded_as_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from helpers_tokenizers import byte_level_tokenizer

    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "stored")  # pyright: ignore[reportArgumentType]
    byte_level_tokenizer().save_pretrained(tmp_path / "stored")
    loaded = load_model(tmp_path / "stored")
    assert loaded.model.dtype == torch.bfloat16
    DistillationTrainer(loaded, None, config(tmp_path / "run"), examples(2))
    [line] = [record.getMessage() for record in caplog.records if "rounding" in record.getMessage()]
    assert "weights are bfloat16" in line
    assert 'load_model(..., dtype="float32"), --student_dtype float32' in line
    caplog.clear()
    DistillationTrainer(str(tmp_path / "stored"), None, config(tmp_path / "run"), examples(2))  # by name: in float32
    assert "rounding" not in caplog.text


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("learning_rate", [1e-6, 1e-5, 1e-3])
def test_the_share_is_that_of_weights_which_never_move(
    name: str, learning_rate: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = tiny_model("llama").to(DTYPES[name])  # pyright: ignore[reportArgumentType]
    trained_model(student, config(tmp_path, learning_rate=learning_rate))
    [line] = [record.getMessage() for record in caplog.records]
    found = re.search(r"beyond (\S+), which are (\d+) %", line)
    assert found is not None
    limit, share = float(found[1]), int(found[2])
    weights = torch.cat([p.detach().flatten() for p in student.parameters()])
    assert limit == pytest.approx(4 * learning_rate / torch.finfo(DTYPES[name]).eps, rel=0.05)  # two digits are shown
    moved = (weights - learning_rate * weights.sign()) != weights
    beyond = weights.abs() > 1.05 * limit
    assert not moved[beyond].any()
    assert moved[weights.abs() < limit / 4.2].all()
    assert share == pytest.approx(100 * float((weights.abs() > limit).float().mean()), abs=3)


@pytest.mark.parametrize("settings", [{"peft": "lora"}, {}])
def test_what_is_trained_in_float32_is_not_warned_of(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dtype = torch.bfloat16 if settings else torch.float32
    trained_model(tiny_model("llama").to(dtype), config(tmp_path, **settings))  # pyright: ignore[reportArgumentType]
    assert "rounding" not in caplog.text


def test_frozen_weights_are_not_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    student = tiny_model("llama")
    for parameter in student.model.layers[0].parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    trained_model(student, config(tmp_path, freeze_layers=1))
    assert "rounding" not in caplog.text
