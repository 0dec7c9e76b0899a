"""Answer-only logits, and states of a shared prefix, equal what the whole model says."""

from __future__ import annotations

import pytest
import torch

from crosskd.data.collate import collate_answers
from crosskd.losses.targets import TargetRequest, targets_from_logits
from crosskd.models.answer_logits import answer_logits
from crosskd.teacher.capture import capture_targets, forward_answers
from crosskd.teacher.prefix import SharedPrefix, reusable_prefix
from crosskd.text.answer_spans import TokenizedExample
from helpers_models import CONFIGS, tiny_model
from helpers_tolerances import assert_logits_close

SHARED = list(range(10, 34))
EXAMPLES = [
    TokenizedExample([*SHARED, 50, 51, 52], [60, 61, 62, 63], 0),
    TokenizedExample([*SHARED, 70], [71], 0),
    TokenizedExample([*SHARED, 80, 81, 82, 83, 84], [85, 86], 0),
]
LONGEST = max(len(example.prompt_ids) + len(example.answer_ids) for example in EXAMPLES)


def expected_logits(model: torch.nn.Module, example: TokenizedExample) -> torch.Tensor:
    """The unpadded sequence by itself, all logits."""
    ids = torch.tensor([example.prompt_ids + example.answer_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    start = len(example.prompt_ids) - 1
    return logits[start : start + len(example.answer_ids)]


@pytest.mark.parametrize("family", list(CONFIGS))
def test_left_padded_answer_logits_equal_unpadded_full_logits(family: str) -> None:
    model = tiny_model(family)
    batch = collate_answers([e.prompt_ids for e in EXAMPLES], [e.answer_ids for e in EXAMPLES])
    with torch.no_grad():
        logits = answer_logits(model, batch, batch["labels"].shape[1])
    assert logits.shape[1] == 4
    for row, example in zip(logits, EXAMPLES, strict=True):
        assert_logits_close(row[: len(example.answer_ids)], expected_logits(model, example), model, LONGEST)


@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize("family", list(CONFIGS))
def test_capture_equals_unpadded_full_logits(family: str, with_prefix: bool) -> None:
    model = tiny_model(family)
    prefix = SharedPrefix(model, SHARED) if with_prefix else None
    answers = forward_answers(model, EXAMPLES, prefix)
    assert answers.mask.sum(1).tolist() == [4, 1, 2]
    for row, example in zip(answers.logits, EXAMPLES, strict=True):
        assert_logits_close(row[: len(example.answer_ids)], expected_logits(model, example), model, LONGEST)


def test_targets_keep_the_order_of_the_examples() -> None:
    model = tiny_model("llama")
    request = TargetRequest(top_k=5, temperatures=(2.0,))
    captured = capture_targets(model, EXAMPLES, request, batch_size=2, shared_prefix=SHARED)
    for example, targets in zip(EXAMPLES, captured, strict=True):
        logits = expected_logits(model, example)[None]
        alone = targets_from_logits(logits, torch.ones(1, logits.shape[1], dtype=torch.bool), request)
        assert targets.column_log_probabilities is not None
        assert alone.column_log_probabilities is not None
        assert_logits_close(targets.column_log_probabilities, alone.column_log_probabilities, model, LONGEST)


def test_a_prefix_ends_before_the_shortest_prompt() -> None:
    assert reusable_prefix([SHARED, [*SHARED, 1]], SHARED) == SHARED[:-1]
    assert reusable_prefix([[1, 2, 3]], [1, 2]) == []
    assert reusable_prefix([[*SHARED[:20], 99, 98], [*SHARED, 1]], SHARED) == SHARED[:20]
