"""Which examples can be trained on: all of them, or those that the teacher answered."""

from __future__ import annotations

import logging

from datasets import Dataset

from crosskd.errors import UsageError

logger = logging.getLogger(__name__)


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
    answers = examples["teacher_answer"] if "teacher_answer" in examples.column_names else []
    kept = [index for index, answer in enumerate(answers) if answer and answer.strip()]
    if not kept:
        raise UsageError(
            "the examples have no answers of a teacher",
            expected="text in the column teacher_answer",
            fix="let `crosskd answer` or `crosskd prepare --answers` add them, or take --supervision labels",
        )
    if len(kept) == len(examples):
        return examples
    logger.warning(
        "%d of %d examples are left out: their teacher answer is empty", len(examples) - len(kept), len(examples)
    )
    return examples.select(kept)
