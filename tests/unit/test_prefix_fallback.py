"""A model for which a reused prefix is not exact gets whole prompts, and the log says so."""

from __future__ import annotations

import logging

import pytest
import torch

from crosskd.losses.targets import TargetRequest
from crosskd.teacher import capture
from crosskd.teacher.prefix import SharedPrefix
from crosskd.text.answer_spans import TokenizedExample
from helpers_models import tiny_model

SHARED = list(range(10, 40))
EXAMPLES = [TokenizedExample([*SHARED, 50 + i], [60, 61], 0) for i in range(3)]
REQUEST = TargetRequest(top_k=5)


class WrongPrefix(SharedPrefix):
    """States of other tokens."""

    def __init__(self, model: torch.nn.Module, ids: list[int]) -> None:
        super().__init__(model, [token + 1 for token in ids])


class NoPrefix(SharedPrefix):
    """A family whose cache cannot be copied."""

    def __init__(self, model: torch.nn.Module, ids: list[int]) -> None:
        raise NotImplementedError("no such cache")


@pytest.mark.parametrize(("prefix", "told"), [(WrongPrefix, "changes log-probabilities"), (NoPrefix, "no such cache")])
def test_fall_back(
    prefix: type[SharedPrefix], told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    expected = capture.capture_targets(model, EXAMPLES, REQUEST)
    monkeypatch.setattr(capture, "SharedPrefix", prefix)
    monkeypatch.setattr(logging.getLogger("crosskd"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="crosskd"):
        found = capture.capture_targets(model, EXAMPLES, REQUEST, shared_prefix=SHARED)
    assert told in caplog.text
    assert "whole prompts are computed" in caplog.text
    for one, two in zip(expected, found, strict=True):
        assert one.column_log_probabilities is not None
        assert two.column_log_probabilities is not None
        torch.testing.assert_close(one.column_log_probabilities, two.column_log_probabilities)


def test_no_warning_where_it_is_exact(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("crosskd"), "propagate", True)
    capture.capture_targets(tiny_model("gemma3"), EXAMPLES, REQUEST, shared_prefix=SHARED)
    assert "whole prompts" not in caplog.text
