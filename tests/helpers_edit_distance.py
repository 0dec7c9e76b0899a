"""The edit distance by its definition, for oracles."""

from __future__ import annotations

from functools import cache


@cache
def edit_distance(left: str, right: str) -> int:
    """Levenshtein distance by its recursion."""
    if not left or not right:
        return len(left) + len(right)
    return min(
        edit_distance(left[1:], right) + 1,
        edit_distance(left, right[1:]) + 1,
        edit_distance(left[1:], right[1:]) + (left[0] != right[0]),
    )
