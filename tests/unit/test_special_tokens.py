"""Where a tokenizer's end of sequence comes from when the tokenizer does not name one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from crosskd.errors import UsageError
from crosskd.models.load import load_tokenizer
from crosskd.models.special_tokens import ensure_special_tokens
from helpers_tokenizers import byte_level_tokenizer


def nameless() -> PreTrainedTokenizerFast:
    tokenizer = byte_level_tokenizer()
    tokenizer.eos_token = None
    tokenizer.pad_token = None
    return tokenizer


def saved(folder: Path, **files: dict[str, Any]) -> Path:
    """A model's folder whose tokenizer names nothing, with what its two configurations state."""
    nameless().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **files.get("config", {})}))
    if "generation_config" in files:
        (folder / "generation_config.json").write_text(json.dumps(files["generation_config"]))
    return folder


def ends(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, Any]:
    return tokenizer.eos_token, tokenizer.pad_token


def test_what_a_tokenizer_names_stays() -> None:
    tokenizer = ensure_special_tokens(byte_level_tokenizer(), "m", LlamaConfig(eos_token_id=0))
    assert ends(tokenizer) == ("</s>", "<pad>")


def test_padding_falls_back_on_the_end_of_sequence() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = None
    assert ends(ensure_special_tokens(tokenizer, "m")) == ("</s>", "</s>")


def test_its_own_other_name_comes_before_the_configuration() -> None:
    tokenizer = nameless()
    tokenizer.eod_id = 4
    assert ends(ensure_special_tokens(tokenizer, "m", LlamaConfig(eos_token_id=2))) == ("<|turn|>", "<|turn|>")


@pytest.mark.parametrize("config", [LlamaConfig(eos_token_id=2), GenerationConfig(eos_token_id=[2, 4])])
def test_a_configuration_at_hand_is_asked(config: Any) -> None:
    assert ends(ensure_special_tokens(nameless(), "m", config)) == ("</s>", "</s>")


@pytest.mark.parametrize(
    ("files", "end"),
    [
        ({"generation_config": {"eos_token_id": [4, 2]}, "config": {"eos_token_id": 2}}, "<|turn|>"),
        ({"generation_config": {"do_sample": False}, "config": {"eos_token_id": 2}}, "</s>"),
        ({"config": {"eos_token_id": [2]}}, "</s>"),
    ],
)
def test_the_files_beside_it_are_read(files: dict[str, Any], end: str, tmp_path: Path) -> None:
    assert ends(load_tokenizer(saved(tmp_path / "model", **files))) == (end, end)


def test_nothing_that_names_an_end_is_said_in_one_line(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", generation_config={})
    with pytest.raises(UsageError, match=r"tokenizer of .*model': got 'no end-of-sequence token'; .*; set eos"):
        load_tokenizer(folder)


class Locked(PreTrainedTokenizerFast):
    """A tokenizer that refuses new special tokens."""

    def __setattr__(self, key: str, value: Any) -> None:
        if key in ("eos_token", "pad_token") and getattr(self, "locked", False):
            raise NotImplementedError("not yours to set")
        super().__setattr__(key, value)


def test_a_tokenizer_that_refuses_a_padding_token_does_without(tmp_path: Path) -> None:
    nameless().save_pretrained(tmp_path)
    tokenizer = Locked.from_pretrained(tmp_path, eos_token="</s>")
    tokenizer.locked = True
    assert ends(ensure_special_tokens(tokenizer, "m")) == ("</s>", None)
    bare = Locked.from_pretrained(tmp_path)
    bare.locked = True
    with pytest.raises(UsageError, match="no end-of-sequence token"):
        ensure_special_tokens(bare, "m", LlamaConfig(eos_token_id=2))
