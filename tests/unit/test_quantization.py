"""Teachers in 8 and 4 bit."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from crosskd import load_model
from crosskd.errors import UsageError
from crosskd.models import quantization
from crosskd.models.quantization import quantization_of, quantization_options
from helpers_tokenizers import byte_level_tokenizer

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra bitsandbytes"
)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"crosskd\[bitsandbytes\]"):
        quantization_options("8bit")


def test_unknown_values_and_none() -> None:
    assert quantization_options("none") == {}
    with pytest.raises(UsageError, match="none, 8bit or 4bit"):
        quantization_options("2bit")


@needs_bitsandbytes
@pytest.mark.parametrize(("name", "kind", "least"), [("8bit", "Linear8bitLt", 0.99), ("4bit", "Linear4bit", 0.9)])
def test_weights_are_quantized_and_answers_stay_close(tmp_path: Path, name: str, kind: str, least: float) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=400, initializer_range=0.2)).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    plain = load_model(tmp_path).model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes says that it computes in float16
        model = load_model(tmp_path, quantization=name).model  # pyright: ignore[reportArgumentType]
        ids = torch.arange(5, 25)[None]
        with torch.no_grad():
            expected, found = plain(ids).logits, model(ids).logits.float()
    assert type(model.model.layers[0].mlp.up_proj).__name__ == kind
    assert quantization_of(model) == name
    assert quantization_of(plain) == "none"
    similarity = torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    assert least < similarity < 0.999999
