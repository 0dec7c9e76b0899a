"""Tiny random encoders with tokenizers of their kinds, as folders that BERTScore reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel, RobertaTokenizer

from helpers_tokenizers import CORPUS

LAYERS = 3
POSITIONS = 66
_SIZE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS, "initializer_range": 0.5,
}  # fmt: skip
_ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_roberta(folder: Path, **settings: Any) -> Path:
    """A RoBERTa with its own byte-level tokenizer, which adds no space before a text and states its limit."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=_ROBERTA_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    state = json.loads(backend.to_str())["model"]
    limits = {"model_max_length": POSITIONS - 2, **settings}
    merges = [tuple(pair) for pair in state["merges"]]
    RobertaTokenizer(vocab=state["vocab"], merges=merges, **limits).save_pretrained(folder)
    torch.manual_seed(0)
    RobertaModel(RobertaConfig(vocab_size=400, pad_token_id=1, **_SIZE)).save_pretrained(folder)
    return folder


def _word_pieces() -> dict[str, int]:
    """Letters and every second word of the corpus: `WordPieceTrainer` chooses other pieces every time."""
    plain = normalizers.BertNormalizer().normalize_str(" ".join(CORPUS))
    words = sorted({word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(plain)})
    letters = sorted(set("".join(words)))
    pieces = [*_BERT_SPECIAL, *letters, *(f"##{letter}" for letter in letters), *(w for w in words[::2] if len(w) > 1)]
    return {piece: place for place, piece in enumerate(pieces[:200])}


def save_bert(folder: Path) -> Path:
    """A BERT with a WordPiece tokenizer that knows no limit, as some that lie in folders."""
    backend = Tokenizer(models.WordPiece(_word_pieces(), unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(_BERT_SPECIAL)
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {
        f"{name}_token": token for name, token in zip(("pad", "unk", "cls", "sep", "mask"), _BERT_SPECIAL, strict=True)
    }
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=200, pad_token_id=0, **_SIZE)).save_pretrained(folder)
    return folder
