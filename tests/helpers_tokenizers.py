"""Tokenizers of the kinds that language models use, trained here on a few sentences: no files, no network."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Title: The river\nContext: The river rises in the hills and runs to the sea.\nQuestion: where does it rise?\n",
    "Answer: in the hills\n\nDialogue: #Person1#: Hello! #Person2#: Good morning.\nSummary: They greet each other.",
    "Medical paper: We assigned 118 patients at random.\nQuestion: Did it help?\nAnswer: Yes, for most of them.",
    "You answer questions about a passage. Write the phrase alone. Ann lives in Rome , and Bob sings every morning .",
] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|turn|>"]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}{{ eos_token }}"
    "\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
"""System, user and assistant turns; writes the beginning-of-sequence token itself."""

CHAT_TEMPLATE_WITHOUT_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "<|turn|>{{ message['role'] }}\n{{ message['content'] | trim }}{{ eos_token }}\n{% endfor %}"
)
"""User and assistant turns in strict alternation; a system turn is an error, as in Gemma's and Mistral's."""

CHAT_TEMPLATE_DROPPING_SYSTEM = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "<|turn|>{{ message['role'] }}\n{{ message['content'] }}\n{% endif %}{% endfor %}"
)
"""Leaves system turns out without a word, and writes no beginning-of-sequence token."""

FAILING_CHAT_TEMPLATE = "{{ raise_exception('no conversation pleases me') }}"


def byte_level_tokenizer(chat_template: str | None = None, *, vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of GPT-2, OPT, GPT-NeoX, Bloom, Llama 3, Qwen and SmolLM; adds no special tokens.

    Args:
        chat_template: A jinja template, or None for a base model's tokenizer.
        vocab_size: Entries, at least 261 (the bytes and the special tokens).
    """
    return _wrapped(_byte_level(vocab_size), chat_template)


def sentencepiece_tokenizer(chat_template: str | None = None, *, vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """BPE over metaspaces with byte fallback, as of Llama 2 and Mistral; puts ``<s>`` before a text.

    Args:
        chat_template: A jinja template, or None for a base model's tokenizer.
        vocab_size: Entries before the 256 bytes are added.
    """
    return _wrapped(_sentencepiece(vocab_size), chat_template)


def unigram_tokenizer(chat_template: str | None = None, *, vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Unigram over metaspaces, as of T5 and mT5; puts ``</s>`` after a text and turns line breaks into spaces.

    Args:
        chat_template: A jinja template, or None for a base model's tokenizer.
        vocab_size: Entries.
    """
    return _wrapped(_unigram(vocab_size), chat_template)


TOKENIZERS = {
    "byte_level": byte_level_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "unigram": unigram_tokenizer,
}


def _wrapped(backend: Tokenizer, chat_template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(backend),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=4096,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


@cache
def _byte_level(vocab_size: int) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return backend


@cache
def _sentencepiece(vocab_size: int) -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False)
    )
    backend = _with_bytes(backend)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    return backend


def _with_bytes(trained: Tokenizer) -> Tokenizer:
    """The same merges with the 256 byte entries, into which unknown characters fall back."""
    state = json.loads(trained.to_str())
    vocabulary = state["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    return Tokenizer.from_str(json.dumps(state))


@cache
def _unigram(vocab_size: int) -> Tokenizer:
    """Pieces of BPE with the scores of their counts: `UnigramTrainer` numbers its pieces differently every time."""
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False)
    )
    counts = Counter(token for encoding in pieces.encode_batch(CORPUS) for token in encoding.ids)
    ids = pieces.get_vocab()
    names = sorted(ids, key=lambda name: ids[name])
    scores = [math.log((counts[token] + 1) / counts.total()) for token in range(len(names))]
    backend = Tokenizer(models.Unigram(list(zip(names, scores, strict=True)), SPECIAL.index("<unk>"), False))
    backend.add_special_tokens(SPECIAL)
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", SPECIAL.index("</s>"))]
    )
    return backend
