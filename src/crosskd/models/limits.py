"""How long a sequence a model can take."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from crosskd.errors import UsageError

_CONFIG_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_UNBOUNDED = 1_000_000  # tokenizers without a limit state numbers like 1e30


def context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Longest sequence, in tokens, that a model takes: the smaller of its own limit and its tokenizer's.

    Returns:
        The limit, or None where neither states one (relative positions without a bound).
    """
    text_config = config.get_text_config(decoder=True)
    stated = [getattr(text_config, name, None) for name in _CONFIG_NAMES]
    limits = [limit for limit in [*stated, tokenizer.model_max_length] if limit is not None and 0 < limit < _UNBOUNDED]
    return int(min(limits)) if limits else None


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
    limits = [limit for limit in (max_length, context_length(config, tokenizer)) if limit is not None]
    if not limits:
        return None
    room = min(limits) - (0 if config.is_encoder_decoder else max_new_tokens)
    if room < 1:
        raise UsageError(
            "--max_new_tokens", got=max_new_tokens, expected=f"less than the {min(limits)} tokens of prompt and answer"
        )
    return room
