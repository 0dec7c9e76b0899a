"""Examples, tokenized for the student and, where the teacher is live, for the teacher."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from crosskd.data.collate import collate_answers, collate_encoder_decoder
from crosskd.data.supervision import supervised_examples
from crosskd.errors import UsageError
from crosskd.losses.targets import TeacherTargets
from crosskd.teacher.cache import TargetCache
from crosskd.text.sides import Side, supervised_answer

logger = logging.getLogger(__name__)


def is_tokenized(examples: Dataset | None) -> bool:
    """Whether examples come as tokens already, in the columns that `tokenize_examples` makes."""
    return examples is not None and "student_prompt_ids" in examples.column_names


def check_tokenized(examples: Dataset, needs_teacher: bool, cached: bool) -> None:
    """Refuse tokens that a run cannot use.

    Args:
        examples: See `is_tokenized`.
        needs_teacher: Whether a live teacher reads them too.
        cached: Whether a cache of targets is to be used; it cannot be told whether it belongs to such tokens.

    Raises:
        UsageError: A column is missing, an answer is empty, or there is a cache.
    """
    if cached:
        raise UsageError("--teacher_cache", got="examples that are tokens already", expected="examples as text")
    sides = ("student", "teacher") if needs_teacher else ("student",)
    for column in (f"{side}_{part}_ids" for side in sides for part in ("prompt", "answer")):
        if column not in examples.column_names:
            raise UsageError(f"tokenized examples have no column {column!r}", got=", ".join(examples.column_names))
        empty = next((row for row, ids in enumerate(examples[column]) if not ids), None)
        if empty is not None:
            raise UsageError(f"tokenized example {empty}: {column}", got="no tokens", expected="at least one")


def tokenize_examples(examples: Dataset, sides: Sequence[Side], supervision: str, training: bool) -> Dataset:
    """Tokenize every example for each side, and say how often a context was shortened.

    Args:
        examples: Rows with ``id``, ``title``, ``context``, ``question``, ``answers``.
        sides: Student and, where its tokens are needed, teacher.
        supervision: ``"labels"`` or ``"teacher"``.
        training: Whether a cache of targets, if there is one, holds these examples; otherwise ``index`` is -1.

    Returns:
        A data set with ``id``, ``index`` (among the examples that have the answer asked for, see
        `supervised_examples`; the others are left out), ``length`` (the student's tokens, by which
        ``group_by_length`` sorts) and, for each side, ``<side>_prompt_ids`` and ``<side>_answer_ids``. Examples that
        are not trained on keep their text, against which the student's answers are scored.
    """

    def row(example: Mapping[str, Any], index: int) -> dict[str, Any]:
        answer = supervised_answer(example, supervision)
        features: dict[str, Any] = {"id": str(example.get("id", index)), "index": index if training else -1}
        for side in sides:
            tokens = side.tokenize(example, answer)
            features[f"{side.name}_prompt_ids"] = tokens.prompt_ids
            features[f"{side.name}_answer_ids"] = tokens.answer_ids
            features[f"{side.name}_dropped"] = tokens.context_tokens_dropped
        features["length"] = _student_length(features)
        return features

    examples = supervised_examples(examples, supervision)
    tokenized = Dataset.from_list([row(examples[i], i) for i in range(len(examples))])
    for side in sides:
        dropped = sum(count > 0 for count in tokenized[f"{side.name}_dropped"])
        if dropped:
            logger.warning(
                "%d of %d contexts lost their front to fit the %s's %d tokens",
                dropped,
                len(tokenized),
                side.name,
                side.max_length,
            )
    if training:
        return tokenized
    text = [name for name in examples.column_names if name not in tokenized.column_names]
    return concatenate_datasets([tokenized, examples.select_columns(text)], axis=1)


def with_lengths(examples: Dataset) -> Dataset:
    """Examples that came as tokens, with the column ``length``."""
    if "length" in examples.column_names:
        return examples
    rows = examples.select_columns(["student_prompt_ids", "student_answer_ids"])
    return examples.add_column("length", [_student_length(row) for row in rows])  # pyright: ignore


def _student_length(row: Mapping[str, Any]) -> int:
    return len(row["student_prompt_ids"]) + len(row["student_answer_ids"])


@dataclass(frozen=True)
class DistillationCollator:
    """Rows of `tokenize_examples` become a batch.

    Attributes:
        student_end_id: The student's end-of-sequence token: the last of an answer, where it is there.
        decoder_start_id: Starts the student's decoder; None for a causal student.
        live_teacher: Whether a live teacher reads the batch.
        cache: Targets by example; None where the teacher is live or not needed.
        align: Student token to teacher token for each pair of answers; None where the method needs no alignment.
    """

    student_end_id: int
    decoder_start_id: int | None = None
    live_teacher: bool = False
    cache: TargetCache | None = None
    align: Callable[[Sequence[int], Sequence[int]], Sequence[int]] | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch: the student's inputs, ``labels`` and ``distilled`` (B, T_s), and the teacher's side.

        ``distilled`` is true on answer tokens except for the end-of-sequence token; ``ids`` names the examples. A live
        teacher's inputs stand under ``teacher``, cached targets under ``targets``.
        """
        batch = self._student(rows)
        lengths = torch.tensor([len(self._distilled(row)) for row in rows])
        batch["ids"] = [str(row.get("id", row.get("index", "?"))) for row in rows]
        batch["distilled"] = torch.arange(batch["labels"].shape[1]) < lengths[:, None]
        if self.live_teacher and "teacher_prompt_ids" in rows[0]:
            batch["teacher"] = collate_answers(
                [r["teacher_prompt_ids"] for r in rows], [r["teacher_answer_ids"] for r in rows]
            )
        if self.cache is not None and rows[0].get("index", -1) >= 0:
            batch["targets"] = TeacherTargets.stack([self.cache[row["index"]] for row in rows])
        if self.align is not None and ("targets" in batch or "teacher" in batch):
            batch["alignment"] = self._alignment(rows, batch["labels"])
        return batch

    def _student(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        prompts, answers = ([row[f"student_{part}_ids"] for row in rows] for part in ("prompt", "answer"))
        if self.decoder_start_id is None:
            return collate_answers(prompts, answers)
        return collate_encoder_decoder(prompts, answers, self.decoder_start_id)

    def _distilled(self, row: Mapping[str, Any]) -> Sequence[int]:
        answer = row["student_answer_ids"]
        return answer[:-1] if answer[-1] == self.student_end_id else answer

    def _teacher_answer(self, row: Mapping[str, Any]) -> Sequence[int]:
        """The answer in the teacher's tokens: its own, or those that the cache kept."""
        return row["teacher_answer_ids"] if self.cache is None else self.cache[row["index"]]["answer_ids"][0].tolist()

    def _alignment(self, rows: Sequence[Mapping[str, Any]], labels: Tensor) -> Tensor:
        assert self.align is not None
        alignment = torch.full_like(labels, -1)
        for i, row in enumerate(rows):
            pairs = self.align(self._distilled(row), self._teacher_answer(row))
            alignment[i, : len(pairs)] = torch.tensor(pairs, dtype=torch.long)
        return alignment
