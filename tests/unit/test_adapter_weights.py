"""Adapters in pickle format are read where that was allowed only, as are the models that they belong to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft.utils.save_and_load import get_peft_model_state_dict

from crosskd.cli.main import main
from crosskd.errors import UsageError
from crosskd.models.adapters import with_lora
from crosskd.models.load import load_model
from helpers_models import save_student

IDS = torch.tensor([[5, 6, 7, 8]])


def save_adapter(base: Path, folder: Path, *, pickled: bool) -> torch.Tensor:
    """An adapter that changes the model; the logits that it gives."""
    model = with_lora(load_model(base).model, rank=2, alpha=4, dropout=0.0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    if pickled:
        (folder / "adapter_model.safetensors").unlink()
        torch.save(get_peft_model_state_dict(model), folder / "adapter_model.bin")
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_pickled_adapter_needs_a_word(student_folder: Path, tmp_path: Path) -> None:
    expected = save_adapter(student_folder, tmp_path / "adapter", pickled=True)
    with pytest.raises(UsageError, match=r"adapter_model\.bin.*--allow_pickle"):
        load_model(tmp_path / "adapter")
    loaded = load_model(tmp_path / "adapter", allow_pickle=True)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(load_model(student_folder).model(input_ids=IDS).logits, expected, atol=1e-2)


def test_so_does_an_adapter_whose_model_is_pickled(tmp_path: Path) -> None:
    base = save_student(tmp_path / "base")
    expected = save_adapter(base, tmp_path / "adapter", pickled=False)
    weights = dict(load_model(base).model.state_dict())
    (base / "model.safetensors").unlink()
    torch.save(weights, base / "pytorch_model.bin")
    with pytest.raises(UsageError, match="--allow_pickle"):
        load_model(tmp_path / "adapter")
    loaded = load_model(tmp_path / "adapter", allow_pickle=True)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_verbs_say_it_in_one_line(
    student_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_adapter(student_folder, tmp_path / "adapter", pickled=True)
    words = ["evaluate", "--model", str(tmp_path / "adapter"), "--data", str(data_folder), "--max_new_tokens", "1"]
    capsys.readouterr()
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "--allow_pickle" in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert main([*words, "--output", str(tmp_path / "out"), "--allow_pickle"]) == 0


def test_an_adapter_without_weights_and_one_that_is_not_finite(student_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_adapter(student_folder, tmp_path / "adapter", pickled=False)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    next(iter(weights.values()))[0, 0] = torch.nan
    save_file(weights, path)
    with pytest.raises(UsageError, match="NaN or infinite"):
        load_model(tmp_path / "adapter")
    path.unlink()
    with pytest.raises(UsageError, match=r"no weights.*adapter_model\.safetensors"):
        load_model(tmp_path / "adapter")
