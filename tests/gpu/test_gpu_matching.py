"""Matching and largest entries on a GPU: the kernels against the torch code, and how often the host waits.

Run with ``TRITON_INTERPRET=0 pytest -m gpu tests/gpu``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crosskd.transport import match_columns
from crosskd.transport.largest import largest_ids
from crosskd.transport.matching import match_with_statistics
from crosskd.transport.ranking import largest_columns
from crosskd.transport.softmax_statistics import softmax_statistics
from helpers_gpu import GPU, counted_waits

pytestmark = GPU

BATCH, TOKENS, STUDENT, TEACHER, K = 8, 20, 50_304, 32_000, 50


def sides(dtype: torch.dtype, scale: float = 4.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student logits, the teacher's ranked values, and masks of unequal lengths."""
    generator = torch.Generator("cuda").manual_seed(0)
    student = torch.randn(BATCH, TOKENS, STUDENT, generator=generator, device="cuda") * scale
    teacher = torch.randn(BATCH, TOKENS + 3, TEACHER, generator=generator, device="cuda") * scale
    lengths = torch.arange(BATCH, device="cuda").unsqueeze(1) * 2
    student_mask = torch.arange(TOKENS, device="cuda") < TOKENS - lengths
    teacher_mask = torch.arange(TOKENS + 3, device="cuda") < TOKENS + 3 - lengths // 2
    probabilities = teacher.softmax(-1) * teacher_mask.unsqueeze(-1)
    ids = probabilities.sum(1).topk(K).indices
    values = probabilities.gather(-1, ids.unsqueeze(1).expand(-1, TOKENS + 3, -1))
    return student.to(dtype), values, student_mask, teacher_mask


def chosen_costs(student: Tensor, values: Tensor, student_mask: Tensor, teacher_mask: Tensor, ids: Tensor) -> Tensor:
    """(B, k) L1 distances of what was matched, in float64."""
    compared = (student_mask & teacher_mask[:, :TOKENS]).unsqueeze(-1)
    probabilities = student.double().softmax(-1).gather(-1, ids.unsqueeze(1).expand(-1, TOKENS, -1))
    return ((values[:, :TOKENS].double() - probabilities) * compared).abs().sum(1)


def waits(action: Callable[[], Tensor]) -> int:
    """How often the host waits for the device, once kernels are compiled and memory is allocated."""
    action()
    with counted_waits() as found:
        action()
    return len(found)


@pytest.mark.parametrize("scale", [0.1, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["greedy", "exact"])
def test_costs_are_those_of_the_torch_code(
    method: str, dtype: torch.dtype, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = sides(dtype, scale)
    monkeypatch.setenv("CROSSKD_KERNELS", "torch")
    expected = match_columns(*inputs, method)
    monkeypatch.setenv("CROSSKD_KERNELS", "triton")
    chosen = match_columns(*inputs, method)
    assert all(len(set(row)) == K for row in chosen.tolist())
    costs, least = chosen_costs(*inputs, chosen), chosen_costs(*inputs, expected)
    if method == "exact":
        torch.testing.assert_close(costs.sum(1), least.sum(1), rtol=1e-5, atol=1e-6)
    else:  # a tie within rounding, taken otherwise, could change rows after it: the first is free of that
        torch.testing.assert_close(costs[:, 0], least[:, 0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(costs.sum(1), least.sum(1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("method", "most"), [("fast", 0), ("greedy", 0), ("exact", 2)])
def test_the_host_hardly_waits(method: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSKD_KERNELS", "triton")
    student, values, student_mask, teacher_mask = sides(torch.bfloat16)
    statistics = softmax_statistics(student, (1.0,), student_mask)

    def action() -> Tensor:
        return match_with_statistics(student, statistics, values, student_mask, teacher_mask, method)

    assert waits(action) <= most


def test_waits_are_seen() -> None:
    """Without this, a test that sees none would say nothing."""
    assert waits(lambda: torch.tensor(torch.ones(3, device="cuda").sum().item())) >= 1


@pytest.mark.parametrize("method", ["greedy", "exact"])
@pytest.mark.parametrize(("tokens", "vocabulary"), [(0, 300), (1, 50_304), (1, 1)])
def test_short_answers(method: str, tokens: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSKD_KERNELS", "triton")
    student = torch.randn(3, tokens, vocabulary, generator=torch.Generator("cuda").manual_seed(0), device="cuda")
    mask = torch.ones(3, tokens, dtype=torch.bool, device="cuda")
    chosen = match_columns(student, torch.full((3, tokens, K), 0.02, device="cuda"), mask, mask, method)
    assert chosen.shape == (3, min(K, vocabulary))
    assert all(len(set(row)) == len(row) for row in chosen.tolist())
    assert 0 <= int(chosen.min()) <= int(chosen.max()) < vocabulary


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 10, 50, 200, 256])
@pytest.mark.parametrize("vocabulary", [257, 4097, 32_000, 50_304, 151_936, 262_144])
def test_largest_ids_have_the_values_of_topk(
    vocabulary: int, count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSKD_KERNELS", "triton")
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(2, 7, vocabulary, generator=generator, device="cuda").to(dtype)[:, 1:6]
    ids = largest_ids(logits, count)
    assert torch.equal(logits.gather(-1, ids), logits.topk(count, dim=-1).values)
    assert all(len(set(row)) == count for row in ids.flatten(0, 1).tolist())


@pytest.mark.parametrize("k", [7, 50, 256])
@pytest.mark.parametrize("vocabulary", [300, 50_304, 151_936])
def test_largest_columns_are_those_of_a_stable_sort(vocabulary: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSKD_KERNELS", "triton")
    generator = torch.Generator("cuda").manual_seed(0)
    for sums in (
        torch.rand(64, vocabulary, generator=generator, device="cuda") ** 8,
        torch.randint(0, 9, (4, vocabulary), generator=generator, device="cuda").float(),
    ):
        expected = sums.sort(dim=-1, descending=True, stable=True).indices[:, :k]
        for _ in range(3):  # a missing barrier shows now and then
            assert torch.equal(largest_columns(sums, k), expected)
