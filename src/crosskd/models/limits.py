"""How long a sequence a model can take."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

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
