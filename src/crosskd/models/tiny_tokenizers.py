"""Small tokenizers of the three kinds that language models use, trained on the questions that crosskd ships."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TokenizerKind = Literal["byte_level", "sentencepiece", "unigram"]

# letters with their space, digits one by one, signs, white space: near enough to what GPT-like models split at
_WORDS = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"


def tiny_tokenizer(
    kind: TokenizerKind,
    vocab_size: int,
    special_tokens: Sequence[str],
    *,
    before: str | None = None,
    after: str | None = None,
    roles: dict[str, str],
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on the paragraphs and questions of ``sample:qed``; the same arguments give the same one.

    Args:
        kind: ``byte_level`` (BPE over bytes: GPT-2, OPT, GPT-NeoX, Bloom, Llama 3, Qwen), ``sentencepiece`` (BPE over
            metaspaces that falls back to bytes: Llama 2, Mistral, Gemma) or ``unigram`` (T5, mT5).
        vocab_size: Entries, all special tokens and bytes included.
        special_tokens: They get the first ids, in this order.
        before: Special token that is put before every text.
        after: Special token that is put after every text.
        roles: Which special token is what: ``bos_token``, ``eos_token``, ``pad_token``, ``unk_token``.
        chat_template: A jinja template, or None for a base model.
    """
    train = {"byte_level": _byte_level, "sentencepiece": _sentencepiece, "unigram": _unigram}[kind]
    backend = train(vocab_size, list(special_tokens), roles.get("unk_token", special_tokens[0]))
    _add_ends(backend, before, after)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=4096, **roles)
    tokenizer.chat_template = chat_template
    return tokenizer


def _texts() -> list[str]:
    sample = resources.files("crosskd.data") / "samples" / "qed" / "train.jsonl"
    rows = [json.loads(line) for line in sample.read_text(encoding="utf-8").splitlines()]
    return [f"Context: {row['paragraph_text']}\nQuestion: {row['question_text']}\nAnswer:" for row in rows]


def _byte_level(vocab_size: int, special: list[str], unknown: str) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_texts(), trainer)
    return backend


def _sentencepiece(vocab_size: int, special: list[str], unknown: str) -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token=unknown, byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # the bytes stand behind the special tokens, as in SentencePiece's own vocabularies
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    # rare characters and line breaks are left to the bytes
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=names, limit_alphabet=80, show_progress=False)
    backend.train_from_iterator((text.replace("\n", " ") for text in _texts()), trainer)
    return _with_special_tokens(backend, special)


def _with_special_tokens(trained: Tokenizer, special: Sequence[str]) -> Tokenizer:
    """The same tokenizer, in which the names of bytes are entries of the model and not special tokens."""
    state = json.loads(trained.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(state))


def _unigram(vocab_size: int, special: list[str], unknown: str) -> Tokenizer:
    """Pieces found by BPE, scored by how often they occur: the unigram trainer gives another result each time."""
    pieces = Tokenizer(models.BPE(unk_token=unknown))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    texts = _texts()
    pieces.train_from_iterator(texts, trainer)
    counts = Counter(token for encoding in pieces.encode_batch(texts) for token in encoding.ids)
    vocabulary = pieces.get_vocab()
    names = sorted(vocabulary, key=lambda name: vocabulary[name])
    total = sum(counts.values())
    scores = [0.0 if name in special else math.log((counts[token] + 1) / total) for token, name in enumerate(names)]
    backend = Tokenizer(models.Unigram(list(zip(names, scores, strict=True)), names.index(unknown), False))
    backend.add_special_tokens(special)
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def _add_ends(backend: Tokenizer, before: str | None, after: str | None) -> None:
    if before is None and after is None:
        return
    ends = [token for token in (before, after) if token is not None]
    around = " ".join([*([before] if before else []), "{}", *([after] if after else [])])
    backend.post_processor = processors.TemplateProcessing(
        single=around.format("$A"),
        pair=around.format("$A $B"),
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(ends)],
    )
