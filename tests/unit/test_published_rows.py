"""Rows of loader files: prompt and answer, and what makes a row unfit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from crosskd.errors import UsageError
from crosskd.published.rows import TokenRow, causal_row, encoder_decoder_row, without_end

IDS = [1, 5, 6, 7, 8, 2]
LABELS = [-100, -100, -100, 7, 8, 2]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_a_row_may_hold_lists_arrays_or_tensors(kind: Any) -> None:
    row = {"input_ids": kind(IDS), "labels": kind(LABELS), "attention_mask": kind([1] * 6)}
    assert causal_row(row, "row 0") == TokenRow([1, 5, 6], [7, 8, 2], 6)


def test_padding_of_either_side_is_dropped() -> None:
    padded = {
        "input_ids": [0, 0, *IDS, 0],
        "labels": [-100, -100, *LABELS, -100],
        "attention_mask": [0, 0, *[1] * 6, 0],
    }
    assert causal_row(padded, "row 0") == causal_row({"input_ids": IDS, "labels": LABELS}, "row 0")
    # as loaders write it that copy their input to the labels, padding included
    copied = {"input_ids": [*IDS, 0, 0], "labels": [*IDS, 0, 0], "attention_mask": [1] * 6 + [0, 0]}
    assert causal_row(copied, "row 0") == TokenRow([1], [5, 6, 7, 8, 2], 6)


def test_tokens_after_the_answer_have_no_part() -> None:
    row = {"input_ids": [*IDS, 9, 9], "labels": [*LABELS, -100, -100]}
    assert causal_row(row, "row 0") == TokenRow([1, 5, 6], [7, 8, 2], 6)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": IDS, "labels": LABELS[1:]}, r"row 3: labels has 5 entries: expected 6"),
        ({"input_ids": IDS, "labels": LABELS, "attention_mask": [1]}, r"attention_mask has 1 entries"),
        ({"input_ids": IDS, "labels": [-100] * 6}, r"row 3 has no answer"),
        ({"input_ids": [7], "labels": [7]}, r"no answer"),
        ({"input_ids": [], "labels": []}, r"no answer"),
        ({"input_ids": IDS, "labels": [-100, 5, -100, 7, 8, 2]}, r"labels has 2 runs of tokens"),
        ({"input_ids": IDS, "labels": LABELS, "attention_mask": [1, 0, 1, 1, 1, 1]}, r"attention_mask.*2 runs"),
        ({"input_ids": IDS, "labels": [-100, -100, 7, 8, 2, -100]}, r"label 2: got 7; expected its own token, 6"),
        ({"input_ids": [IDS], "labels": [LABELS]}, r"input_ids: got 'a list of list'"),
        ({"input_ids": IDS, "labels": [0.5] * 6}, r"labels: got 'a list of float'"),
        ({"input_ids": "text", "labels": LABELS}, r"input_ids: got 'str'"),
        ({"input_ids": IDS}, r"row 3 lacks"),
    ],
)
def test_an_unfit_row_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        causal_row(row, "row 3")


def test_rows_of_encoder_decoder_models() -> None:
    row = {"input_ids": torch.tensor([5, 6, 2, 0]), "labels": [7, 8, 2, -100], "attention_mask": [1, 1, 1, 0]}
    assert encoder_decoder_row(row, "row 0") == TokenRow([5, 6, 2], [7, 8, 2], 3)
    for labels, mask in (([-100], [1, 1]), ([7], [0, 0])):
        with pytest.raises(UsageError, match="no answer"):
            encoder_decoder_row({"input_ids": [5, 2], "labels": labels, "attention_mask": mask}, "row 0")


def test_a_teacher_is_not_asked_about_the_end() -> None:
    row = TokenRow([1], [7, 2], 3)
    assert without_end(row, 2, "row 0") == TokenRow([1], [7], 2)
    assert without_end(row, 9, "row 0") == row
    with pytest.raises(UsageError, match="end-of-sequence token alone"):
        without_end(TokenRow([1], [2], 2), 2, "row 0")
