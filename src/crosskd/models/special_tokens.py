"""The end-of-sequence and padding tokens of tokenizers that do not name them."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from crosskd.errors import UsageError

# What a tokenizer raises that keeps its special tokens to itself.
_REFUSALS = (AttributeError, NotImplementedError, TypeError, ValueError)


def ensure_special_tokens(
    tokenizer: PreTrainedTokenizerBase,
    source: object,
    config: PreTrainedConfig | GenerationConfig | None = None,
    *,
    revision: str | None = None,
) -> PreTrainedTokenizerBase:
    """Give a tokenizer an end-of-sequence token and a padding token where it names none.

    The end of sequence is the tokenizer's own ``eos_token``; else its ``eod_id``, by which the first Qwen models call
    it (their tokenizers name no ``eos_token``); else what the model's generation settings or configuration state. The
    padding token, where there is none, is the end of sequence: padding is masked, so that any token serves.

    Args:
        tokenizer: It is changed in place.
        source: What the user called it, for the message.
        config: States ``eos_token_id``; None reads ``generation_config.json`` and ``config.json`` beside the
            tokenizer, where that is needed.
        revision: Of those files, for a tokenizer from a hub.

    Returns:
        The same tokenizer. Its ``eos_token_id`` is an int.

    Raises:
        UsageError: Nothing names an end of sequence.
    """
    if tokenizer.eos_token_id is None:
        end = _end_of_sequence(tokenizer, config, revision)
        if end is None or not _set(tokenizer, "eos_token", _text(tokenizer.convert_ids_to_tokens(end))):
            raise UsageError(
                f"tokenizer of {str(source)!r}",
                got="no end-of-sequence token",
                expected="one, since it ends every answer",
                fix="set eos_token in its tokenizer_config.json",
            )
    if tokenizer.pad_token_id is None:
        _set(tokenizer, "pad_token", str(tokenizer.eos_token))  # where it refuses, batches pad with the end of sequence
    return tokenizer


def _end_of_sequence(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig | GenerationConfig | None, revision: str | None
) -> int | None:
    own = getattr(tokenizer, "eod_id", None)
    if isinstance(own, int):
        return own
    if config is not None:
        return _first_id(getattr(config, "eos_token_id", None))
    for settings in (GenerationConfig, PreTrainedConfig):
        stated = _stated(settings, str(tokenizer.name_or_path), revision)
        end = _first_id(stated.get("eos_token_id"))
        if end is not None:
            return end
    return None


def _stated(
    settings: type[GenerationConfig] | type[PreTrainedConfig], location: str, revision: str | None
) -> dict[str, Any]:
    """What a file beside the tokenizer states; nothing where there is no such file. It runs no code of the model's."""
    try:
        if settings is GenerationConfig:
            return GenerationConfig.from_pretrained(location, revision=revision or "main").to_dict()
        return PreTrainedConfig.get_config_dict(location, revision=revision or "main")[0]
    except (OSError, ValueError):
        return {}


def _first_id(stated: object) -> int | None:
    """The first of several ends: the others end a turn, and `generate_answers` knows those by itself."""
    if isinstance(stated, list):
        stated = next(iter(stated), None)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return stated if isinstance(stated, int) else None


def _set(tokenizer: PreTrainedTokenizerBase, name: str, text: str) -> bool:
    """Set a special token; False where the tokenizer does not take it."""
    try:
        setattr(tokenizer, name, text)
    except _REFUSALS:
        return False
    return getattr(tokenizer, f"{name}_id") is not None


def _text(token: object) -> str:
    return token.decode("utf-8", "replace") if isinstance(token, bytes) else str(token)
