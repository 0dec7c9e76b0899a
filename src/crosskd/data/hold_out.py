"""Hold-out: a share of the training examples, whole passages of them, becomes the validation split."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Sequence
from typing import Any

from crosskd.data.cleaning import REASONS
from crosskd.data.readers import Row
from crosskd.errors import UsageError

logger = logging.getLogger(__name__)


def holds_out(splits: Collection[str], source: str) -> bool:
    """Whether a share of the training split becomes the validation split: not where there is one already.

    Args:
        splits: Names of the splits.
        source: What messages call the data.

    Raises:
        UsageError: There is neither a validation nor a training split.
    """
    if "validation" in splits:
        logger.warning("--validation_fraction is ignored: %s has a validation split", source)
        return False
    if "train" not in splits:
        raise UsageError(
            "--validation_fraction", got=f"no training split in {source}, only {', '.join(splits)}",
            fix="leave it out, or name the rows of a lone file with --split train",
        )  # fmt: skip
    return True


def hold_out(kept: dict[str, list[Row]], counts: dict[str, dict[str, Any]], fraction: float, seed: int) -> None:
    """Move a share of the training examples into a validation split; the order of the rows stays.

    Passages are drawn, not rows: all questions about one passage stay on one side, so that nothing that is trained on
    is read again when the student is scored.

    Args:
        kept: Examples by split; changed in place.
        counts: Counts by split, as `crosskd.data.cleaning.read_split` returns them; changed in place, so that each row
            is counted in one split. ``held_out_passages`` says how many passages the validation split has.
        fraction: The share of the rows, in (0, 1), which whole passages come close to; at least one passage goes and
            one stays.
        seed: Seed of the draw.

    Raises:
        UsageError: There are fewer than two training examples, or all of them are about one passage.
    """
    rows = kept["train"]
    if len(rows) < 2:
        raise UsageError("--validation_fraction", got=f"{len(rows)} training examples", expected="at least 2")
    passages = _rows_by_passage(rows)
    if len(passages) < 2:
        raise UsageError(
            "--validation_fraction",
            got=f"one passage in all {len(rows)} training examples",
            expected="at least 2, since the questions about a passage stay together",
            fix="leave it out, and give a validation split of other passages",
        )
    drawn = _drawn(passages, max(1, round(len(rows) * fraction)), seed)
    held = {index for passage in drawn for index in passage}
    kept["validation"] = [row for index, row in enumerate(rows) if index in held]
    kept["train"] = [row for index, row in enumerate(rows) if index not in held]
    counts["train"]["rows"] -= len(held)
    nothing = {"rows": len(held), "examples": len(held), "dropped": dict.fromkeys(REASONS, 0), "joined_answers": 0}
    counts["validation"] = {**counts["train"], **nothing, "held_out_of": "train", "held_out_passages": len(drawn)}
    if len(passages) < len(rows):
        logger.info(
            "validation holds out %d of %d examples (%.1f %%; asked for: %g %%): %d of %d passages, each with all of "
            "its examples",
            len(held), len(rows), 100 * len(held) / len(rows), 100 * fraction, len(drawn), len(passages),
        )  # fmt: skip


def _rows_by_passage(rows: Sequence[Row]) -> list[list[int]]:
    """Places of the rows of each passage; white space makes no other passage, and no context makes none."""
    passages: dict[object, list[int]] = {}
    for index, row in enumerate(rows):
        passages.setdefault(" ".join(row["context"].split()) or index, []).append(index)
    return list(passages.values())


def _drawn(passages: list[list[int]], size: int, seed: int) -> list[list[int]]:
    """Passages in random order, without those that would lead away from ``size`` rows; one is always left over."""
    order = random.Random(seed).sample(passages, len(passages))
    drawn: list[list[int]] = []
    missing = size
    for passage in order:
        if abs(missing - len(passage)) < missing and len(drawn) < len(passages) - 1:
            drawn.append(passage)
            missing -= len(passage)
    return drawn or [min(order, key=len)]
