"""A model by hub id, by folder or by GGUF file, with its tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import modeling_auto

from crosskd.errors import UsageError, first_line
from crosskd.models.adapters import apply_adapter
from crosskd.models.files import TOKENIZER_CONFIG, base_of, check_adapter_file, find_model, is_adapter
from crosskd.models.finite import check_finite
from crosskd.models.gguf import convert_gguf
from crosskd.models.quantization import Quantization, quantization_options
from crosskd.models.special_tokens import ensure_special_tokens

DTYPES: dict[str, torch.dtype | str] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# What classes that write text are called. Those that read images too have the name of encoder-decoders.
_CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_ENCODER_DECODER_SUFFIXES = ("ForConditionalGeneration",)


class LoadedModel(NamedTuple):
    """A model and its tokenizer.

    Attributes:
        model: The language model, on the CPU, in evaluation mode.
        tokenizer: Its tokenizer; ``pad_token`` is set (to the end of sequence where it had none).
        name: What the user called it: hub id, folder or file.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str


def load_model(
    source: str | Path,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    encoder_decoder: bool = False,
    quantization: Quantization = "none",
    tokenizer: str | Path | None = None,
) -> LoadedModel:
    """Load a language model and its tokenizer.

    Args:
        source: Hub id, folder written by ``save_pretrained``, folder of a LoRA adapter (merged into the model that it
            names), or ``.gguf`` file (converted once into a safetensors folder under the user's cache directory).
        dtype: ``"auto"`` (as stored), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run the Python code that the model's repository brings.
        allow_pickle: Accept ``.bin`` weights, of a model or an adapter, which can run code when they are read;
            safetensors only otherwise.
        encoder_decoder: Accept encoder-decoder models (T5, mT5) too: they can be students, answer, and be scored.
        quantization: ``"8bit"`` or ``"4bit"`` weights, for a model that is not trained (extra ``bitsandbytes``).
        tokenizer: Where its tokenizer lies, for a model that came without one; None takes the model's own.

    Raises:
        UsageError: Nothing is found there, it is not such a language model, its weights are pickled or its code is
            remote and that was not allowed, or weights are missing, NaN or infinite.
    """
    if dtype not in DTYPES:
        raise UsageError("dtype", got=dtype, expected="one of " + ", ".join(DTYPES))
    location = locate(source)
    if is_adapter(location):
        return _load_adapted(
            source,
            location,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            encoder_decoder=encoder_decoder,
            quantization=quantization,
            tokenizer=tokenizer,
        )
    options: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    config = check_language_model(source, location, options, encoder_decoder=encoder_decoder)
    architecture = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        with _no_table_of_mismatches():
            loaded: Any = architecture.from_pretrained(
                location,
                dtype=DTYPES[dtype],
                use_safetensors=None if allow_pickle else True,
                output_loading_info=True,
                **quantization_options(quantization),
                **options,
            )
    except Exception as error:  # damaged weights make every library say something else
        raise UsageError(
            f"model {str(source)!r}", got=first_line(error), fix=None if allow_pickle else _weights_hint(error)
        ) from error
    model, found = loaded
    _check_weights(model, source, found["missing_keys"])
    return LoadedModel(model.eval(), _tokenizer_of(source, tokenizer, options), str(source))


@contextmanager
def _no_table_of_mismatches() -> Iterator[None]:
    """Without transformers' table of weights that are missing or of other shapes: the error says it in one line."""

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "LOAD REPORT" not in text or not ("MISMATCH" in text or "MISSING" in text)

    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def _check_weights(model: PreTrainedModel, source: str | Path, missing: Iterable[str]) -> None:
    """Refuse weights that are not all there, for which transformers takes random ones, or that are not finite."""
    if absent := sorted(missing):
        raise UsageError(
            f"model {str(source)!r}",
            got=f"no weights for {absent[0]}" + (f" and {len(absent) - 1} more" if len(absent) > 1 else ""),
            expected=f"all weights of a {type(model).__name__}",
            fix="get the files again, or name the model that they were saved from",
        )
    check_finite(model, source)


def load_tokenizer(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer alone; see `load_model` for the arguments."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            locate(source), revision=revision or "main", trust_remote_code=trust_remote_code
        )
    except UsageError:
        raise
    except Exception as error:  # a damaged file, or code of the model's that needs packages
        raise UsageError(f"tokenizer of {str(source)!r}", got=first_line(error)) from error
    return ensure_special_tokens(tokenizer, source, revision=revision)


def _load_adapted(
    source: str | Path, location: str, *, quantization: Quantization, tokenizer: str | Path | None, **options: Any
) -> LoadedModel:
    """The model that an adapter names, with the adapter merged into it."""
    if quantization != "none":
        raise UsageError(f"adapter {source}", got=f"weights in {quantization}", fix="train it with --merge_adapter")
    own = (Path(location) / TOKENIZER_CONFIG).is_file()
    check_adapter_file(location, allow_pickle=options["allow_pickle"])
    base = load_model(base_of(location), **options, tokenizer=tokenizer or (location if own else None))
    model = apply_adapter(base.model, location)
    check_finite(model, source)
    return LoadedModel(model.eval(), base.tokenizer, str(source))


def _tokenizer_of(model: str | Path, tokenizer: str | Path | None, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer that was named, or the model's own; a revision is one of the model's repository."""
    if tokenizer is None:
        return load_tokenizer(model, **options)
    return load_tokenizer(tokenizer, trust_remote_code=options["trust_remote_code"])


def locate(source: str | Path) -> str:
    """Turn what the user typed into what ``from_pretrained`` takes: a folder (made from a GGUF file) or a hub id."""
    path = find_model(source)
    if path is None:
        return str(source)
    return str(convert_gguf(path) if path.is_file() else path)


def check_language_model(
    source: str | Path, location: str, options: dict[str, Any], *, encoder_decoder: bool = False
) -> PreTrainedConfig:
    """Refuse what cannot write an answer (an encoder, a classifier) before its weights are read; give its config."""
    try:
        config = AutoConfig.from_pretrained(location, **options)
    except Exception as error:  # values of a wrong type, too
        raise UsageError(f"model {str(source)!r}", got=first_line(error), fix=_config_hint(error)) from error
    if not _writes_text(config) or (config.is_encoder_decoder and not encoder_decoder):
        architectures = _architectures(config)
        raise UsageError(
            f"model {str(source)!r}",
            got=f"a {architectures[0] if architectures else config.model_type}",
            expected="a causal language model (one that AutoModelForCausalLM loads)"
            + (", or an encoder-decoder model (AutoModelForSeq2SeqLM)" if encoder_decoder else ""),
        )
    return config


def _writes_text(config: PreTrainedConfig) -> bool:
    """Whether the class that transformers would load for a configuration writes text, and the weights are such a one's.

    transformers keeps tables of both kinds of models, and code that a model brings says it in its ``auto_map``. Their
    configurations also belong to encoders and classifiers; what was saved is told by ``architectures``.
    """
    if config.is_encoder_decoder:
        known = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        names = cast(Any, modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
        auto_class, suffixes = "AutoModelForSeq2SeqLM", _ENCODER_DECODER_SUFFIXES
    else:
        known = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
        names = cast(Any, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        auto_class, suffixes = "AutoModelForCausalLM", _CAUSAL_SUFFIXES
    loads = type(config) in known or auto_class in (getattr(config, "auto_map", None) or {})
    saved = _architectures(config)
    named = names.get(config.model_type)
    return loads and (not saved or any(name == named or name.endswith(suffixes) for name in saved))


def _architectures(config: PreTrainedConfig) -> list[str]:
    return list(getattr(config, "architectures", None) or [])


def _weights_hint(error: Exception) -> str | None:
    return "give --allow_pickle to read weights in pickle format" if "safetensors" in str(error) else None


def _config_hint(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "give --trust_remote_code to run the code in its repository"
    return "check the name, the connection and, for a gated model, the login"
