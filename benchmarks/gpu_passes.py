"""The two passes over the student's logits alone: statistics (one read), gradient (one read, one write)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from gpu_cases import Case

from crosskd.losses.answer_pass import answer_gradient
from crosskd.transport.softmax_statistics import softmax_statistics

TEMPERATURES = (1.0, 2.0)
COLUMNS = 50


def statistics_pass(case: Case) -> Callable[[], object]:
    """Maxima, log-sums at two temperatures and the column sums of the ranking."""
    return lambda: softmax_statistics(case.student, TEMPERATURES, case.mask)


def gradient_pass(case: Case) -> Callable[[], object]:
    """The gradient of log-sums at two temperatures, 50 columns and the label, from statistics that are known."""
    logits = case.student
    generator = torch.Generator(logits.device).manual_seed(2)
    batch, tokens, vocabulary = logits.shape

    def sample(count: int) -> torch.Tensor:
        return torch.randn(batch, tokens, count, generator=generator, device=logits.device)

    weights, gathered = sample(2), sample(COLUMNS + 1)
    ids = torch.randint(vocabulary, (batch, tokens, COLUMNS + 1), generator=generator, device=logits.device)
    statistics = softmax_statistics(logits, TEMPERATURES)
    return lambda: answer_gradient(logits, TEMPERATURES, weights, ids, gathered, statistics=statistics)
