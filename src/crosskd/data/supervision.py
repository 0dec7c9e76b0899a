"""Which examples can be trained on: all of them, or those that the teacher answered."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from crosskd.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
_COLUMN = "teacher_answer"


def supervised_examples(examples: Dataset, supervision: str) -> Dataset:
    """The examples that have the answer asked for; says how many are left out.

    Labels are complete wherever `prepare` was not told otherwise, so all examples are returned for them; a missing one
    is an error later. A teacher now and then answers nothing, and such examples are left out.

    Args:
        examples: Prepared examples.
        supervision: ``"labels"`` or ``"teacher"``.

    Raises:
        UsageError: The teacher answered none of them.
    """
    if supervision != "teacher":
        return examples
    answers = examples[_COLUMN] if _COLUMN in examples.column_names else []
    kept = [index for index, answer in enumerate(answers) if answer and answer.strip()]
    check_supervised(examples.column_names if kept else [], supervision)
    if len(kept) == len(examples):
        return examples
    logger.warning(
        "%d of %d examples are left out: their teacher answer is empty", len(examples) - len(kept), len(examples)
    )
    return examples.select(kept)


def check_supervised(columns: Iterable[str], supervision: str) -> None:
    """Refuse examples whose columns lack the answers asked for.

    Raises:
        UsageError: ``supervision`` is ``"teacher"``, and no teacher answered them.
    """
    if supervision == "teacher" and _COLUMN not in columns:
        raise UsageError(
            "the examples have no answers of a teacher",
            expected=f"text in the column {_COLUMN}",
            fix="let `crosskd answer` or `crosskd prepare --answers` add them, or take --supervision labels",
        )
