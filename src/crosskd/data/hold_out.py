"""Hold-out: a share of the training examples becomes the validation split."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection
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
    """Move a share of the training examples, drawn at random, into a validation split; the order of the rows stays.

    Args:
        kept: Examples by split; changed in place.
        counts: Counts by split, as `crosskd.data.cleaning.read_split` returns them; changed in place, so that each row
            is counted in one split.
        fraction: The share, in (0, 1); at least one example goes and one stays.
        seed: Seed of the draw.

    Raises:
        UsageError: There are fewer than two training examples.
    """
    rows = kept["train"]
    if len(rows) < 2:
        raise UsageError("--validation_fraction", got=f"{len(rows)} training examples", expected="at least 2")
    size = min(len(rows) - 1, max(1, round(len(rows) * fraction)))
    held = set(random.Random(seed).sample(range(len(rows)), size))
    kept["validation"] = [row for index, row in enumerate(rows) if index in held]
    kept["train"] = [row for index, row in enumerate(rows) if index not in held]
    counts["train"]["rows"] -= size
    nothing = {"rows": size, "examples": size, "dropped": dict.fromkeys(REASONS, 0), "joined_answers": 0}
    counts["validation"] = {**counts["train"], **nothing, "held_out_of": "train"}
