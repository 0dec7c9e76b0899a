"""How a teacher chooses the tokens of its answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from crosskd.errors import UsageError


@dataclass(frozen=True)
class Decoding:
    """How the next token of an answer is chosen.

    Attributes:
        max_new_tokens: Longest answer, in tokens, at least 1.
        temperature: 0 takes the most probable token; above 0, tokens are drawn from softmax(logits / temperature).
        top_p: Draw from the most probable tokens that together reach this share, in (0, 1].
        seed: Of the draws. Those of a prompt depend on the seed and on its tokens only.
    """

    max_new_tokens: int = 150
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError("--max_new_tokens", got=self.max_new_tokens, expected="at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError("--temperature", got=self.temperature, expected="0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise UsageError("--top_p", got=self.top_p, expected="a number in (0, 1]")

    def prompt_seed(self, prompt: Sequence[int]) -> int:
        """The seed of one prompt's draws, in [0, 2^63): the same in any batch, shard and order."""
        digest = hashlib.sha256(f"{self.seed}:{','.join(map(str, prompt))}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1
