"""How much of a beginning that prompts share can be computed once."""

from __future__ import annotations

from collections.abc import Sequence


def usable_prefix_length(prompts: Sequence[Sequence[int]], shared: Sequence[int]) -> int:
    """How many of the ``shared`` ids all ``prompts`` begin with, short of the last token of the shortest prompt.

    One token of every prompt must be left, since its output predicts the first new token.
    """
    length = min([len(shared), *(len(prompt) - 1 for prompt in prompts)])
    for prompt in prompts:
        differs = (at for at in range(length) if prompt[at] != shared[at])
        length = next(differs, length)
    return max(length, 0)
