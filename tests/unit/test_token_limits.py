"""How long a sequence and which token ids a model takes; ids without an embedding are refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BloomConfig, GPT2Config, LlamaConfig, MptConfig, MT5Config, PreTrainedConfig, T5Config

from crosskd.cli.main import main
from crosskd.errors import UsageError
from crosskd.evaluation.generation import generate_answers
from crosskd.models.limits import check_token_ids, context_length, embedding_rows, longest_prompt, position_limit
from crosskd.models.load import load_model
from helpers_models import save_teacher, tiny_model
from helpers_tokenizers import byte_level_tokenizer, sentencepiece_tokenizer

ENDLESS: list[PreTrainedConfig] = [
    T5Config(), T5Config(n_positions=512), MT5Config(), BloomConfig(seq_length=512), MptConfig(max_seq_len=512),
]  # fmt: skip
BOUNDED: list[PreTrainedConfig] = [LlamaConfig(max_position_embeddings=512), GPT2Config(n_positions=512)]


def tokenizer_with(limit: float) -> Any:
    tokenizer = byte_level_tokenizer()
    tokenizer.model_max_length = limit
    return tokenizer


@pytest.mark.parametrize("config", ENDLESS, ids=lambda config: config.model_type)
def test_positions_without_an_end_can_be_given_more_than_the_tokenizer_says(config: PreTrainedConfig) -> None:
    tokenizer = tokenizer_with(512)
    assert position_limit(config) is None
    assert context_length(config, tokenizer) == 512  # as ever, without a word of the user's
    assert context_length(config, tokenizer, 2000) == 2000
    assert context_length(config, tokenizer, 100) == 100
    room = 2000 if config.is_encoder_decoder else 1990
    assert longest_prompt(config, tokenizer, 2000, 10) == room


@pytest.mark.parametrize("config", BOUNDED, ids=lambda config: config.model_type)
def test_positions_with_an_end_cannot(config: PreTrainedConfig) -> None:
    for limit, wanted, expected in ((1e30, None, 512), (1e30, 2000, 512), (300, 2000, 300), (1e30, 100, 100)):
        assert context_length(config, tokenizer_with(limit), wanted) == expected
    with pytest.raises(UsageError, match="less than the 512 tokens"):
        longest_prompt(config, tokenizer_with(1e30), 2000, 512)


def test_nothing_stated_is_no_limit() -> None:
    assert context_length(T5Config(), tokenizer_with(1e30)) is None


def test_t5_reads_prompts_longer_than_its_tokenizer_says() -> None:
    from helpers_families import tiny

    model, tokenizer, _ = tiny("t5")
    tokenizer.model_max_length = 20
    assert len(generate_answers(model, tokenizer, [[50] * 40, [60] * 30], max_new_tokens=2)) == 2


def test_rows_are_named() -> None:
    check_token_ids([("a", [0, 9]), ("b", [])], 10, "m")
    with pytest.raises(UsageError, match=r"^prompt 1 holds token 10: expected less than 10, the embeddings of m; take"):
        check_token_ids([("prompt 0", [9]), ("prompt 1", [3, 10])], 10, "m")


def test_generation_refuses_ids_beyond_the_embeddings() -> None:
    model = tiny_model("llama")
    assert embedding_rows(model) == 540
    with pytest.raises(UsageError, match="prompt 1 holds token 540"):
        generate_answers(model, byte_level_tokenizer(), [[5], [5, 540]], max_new_tokens=1)


def with_added_token(folder: Path, word: str) -> Path:
    """A teacher whose tokenizer has entries beyond its 540 embeddings; the last one is a word."""
    save_teacher(folder)
    tokenizer = sentencepiece_tokenizer()
    fill = 541 - len(tokenizer)
    assert fill > 0
    tokenizer.add_tokens([f"<<unused {index}>>" for index in range(fill - 1)] + [word])
    assert len(tokenizer) == 541
    tokenizer.save_pretrained(folder)
    return folder


def words_of(verb: str, model: Path, data: Path, output: Path) -> list[str]:
    name = "--model" if verb == "evaluate" else "--teacher"
    words = [verb, name, str(model), "--data", str(data), "--output", str(output), "--number_few_shot", "0"]
    return words if verb == "cache" else [*words, "--max_new_tokens", "1", "--split", "train"]


@pytest.mark.parametrize("verb", ["cache", "answer", "evaluate"])
def test_verbs_refuse_them_before_anything_is_written(
    verb: str, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_added_token(tmp_path / "model", "Edsger lived in house number 9")
    output = tmp_path / "out"
    output.mkdir()
    (output / "identity.json").write_text("an earlier result")
    capsys.readouterr()
    assert main([*words_of(verb, model, data_folder, output), "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert "holds token 540: expected less than 540" in error
    assert str(model) in error
    assert len([line for line in error.splitlines() if "540" in line]) == 1
    assert "Traceback" not in error
    assert "'q9'" in error
    assert [path.name for path in output.iterdir()] == ["identity.json"]


@pytest.mark.parametrize("verb", ["cache", "answer", "evaluate"])
def test_entries_that_no_text_holds_do_no_harm(verb: str, data_folder: Path, tmp_path: Path) -> None:
    model = with_added_token(tmp_path / "model", "no text holds these words")
    assert main(words_of(verb, model, data_folder, tmp_path / "out")) == 0


def test_the_limit_is_that_of_the_input_embeddings(tmp_path: Path) -> None:
    """Not of the tokenizer, and not what the configuration once said."""
    loaded = load_model(save_teacher(tmp_path / "model"))
    loaded.model.resize_token_embeddings(600)
    assert embedding_rows(loaded.model) == 600
    with torch.no_grad():
        loaded.model(input_ids=torch.tensor([[599]]))
