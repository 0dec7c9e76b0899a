"""Encoder-decoders whose positions are learned or whose layers slide read padded prompts as they read single ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, BartConfig, PreTrainedModel, T5GemmaConfig

from crosskd.data.collate import collate_encoder_decoder
from crosskd.evaluation.generation import generate_answers
from crosskd.models.answer_logits import answer_logits
from crosskd.text.answer_spans import TokenizedExample
from helpers_families import answer_by_hand, family_tokenizer, logits_alone
from helpers_masks import MaskSpy, mask_spy

__all__ = ["mask_spy"]

START = 2


def bart(vocabulary: int) -> BartConfig:
    """Its positions are learned, so that a prompt must begin at the first one."""
    return BartConfig(
        vocab_size=vocabulary, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=128,
        pad_token_id=0, bos_token_id=START, eos_token_id=1, decoder_start_token_id=START, forced_eos_token_id=None,
    )  # fmt: skip


def t5gemma(vocabulary: int) -> T5GemmaConfig:
    """Every other layer slides, in the encoder both ways: behind a short prompt nothing real lies in the window."""
    part: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8,
        "max_position_embeddings": 128, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": START,
    }  # fmt: skip
    return T5GemmaConfig(
        encoder=part, decoder=part, vocab_size=vocabulary, is_encoder_decoder=True, decoder_start_token_id=START,
        pad_token_id=0, eos_token_id=1, bos_token_id=START, dropout_rate=0.0, attention_dropout=0.0,
    )  # fmt: skip


def random_model(make: Any, attention: str) -> PreTrainedModel:
    torch.manual_seed(3)
    model = AutoModelForSeq2SeqLM.from_config(make(len(family_tokenizer("t5"))))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    model.set_attn_implementation(attention)
    return model.eval()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(50, 400, (length,), generator=generator).tolist() for length in (40, 3, 17)]


@pytest.mark.parametrize(("make", "attention"), [(bart, "sdpa"), (bart, "eager"), (t5gemma, "eager")])
def test_a_batch_is_what_each_prompt_alone_is(make: Any, attention: str, mask_spy: MaskSpy) -> None:
    model, tokenizer = random_model(make, attention), family_tokenizer("t5")
    answers = [[60, 61, 62], [70], [80, 81]]
    batch = collate_encoder_decoder(prompts(), answers, START)
    with torch.no_grad():
        logits = answer_logits(model, batch, 3)
    written = generate_answers(model, tokenizer, prompts(), max_new_tokens=6, batch_size=3)
    mask_spy.check()
    for row, prompt, answer in zip(logits, prompts(), answers, strict=True):
        expected = logits_alone(model, TokenizedExample(prompt, answer, 0))
        torch.testing.assert_close(row[: len(answer)], expected, atol=1e-5, rtol=1e-5)
    alone = [answer_by_hand((model, tokenizer, ""), prompt, 6) for prompt in prompts()]  # pyright: ignore[reportArgumentType]
    assert written == alone
    assert len(set(alone)) > 1
