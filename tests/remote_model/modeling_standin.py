"""A model that is not part of transformers: a Qwen 2 under names of its own, as a repository's own code defines it."""

from __future__ import annotations

from transformers import Qwen2Config, Qwen2ForCausalLM


class StandInConfig(Qwen2Config):
    """Configuration with a model type that transformers does not know."""

    model_type = "crosskd_standin"


class StandInLMHeadModel(Qwen2ForCausalLM):
    """Named as the first Qwen models are."""

    config_class = StandInConfig  # pyright: ignore[reportIncompatibleUnannotatedOverride]
