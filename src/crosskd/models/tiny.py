"""Tiny random models that stand in for real ones, so that a run can be tried in seconds and without downloads."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MT5Config,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    T5Config,
)

from crosskd.errors import UsageError, did_you_mean
from crosskd.files import read_json
from crosskd.hashes import cache_directory
from crosskd.models.tiny_tokenizers import TokenizerKind, tiny_tokenizer

logger = logging.getLogger(__name__)

Role = Literal["student", "teacher"]

_FORMAT = 1  # raised when a stand-in would come out different
_POSITIONS = 4096
_SIZE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": _POSITIONS, "initializer_range": 0.2,
}  # fmt: skip
_GROUPED: dict[str, Any] = {**_SIZE, "num_key_value_heads": 2}
_T5: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}

_INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "[INST] <<SYS>>\n{{ message['content'] }}\n<</SYS>>\n\n{% elif message['role'] == 'user' %}"
    "{% if loop.index0 != 1 or messages[0]['role'] != 'system' %}[INST] {% endif %}"
    "{{ message['content'] | trim }} [/INST]{% else %} {{ message['content'] | trim }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
_INST_WITHOUT_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }}[/INST]"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
_HEADERS = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TURNS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{{ message['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """Models of one kind.

    Attributes:
        pattern: Regular expression that its names match, in lower case.
        config: Makes a tiny configuration of it, given the vocabulary's size and the ids of special tokens.
        kind: Kind of its tokenizer.
        vocab_size: Entries of the stand-in's vocabulary; no two families share a size.
        special: Special tokens, in the order of their ids.
        bos, eos, pad: Those of them with a meaning; an empty ``pad`` is a tokenizer without one.
        before, after: Special tokens around every text.
        chat_template: Of its chat models; None where there are only base models.
    """

    pattern: str
    config: Callable[..., PreTrainedConfig]
    kind: TokenizerKind
    vocab_size: int
    special: tuple[str, ...]
    eos: str
    bos: str = ""
    pad: str = ""
    before: str | None = None
    after: str | None = None
    chat_template: str | None = field(default=None, repr=False)

    def tokenizer(self, *, chat: bool) -> PreTrainedTokenizerFast:
        """A small tokenizer of this family's kind."""
        unknown = "<unk>" if "<unk>" in self.special else self.eos
        roles = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad, "unk_token": unknown}
        return tiny_tokenizer(
            self.kind,
            self.vocab_size,
            self.special,
            before=self.before,
            after=self.after,
            roles={name: token for name, token in roles.items() if token},
            chat_template=self.chat_template if chat else None,
        )


def _opt(**values: Any) -> PreTrainedConfig:
    size = {**_SIZE, "ffn_dim": 64, "init_std": 0.2}
    return OPTConfig(**{**size, "word_embed_proj_dim": 32, "dropout": 0.0, **values})


def _bloom(**values: Any) -> PreTrainedConfig:
    return BloomConfig(hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2, **values)


def _gemma(**values: Any) -> PreTrainedConfig:
    layers = ["sliding_attention", "full_attention"]
    size = {**_GROUPED, "head_dim": 8, "sliding_window": 512, "layer_types": layers}
    return Gemma3TextConfig(**{**size, **values})


FAMILIES: dict[str, Family] = {
    "opt": Family(
        r"\bopt\b", _opt, "byte_level", 600, ("<s>", "<pad>", "</s>", "<unk>"), "</s>", "</s>", "<pad>", before="</s>"
    ),
    "pythia": Family(
        r"pythia|neox", lambda **values: GPTNeoXConfig(**{**_SIZE, **values}), "byte_level", 610,
        ("<|endoftext|>", "<|padding|>"), "<|endoftext|>", "<|endoftext|>",
    ),
    "bloom": Family(r"bloom", _bloom, "byte_level", 620, ("<unk>", "<s>", "</s>", "<pad>"), "</s>", "<s>", "<pad>"),
    "mt5": Family(
        r"\bm?t0|mt5", lambda **values: MT5Config(**{**_T5, **values}), "unigram", 630,
        ("<pad>", "</s>", "<unk>"), "</s>", "", "<pad>", after="</s>",
    ),
    "t5": Family(
        r"t5\b|\bt5", lambda **values: T5Config(**{**_T5, **values}), "unigram", 640,
        ("<pad>", "</s>", "<unk>"), "</s>", "", "<pad>", after="</s>",
    ),
    "llama2": Family(
        r"tiny.?llama|vicuna|llama.?2|llama.?7b", lambda **values: LlamaConfig(**{**_GROUPED, **values}),
        "sentencepiece", 700, ("<unk>", "<s>", "</s>"), "</s>", "<s>", before="<s>", chat_template=_INST,
    ),
    "mistral": Family(
        r"mi[sx]tral|zephyr", lambda **values: MistralConfig(**{**_GROUPED, "sliding_window": None, **values}),
        "sentencepiece", 710, ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), "</s>", "<s>", before="<s>",
        chat_template=_INST_WITHOUT_SYSTEM,
    ),
    "gemma": Family(
        r"gemma", _gemma, "sentencepiece", 720,
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>", "<pad>",
        before="<bos>", chat_template=_TURNS,
    ),
    "qwen": Family(
        r"qwen", lambda **values: Qwen2Config(**{**_GROUPED, **values}), "byte_level", 730,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", "", "<|endoftext|>", chat_template=_CHATML,
    ),
    "smollm": Family(
        r"smollm", lambda **values: LlamaConfig(**{**_GROUPED, "tie_word_embeddings": True, **values}), "byte_level",
        650, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_start|>", "<|im_end|>",
        chat_template=_CHATML,
    ),
    "llama": Family(
        r"llama", lambda **values: LlamaConfig(**{**_GROUPED, **values}), "byte_level", 740,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>", "<|begin_of_text|>", before="<|begin_of_text|>", chat_template=_HEADERS,
    ),
}  # fmt: skip
"""Families in the order in which their patterns are tried; what none of them matches is taken for a Llama 3."""

_CHAT = re.compile(r"chat|instruct|\bit\b|zephyr|vicuna")


def tiny_stand_in(source: str | Path, role: Role = "student") -> Path:
    """A tiny random model and tokenizer of the family that ``source`` belongs to, as a folder.

    It is made once and kept in the cache directory that ``crosskd env`` names. Its answers are nonsense, its shapes,
    special tokens and chat template those of the family, its context 4096 tokens long. The same family and role always
    give the same weights; a student and a teacher of one family differ.

    Args:
        source: Hub id, folder or GGUF file; only its name is read, and a folder's ``config.json``.
        role: ``"student"`` or ``"teacher"``.

    Returns:
        The folder, which `crosskd.load_model` loads.

    Raises:
        UsageError: The role is neither, or a folder's ``config.json`` is no JSON object.
    """
    if role not in get_args(Role):
        raise UsageError("role", got=role, expected="student or teacher", fix=did_you_mean(role, get_args(Role)))
    name = _described(Path(source))
    family = next((key for key, value in FAMILIES.items() if re.search(value.pattern, name)), "llama")
    chat = FAMILIES[family].chat_template is not None and bool(_CHAT.search(name))
    folder = cache_directory() / "tiny" / f"{family}{'-chat' if chat else ''}-{role}-v{_FORMAT}"
    if not folder.is_dir():
        _write(FAMILIES[family], folder, chat=chat, seed=get_args(Role).index(role))
    logger.info("a tiny random %s stands in for %s", family, source)
    return folder


def _described(source: Path) -> str:
    """What names the family: the name, and the type that a folder's configuration states."""
    config = source / "config.json"
    stated = read_json(config).get("model_type", "") if config.is_file() else ""
    return f"{source.name} {stated}".lower().replace("_", "-")


def _write(family: Family, folder: Path, *, chat: bool, seed: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as temporary:
        unfinished = Path(temporary) / "model"
        tokenizer = family.tokenizer(chat=chat)
        _random_model(family, tokenizer, seed).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        if not folder.is_dir():  # another process may have been faster
            unfinished.rename(folder)


def _random_model(family: Family, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = family.config(vocab_size=len(tokenizer), **ids)
    architecture = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = architecture.from_config(config)
        # so that greedy answers hold text: a token that ends an answer, or is invisible, is never the likeliest
        silent = [token for token in range(len(tokenizer)) if _is_silent(tokenizer, token)]
        model.get_output_embeddings().weight[silent] = 0
    return model.eval()


def _is_silent(tokenizer: PreTrainedTokenizerFast, token: int) -> bool:
    text = str(tokenizer.decode([token], skip_special_tokens=True))
    return not text.strip() or "\n" in text
