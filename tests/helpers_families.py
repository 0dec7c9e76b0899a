"""The families of models that crosskd is tested with, each as a tiny random model with a tokenizer of its kind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MT5Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

import helpers_templates as templates
from crosskd.evaluation.generation import end_token_ids, first_line
from crosskd.losses.base import DistillationMethod, StudentAnswers
from crosskd.losses.targets import targets_from_logits
from crosskd.models.load import LoadedModel
from crosskd.models.special_tokens import ensure_special_tokens
from crosskd.models.tiny_tokenizers import TokenizerKind, tiny_tokenizer
from crosskd.text.answer_spans import TokenizedExample, tokenize_example
from crosskd.text.prompts import PromptBuilder
from crosskd.text.tasks import load_task
from helpers_tolerances import decided

TASK_FILE = Path(__file__).parent / "colours.yaml"
TASK = load_task(TASK_FILE)
EXAMPLES: list[dict[str, Any]] = [
    {
        "id": "a", "title": "", "context": "Snow is white.", "question": "What is the colour of snow",
        "answers": ["white"],
    },
    {
        "id": "b", "title": "Fruit", "context": "  Limes: 7 of 12 are light green\nand sour. ",
        "question": "What is the colour of a lime", "answers": ["light green, 7 of 12"],
    },
    {"id": "c", "title": "Ça", "context": "Le ciel est bleu 🙂", "question": "Quelle couleur", "answers": ["bleu é"]},
]  # fmt: skip
"""Prompts and answers of different lengths, with white space, digits and letters that small vocabularies lack."""
UNUSED_ROWS = 12  # real models have more logits than their tokenizers have entries

_SIZE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 640,
}  # fmt: skip
_GROUPED: dict[str, Any] = {**_SIZE, "num_key_value_heads": 2}
_T5: dict[str, Any] = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """Models of one architecture that are prompted alike.

    Attributes:
        models: The models that docs/models.md names for it.
        config: Makes its tiny configuration, given the vocabulary's size and the ids of special tokens.
        kind: Kind of its tokenizer.
        special: Special tokens, in the order of their ids.
        eos, bos, pad: Those of them with a meaning; ``""`` where the tokenizer names none.
        before, after: Special tokens that the tokenizer puts around every text.
        template: Of its chat models; None for base models.
        system: What becomes of the system text, as docs/models.md tells it.
        ran: What docs/models.md says of real models.
    """

    models: str
    config: Callable[..., PreTrainedConfig]
    kind: TokenizerKind
    special: tuple[str, ...]
    eos: str
    bos: str = ""
    pad: str = ""
    before: str | None = None
    after: str | None = None
    template: str | None = field(default=None, repr=False)
    system: str = "none: plain prompts"
    ran: str = ""

    @property
    def encoder_decoder(self) -> bool:
        """Whether prompts go to an encoder."""
        return self.config is _t5 or self.config is _mt5


def _t5(**values: Any) -> PreTrainedConfig:
    return T5Config(**_T5, **values)


def _mt5(**values: Any) -> PreTrainedConfig:
    return MT5Config(**_T5, **values)


def _llama2(**values: Any) -> PreTrainedConfig:
    return LlamaConfig(**_SIZE, **values)


def _llama3(**values: Any) -> PreTrainedConfig:
    scaled = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    return LlamaConfig(**_GROUPED, rope_parameters=scaled, **values)


def _mistral(**values: Any) -> PreTrainedConfig:
    return MistralConfig(**_GROUPED, sliding_window=None, **values)


def _gemma3(**values: Any) -> PreTrainedConfig:
    layers = ["sliding_attention", "full_attention"]
    return Gemma3TextConfig(**_GROUPED, head_dim=8, sliding_window=24, layer_types=layers, **values)


def _gemma3_with_images(**values: Any) -> PreTrainedConfig:
    """From 4B on: its class reads images too, and has the name of an encoder-decoder; the vision tower is as deep."""
    vision: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    marks = {f"{name}_token_index": values["vocab_size"] - at for at, name in enumerate(("boi", "eoi", "image"), 1)}
    return Gemma3Config(text_config=_gemma3(**values).to_dict(), vision_config=vision, mm_tokens_per_image=4, **marks)


def _smollm(**values: Any) -> PreTrainedConfig:
    return LlamaConfig(**_GROUPED, tie_word_embeddings=True, **values)


def _opt_350m(**values: Any) -> PreTrainedConfig:
    """Its embeddings are narrower than its layers, and it normalizes behind them: no other OPT does."""
    return OPTConfig(
        hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=640,
        word_embed_proj_dim=16, do_layer_norm_before=False, dropout=0.0, **values,
    )  # fmt: skip


def _opt(**values: Any) -> PreTrainedConfig:
    return OPTConfig(
        hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=640,
        word_embed_proj_dim=32, dropout=0.0, **values,
    )  # fmt: skip


_CHATML = {"special": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "kind": "byte_level", "eos": "<|im_end|>"}
_GPT: dict[str, Any] = {"kind": "byte_level", "special": ("<|endoftext|>", "<|padding|>"), "eos": "<|endoftext|>"}
_SENTENCEPIECE: dict[str, Any] = {
    "kind": "sentencepiece", "special": ("<unk>", "<s>", "</s>"), "eos": "</s>", "bos": "<s>", "before": "<s>",
}  # fmt: skip
_UNIGRAM: dict[str, Any] = {
    "kind": "unigram", "special": ("<pad>", "</s>", "<unk>"), "eos": "</s>", "pad": "<pad>", "after": "</s>",
}  # fmt: skip
_OPT: dict[str, Any] = {
    "kind": "byte_level", "special": ("<s>", "<pad>", "</s>", "<unk>"), "eos": "</s>", "bos": "</s>", "pad": "<pad>",
    "before": "</s>",
}  # fmt: skip
_OWN_TURN = "a turn of its own"
_FIRST_TURN = "in the first user turn, by the template"
_BY_CROSSKD = "in the first user turn, by crosskd: the template drops it"

FAMILIES: dict[str, Family] = {
    "llama2": Family(
        "Llama 2 chat", _llama2, **_SENTENCEPIECE, template=templates.LLAMA2, system=_FIRST_TURN,
    ),
    "llama3": Family(
        "Llama 3 and 3.1 Instruct", _llama3, "byte_level",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>", "<|begin_of_text|>", before="<|begin_of_text|>", template=templates.LLAMA3, system=_OWN_TURN,
    ),
    "mistral": Family(
        "Mistral Instruct v0.3", _mistral, "sentencepiece", ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), "</s>",
        "<s>", before="<s>", template=templates.MISTRAL, system="in the last user turn, by the template",
    ),
    "qwen2": Family(
        "Qwen1.5 and Qwen 2 chat", lambda **values: Qwen2Config(**_GROUPED, **values), **_CHATML,
        pad="<|endoftext|>", template=templates.CHATML, system=_OWN_TURN,
    ),
    "qwen3": Family(
        "Qwen 3", lambda **values: Qwen3Config(**_GROUPED, head_dim=8, **values), **_CHATML,
        pad="<|endoftext|>", template=templates.QWEN3, system=_OWN_TURN,
    ),
    "gemma3": Family(
        "Gemma 3 below 4B", _gemma3, "sentencepiece",
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>", "<pad>",
        before="<bos>", template=templates.GEMMA3, system=_FIRST_TURN, ran="Gemma 3 270M (teacher of the demo)",
    ),
    "phi3": Family(
        "Phi-3 mini", lambda **values: Phi3Config(**_GROUPED, **values), "sentencepiece",
        ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|endoftext|>", "<s>",
        "<|endoftext|>", template=templates.PHI3, system=_BY_CROSSKD,
    ),
    "phi": Family("Phi-1.5 and Phi-2", lambda **values: PhiConfig(**_SIZE, **values), **_GPT, bos="<|endoftext|>"),
    "smollm": Family(
        "SmolLM and SmolLM2", _smollm, **_CHATML, bos="<|im_start|>", pad="<|im_end|>", template=templates.CHATML,
        system=_OWN_TURN, ran="SmolLM2-135M-Instruct (student of the demo)",
    ),
    "llama": Family("TinyLlama base and other Llama-like base models", _llama2, **_SENTENCEPIECE),
    "opt_350m": Family("OPT-350M", _opt_350m, **_OPT),
    "opt": Family("OPT of other sizes", _opt, **_OPT),
    "pythia": Family(
        "Pythia", lambda **values: GPTNeoXConfig(**_SIZE, **values), **_GPT, bos="<|endoftext|>",
    ),
    "bloom": Family(
        "Bloom, Bloomz", lambda **values: BloomConfig(hidden_size=32, n_layer=2, n_head=4, **values), "byte_level",
        ("<unk>", "<s>", "</s>", "<pad>"), "</s>", "<s>", "<pad>",
    ),
    "t5": Family("T5, Flan-T5", _t5, **_UNIGRAM),
    "mt5": Family("mT5, mT0", _mt5, **_UNIGRAM),
    "gemma3_with_images": Family(
        "Gemma 3 of 4B and more", _gemma3_with_images, "sentencepiece",
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>", "<pad>",
        before="<bos>", template=templates.GEMMA3, system=_FIRST_TURN,
    ),
}  # fmt: skip
CAUSAL = [name for name, family in FAMILIES.items() if not family.encoder_decoder]
CHAT = [name for name, family in FAMILIES.items() if family.template]


@cache
def family_tokenizer(name: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of the family's kind, with its chat template or another."""
    family = FAMILIES[name]
    unknown = "<unk>" if "<unk>" in family.special else family.eos
    roles = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.pad, "unk_token": unknown}
    tokenizer = tiny_tokenizer(
        family.kind,
        480,
        family.special,
        before=family.before,
        after=family.after,
        roles={role: token for role, token in roles.items() if token},
        chat_template=template or family.template,
    )
    ensure_special_tokens(tokenizer, name)
    return tokenizer


def tiny(name: str) -> LoadedModel:
    """A fresh copy of the family's model, random, far from uniform, in evaluation mode."""
    return copy.deepcopy(_tiny(name))


@cache
def _tiny(name: str) -> LoadedModel:
    tokenizer = family_tokenizer(name)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    config = FAMILIES[name].config(vocab_size=len(tokenizer) + UNUSED_ROWS, **ids)
    architecture = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(list(FAMILIES).index(name))
        model: PreTrainedModel = architecture.from_config(config)
        for place, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
            if config.is_encoder_decoder and place.endswith(".q.weight"):
                parameter.mul_(config.d_kv**-0.5)  # T5 leaves the scaling of attention to its weights
    return LoadedModel(model.eval(), tokenizer, name)


def reads_images(parameter: str) -> bool:
    """Whether a parameter of that name belongs to the part of a model that sees images, which text does not reach."""
    return "vision_tower" in parameter or "multi_modal_projector" in parameter


def save_tiny(name: str, folder: Path, template: str | None = None) -> Path:
    """The family's model and tokenizer as a folder, with its chat template or another."""
    tiny(name).model.save_pretrained(folder)
    family_tokenizer(name, template).save_pretrained(folder)
    return folder


@cache
def builder_of(name: str, shots: int = 2) -> PromptBuilder:
    """Prompts of the small task for the family."""
    encoder = FAMILIES[name].encoder_decoder
    return PromptBuilder(family_tokenizer(name), TASK, number_few_shot=shots, append_eos=encoder)


def tokenized(name: str, *, append_eos: bool, shots: int = 2) -> list[TokenizedExample]:
    """The examples in the family's tokens."""
    builder = builder_of(name, shots)
    return [
        tokenize_example(builder, example, example["answers"][0], append_eos=append_eos, max_length=None)
        for example in EXAMPLES
    ]


def logits_alone(model: PreTrainedModel, tokens: TokenizedExample) -> torch.Tensor:
    """Logits (T, V) that predict one answer: the sequence by itself, unpadded, all of its logits computed."""
    prompt, answer = tokens.prompt_ids, tokens.answer_ids
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            read = [int(model.config.decoder_start_token_id), *answer[:-1]]
            return model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([read])).logits[0]
        logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : len(prompt) - 1 + len(answer)]


def answer_by_hand(loaded: LoadedModel, prompt: Sequence[int], steps: int) -> str:
    """Greedy, token by token, one prompt without padding or cache."""
    model, tokenizer, _ = loaded
    ends = end_token_ids(model, tokenizer)
    written: list[int] = []
    for _ in range(steps):
        step = TokenizedExample(list(prompt), [*written, 0], 0)  # the last answer token is predicted, not read
        written.append(decided(logits_alone(model, step)[-1], model, len(prompt) + len(written)))
        if written[-1] in ends:
            break
    kept = [token for token in written if token not in ends]
    return first_line(str(tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)))


def loss_alone(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    pairs: Sequence[tuple[TokenizedExample, TokenizedExample]],
    method: DistillationMethod,
    weight: float,
) -> float:
    """The loss of a batch, each example of it computed by itself without any padding.

    Args:
        student: Student.
        teacher: Teacher.
        pairs: Each example in the student's tokens (the answer ends with the end of sequence) and in the teacher's.
        method: Distillation method.
        weight: Of the distillation.
    """
    request = method.request()
    assert request is not None
    total, count = 0.0, 0
    for own, other in pairs:
        labels = torch.tensor([own.answer_ids])
        mask = torch.ones_like(labels, dtype=torch.bool)
        mask[:, -1] = False
        seen = logits_alone(teacher, other)[None]
        there = torch.ones(seen.shape[:2], dtype=torch.bool)
        targets = targets_from_logits(seen, there, request, torch.tensor([other.answer_ids]))
        terms = method.terms(StudentAnswers(logits_alone(student, own)[None], labels, mask, None), targets)
        total += float(terms["cross_entropy"] + weight * terms["distillation"])
        count += labels.numel()
    return total / count
