"""The largest entries of each teacher token, as ULD and MinED read them from targets."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from crosskd.errors import UsageError
from crosskd.losses.targets import TeacherTargets


def checked_top_entries(top_entries: int | None) -> None:
    """Raise a UsageError unless ``top_entries`` is None (all) or a count; 0 is read as None."""
    if top_entries is not None and top_entries < 0:
        raise UsageError("top_entries", got=top_entries, expected="an integer of at least 1, or null for all")


def largest_teacher_entries(
    targets: TeacherTargets, top_entries: int | None
) -> tuple[Float[Tensor, "B T m"], Float[Tensor, "B T"]]:
    """Log-probabilities of the ``top_entries`` largest entries and the probability beyond them.

    Targets may hold more entries, made for another method too: those beyond ``top_entries`` join the tail, so that a
    method gives the same numbers from its own targets and from shared ones.

    Raises:
        UsageError: The targets hold fewer entries than ``top_entries``, and not all there are.
    """
    entries, tail = targets.entry_log_probabilities, targets.entry_tail
    assert entries is not None  # the caller asked `required_targets`
    assert tail is not None
    held, vocabulary = entries.shape[-1], targets.vocabulary_size
    wanted = min(top_entries or vocabulary, vocabulary)
    if held < wanted:
        raise UsageError(
            "top_entries",
            got=top_entries or "all",
            expected=f"at most the {held} entries that the teacher targets hold",
            fix="lower it or write the cache again",
        )
    beyond = entries[..., wanted:].to(tail.dtype).exp().sum(-1)
    return entries[..., :wanted], tail + beyond
