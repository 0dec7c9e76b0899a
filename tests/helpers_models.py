"""Tiny random models with tokenizers of two kinds, as folders that the verbs load."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from helpers_tokenizers import byte_level_tokenizer, sentencepiece_tokenizer

SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 540,
}  # fmt: skip

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=512),
    "gemma3": Gemma3TextConfig(
        **SMALL, num_key_value_heads=1, head_dim=8, sliding_window=16, max_position_embeddings=512,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gpt_neox": GPTNeoXConfig(**SMALL, max_position_embeddings=512),
    "opt": OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=540,
        max_position_embeddings=512, word_embed_proj_dim=32, dropout=0.0,
    ),
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=540),
}  # fmt: skip


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model in evaluation mode whose logits are far from uniform."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family]))  # models write into their configuration
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


def save_student(folder: Path) -> Path:
    """A Llama with a byte-level tokenizer."""
    tiny_model("llama", seed=1).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return folder


def save_teacher(folder: Path) -> Path:
    """A Gemma 3 with a SentencePiece tokenizer."""
    tiny_model("gemma3", seed=2).save_pretrained(folder)
    sentencepiece_tokenizer().save_pretrained(folder)
    return folder


def examples(count: int) -> list[dict[str, Any]]:
    """Questions whose contexts and answers differ in length."""
    names = ["Ada", "Grace Hopper", "Alan", "Katherine Johnson", "Edsger"]
    return [
        {
            "id": f"q{i}",
            "title": f"Person {i}",
            "context": f"{names[i % 5]} lived in house number {i}. " * (1 + i % 3),
            "question": f"who lived in house number {i}",
            "answers": [names[i % 5], f"{names[i % 5]} of house {i}"],
        }
        for i in range(count)
    ]
