"""What a model can read: how long a sequence, and which token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from crosskd.errors import UsageError

_CONFIG_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_UNBOUNDED = 1_000_000  # tokenizers without a limit state numbers like 1e30


def position_limit(config: PreTrainedConfig) -> int | None:
    """Longest sequence that a model's positions allow, in tokens; None where they have no end.

    Relative positions (T5, mT5) and ALiBi (Bloom, MPT) have none, whatever number their files state: that is how long
    the sequences were that they were trained on.
    """
    return None if _has_endless_positions(config.get_text_config(decoder=True)) else _smallest(*_stated(config))


def context_length(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> int | None:
    """Longest sequence that is given to a model, in tokens: the smallest of its own limit, its tokenizer's and yours.

    Where the positions have no end, what model and tokenizer state is advice, which ``max_length`` overrules.

    Args:
        config: The model's.
        tokenizer: The model's.
        max_length: As the user bounds it; None leaves it to model and tokenizer.

    Returns:
        The limit, or None where nothing states one.
    """
    if max_length is not None and position_limit(config) is None:
        return max_length
    return _smallest(*_stated(config), tokenizer.model_max_length, max_length)


def longest_prompt(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int | None, max_new_tokens: int
) -> int | None:
    """Longest prompt that leaves room for an answer, in tokens; None where nothing limits it.

    An encoder-decoder model writes its answer elsewhere, so that its prompt may take the whole limit.

    Args:
        config: The model's.
        tokenizer: The model's.
        max_length: Prompt and answer together, as the user bounds them; None leaves it to the model.
        max_new_tokens: The answer.

    Raises:
        UsageError: No token is left for the prompt.
    """
    limit = context_length(config, tokenizer, max_length)
    if limit is None:
        return None
    room = limit - (0 if config.is_encoder_decoder else max_new_tokens)
    if room < 1:
        raise UsageError(
            "--max_new_tokens", got=max_new_tokens, expected=f"less than the {limit} tokens of prompt and answer"
        )
    return room


def embedding_rows(model: PreTrainedModel) -> int:
    """How many token ids a model has embeddings for."""
    return int(cast(Tensor, model.get_input_embeddings().weight).shape[0])


def check_token_ids(
    rows: Iterable[tuple[str, Sequence[int]]], embeddings: int, model_name: str, fix: str | None = None
) -> None:
    """Refuse token ids that a model has no embedding for; a GPU would stop at them without a word that helps.

    A tokenizer may have more entries than its model has embeddings, as long as no text holds them: only ids count.

    Args:
        rows: What the message calls each row, such as ``prompt 3``, and its token ids.
        embeddings: How many the model has, see `embedding_rows`.
        model_name: The model, for the message.
        fix: How to fix it; None names the usual causes.

    Raises:
        UsageError: An id is too large; names its row.
    """
    for where, ids in rows:
        largest = max(ids, default=0)
        if largest >= embeddings:
            raise UsageError(
                f"{where} holds token {largest}",
                expected=f"less than {embeddings}, the embeddings of {model_name}",
                fix=fix or "take the model's own tokenizer, or give the model embeddings for added tokens",
            )


def _has_endless_positions(config: PreTrainedConfig) -> bool:
    attention = getattr(config, "attn_config", None)  # MPT's
    alibi = getattr(config, "alibi", False) or getattr(attention, "alibi", False)
    return bool(alibi) or config.model_type == "bloom" or hasattr(config, "relative_attention_num_buckets")


def _stated(config: PreTrainedConfig) -> list[object]:
    text_config = config.get_text_config(decoder=True)
    return [getattr(text_config, name, None) for name in _CONFIG_NAMES]


def _smallest(*limits: object) -> int | None:
    numbers = [limit for limit in limits if isinstance(limit, int | float) and 0 < limit < _UNBOUNDED]
    return int(min(numbers)) if numbers else None
