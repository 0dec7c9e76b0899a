"""Rows of a loader file, taken apart into prompt and answer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from crosskd.data.collate import IGNORED
from crosskd.errors import UsageError


@dataclass(frozen=True)
class TokenRow:
    """A prompt and its answer, in tokens.

    Attributes:
        prompt: Token ids, without padding.
        answer: Token ids, as the labels have them.
        length: Tokens that the model reads as one sequence.
    """

    prompt: list[int]
    answer: list[int]
    length: int


def causal_row(row: Mapping[str, Any], where: str) -> TokenRow:
    """Prompt and answer of a row for a causal model.

    Padding is what ``attention_mask`` leaves out at either end. The answer is the tokens that have a label: one run.
    What follows it has no part in any loss of a causal model, and is dropped. Where the first token has a label, it is
    prompt all the same, since nothing comes before it that could predict it.

    Args:
        row: ``input_ids`` and ``labels`` of one length and, where it is there, ``attention_mask``.
        where: What messages call the row.

    Raises:
        UsageError: Columns differ in length, the mask or the labels have gaps, a label is not its token, or there is no
            answer.
    """
    ids, labels, mask = _columns(row, where)
    for name, column in (("labels", labels), ("attention_mask", mask)):
        if len(column) != len(ids):
            raise UsageError(f"{where}: {name} has {len(column)} entries", expected=f"{len(ids)}, as in input_ids")
    start, end = _run([bool(entry) for entry in mask], f"{where}: attention_mask")
    ids, labels = ids[start:end], labels[start:end]
    start, end = _run([label != IGNORED for label in labels], f"{where}: labels")
    start = max(start, 1)
    if start >= end:
        raise _no_answer(where)
    if labels[start:end] != ids[start:end]:
        at = next(at for at in range(start, end) if labels[at] != ids[at])
        raise UsageError(
            f"{where}: label {at}", got=labels[at], expected=f"its own token, {ids[at]} (labels are not shifted)"
        )
    return TokenRow(ids[:start], ids[start:end], end)


def encoder_decoder_row(row: Mapping[str, Any], where: str) -> TokenRow:
    """Prompt and answer of a row for an encoder-decoder model: ``input_ids``, and the ``labels`` other than -100.

    Raises:
        UsageError: The mask has gaps or another length, or the prompt or the answer is empty.
    """
    ids, labels, mask = _columns(row, where)
    if len(mask) != len(ids):
        raise UsageError(f"{where}: attention_mask has {len(mask)} entries", expected=f"{len(ids)}, as in input_ids")
    start, end = _run([bool(entry) for entry in mask], f"{where}: attention_mask")
    answer = [label for label in labels if label != IGNORED]
    if start >= end or not answer:
        raise _no_answer(where)
    return TokenRow(ids[start:end], answer, end - start)


def without_end(row: TokenRow, end_id: int, where: str) -> TokenRow:
    """The row without the end-of-sequence token that ends its answer: a teacher is asked about the text alone."""
    if row.answer[-1] != end_id:
        return row
    if len(row.answer) == 1:
        raise UsageError(f"{where} has no answer", got="an end-of-sequence token alone", expected="an answer before it")
    return TokenRow(row.prompt, row.answer[:-1], row.length - 1)


def _columns(row: Mapping[str, Any], where: str) -> tuple[list[int], list[int], list[int]]:
    if not isinstance(row, Mapping) or "input_ids" not in row or "labels" not in row:
        raise UsageError(f"{where} lacks input_ids or labels")
    ids = _integers(row, "input_ids", where)
    labels = _integers(row, "labels", where)
    mask = _integers(row, "attention_mask", where) if "attention_mask" in row else [1] * len(ids)
    return ids, labels, mask


def _integers(row: Mapping[str, Any], name: str, where: str) -> list[int]:
    values: Any = row[name]
    if hasattr(values, "tolist"):  # tensors and arrays
        values = values.tolist()
    if not isinstance(values, list | tuple) or not all(isinstance(value, Integral) for value in values):
        raise UsageError(f"{where}: {name}", got=_kind(values), expected="a flat list of integers")
    return [int(value) for value in values]


def _kind(values: object) -> str:
    if not isinstance(values, list | tuple):
        return type(values).__name__
    return "a list of " + " and ".join(sorted({type(value).__name__ for value in values}))


def _run(chosen: Sequence[bool], where: str) -> tuple[int, int]:
    """Begin and end of the one run of true entries; (0, 0) where there is none."""
    runs = [(value, len(list(group))) for value, group in itertools.groupby(chosen)]
    before = runs[0][1] if runs and not runs[0][0] else 0
    lengths = [length for value, length in runs if value]
    if len(lengths) > 1:
        raise UsageError(f"{where} has {len(lengths)} runs of tokens", expected="one, without gaps")
    return (before, before + lengths[0]) if lengths else (0, 0)


def _no_answer(where: str) -> UsageError:
    return UsageError(f"{where} has no answer", expected="labels other than -100 after a prompt")
