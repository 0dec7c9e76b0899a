"""Rows of a loader file become the tokens that the trainer reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from crosskd.errors import UsageError
from crosskd.models.limits import check_token_ids, context_length, embedding_rows, position_limit
from crosskd.models.load import LoadedModel
from crosskd.published.rows import TokenRow, causal_row, encoder_decoder_row, without_end

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RowReader:
    """How one side, student or teacher, reads the rows that the loader file made for it.

    Attributes:
        side: ``"student"`` or ``"teacher"``.
        loaded: Its model.
    """

    side: str
    loaded: LoadedModel

    def read(self, rows: Rows, split: str) -> list[TokenRow]:
        """Take every row apart.

        Raises:
            UsageError: See `crosskd.published.rows`.
        """
        take_apart = encoder_decoder_row if self.loaded.model.config.is_encoder_decoder else causal_row
        found = []
        for index in range(len(rows)):
            where = self._where(split, index)
            row = take_apart(rows[index], where)
            end = self.loaded.tokenizer.eos_token_id
            found.append(without_end(row, end, where) if self.side == "teacher" and isinstance(end, int) else row)
        return found

    def check(self, index: int, row: TokenRow, split: str) -> None:
        """Refuse a row that the model cannot read: longer than its positions, or with ids beyond its embeddings.

        Raises:
            UsageError: It is one of these.
        """
        model = self.loaded.model
        endless = model.config.is_encoder_decoder or position_limit(model.config) is None
        limit = None if endless else context_length(model.config, self.loaded.tokenizer)
        if limit is not None and row.length > limit:
            raise UsageError(
                f"{self._where(split, index)} has {row.length} tokens",
                expected=f"at most {limit}, the limit of {self.loaded.name}",
                fix="shorten it in the loader file, or drop long rows of the student with --context_length",
            )
        check_token_ids(
            [(self._where(split, index), [*row.prompt, *row.answer])],
            embedding_rows(model),
            self.loaded.name,
            fix="make the tokens with the tokenizer that get_split is given",
        )

    def text(self, row: TokenRow) -> str:
        """The answer, with runs of white space as one space and in lower case."""
        return " ".join(str(self.loaded.tokenizer.decode(row.answer, skip_special_tokens=True)).lower().split())

    def _where(self, split: str, index: int) -> str:
        return f"{self.side}'s row {index} of split {split!r}"


def tokenized_rows(
    student: RowReader,
    student_rows: Rows,
    teacher: RowReader | None,
    teacher_rows: Rows | None,
    *,
    split: str,
    longest: int | None,
) -> Dataset:
    """The columns that `DistillationTrainer` takes as tokens: ``<side>_prompt_ids`` and ``<side>_answer_ids``.

    Args:
        student: The student's reader.
        student_rows: Its rows.
        teacher: The teacher's; None without one.
        teacher_rows: Its rows, of the same examples in the same order.
        split: Name of the split, for messages.
        longest: Rows with more tokens than this for the student are dropped, as are the teacher's of the same index.

    Raises:
        UsageError: The two sides differ in number, a row is unfit (see `RowReader`), or none is left.
    """
    sides = [(student, student.read(student_rows, split))]
    if teacher is not None and teacher_rows is not None:
        sides.append((teacher, teacher.read(teacher_rows, split)))
        _check_pairs(sides, split)
    kept = [index for index, row in enumerate(sides[0][1]) if longest is None or row.length <= longest]
    _tell_dropped(len(sides[0][1]), kept, split, longest)
    columns: dict[str, list[list[int]]] = {}
    for reader, rows in sides:
        for index in kept:
            reader.check(index, rows[index], split)
        columns[f"{reader.side}_prompt_ids"] = [rows[index].prompt for index in kept]
        columns[f"{reader.side}_answer_ids"] = [rows[index].answer for index in kept]
    return Dataset.from_dict(columns)


def _check_pairs(sides: Sequence[tuple[RowReader, list[TokenRow]]], split: str) -> None:
    (student, ours), (teacher, theirs) = sides
    if len(ours) != len(theirs):
        raise UsageError(
            f"split {split!r} has {len(ours)} rows for the student and {len(theirs)} for the teacher",
            expected="get_split to make the same rows in the same order with either tokenizer",
        )
    pairs = list(zip(ours, theirs, strict=True))
    differing = [at for at, (mine, other) in enumerate(pairs) if student.text(mine) != teacher.text(other)]
    if len(differing) > len(pairs) / 2:
        at = differing[0]
        logger.warning(
            "%d of %d answers of split %r differ between student and teacher; row %d: %r and %r. Are the rows in the "
            "same order?",
            len(differing),
            len(pairs),
            split,
            at,
            student.text(ours[at])[:60],
            teacher.text(theirs[at])[:60],
        )


def _tell_dropped(count: int, kept: Sequence[int], split: str, longest: int | None) -> None:
    if not kept:
        raise UsageError(f"--context_length {longest}", got=f"no row of split {split!r} that is so short")
    if len(kept) < count:
        logger.info(
            "%d of %d rows of split %r are dropped: longer than --context_length %s",
            count - len(kept),
            count,
            split,
            longest,
        )
