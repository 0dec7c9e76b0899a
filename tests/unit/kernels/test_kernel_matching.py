"""Greedy and exact matching by kernels, in Triton's interpreter, against costs in plain float64 and the torch code."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crosskd.kernels import launch as kernels
from crosskd.kernels import matching
from crosskd.transport import match_columns
from crosskd.transport.matching import match_with_statistics
from crosskd.transport.softmax_statistics import SoftmaxStatistics

METHODS = ["greedy", "exact"]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64, scale: float = 2.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def values_of(*shape: int, seed: int) -> Tensor:
    """Some probabilities of ranked teacher columns."""
    return random(*shape[:2], shape[2] + 20, seed=seed).softmax(-1)[..., : shape[2]]


def lengths_mask(lengths: tuple[int, ...], tokens: int) -> Tensor:
    return torch.arange(tokens) < torch.tensor(lengths).unsqueeze(1)


def all_costs(student: Tensor, values: Tensor, student_mask: Tensor, teacher_mask: Tensor) -> Tensor:
    """(B, k, V) L1 distances over the tokens that both have, token by token in float64."""
    batch, _, vocabulary = student.shape
    costs = torch.zeros(batch, values.shape[-1], vocabulary, dtype=torch.float64)
    for sequence in range(batch):
        for token in range(min(student.shape[1], values.shape[1])):
            if student_mask[sequence, token] and teacher_mask[sequence, token]:
                probabilities = student[sequence, token].double().softmax(-1)
                costs[sequence] += (values[sequence, token].double().unsqueeze(1) - probabilities).abs()
    return costs


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels are taken; their names as they start."""
    monkeypatch.setenv("CROSSKD_KERNELS", "triton")
    names: list[str] = []
    launch = kernels.launch

    def counted(kernel: Any, *arguments: Any, **constants: Any) -> None:
        names.append(kernel.fn.__name__)
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(kernels, "launch", counted)
    return names


def is_greedy(costs: Tensor, chosen: Tensor, tolerance: float) -> bool:
    """Whether every row in turn has a nearest of the columns that are left."""
    free = torch.ones(costs.shape[1], dtype=torch.bool)
    for row, choice in zip(costs, chosen.tolist(), strict=True):
        if not free[choice] or row[choice] > row[free].min() + tolerance:
            return False
        free[choice] = False
    return True


def check(method: str, costs: Tensor, chosen: Tensor, tolerance: float) -> None:
    for sequence, ids in zip(costs, chosen, strict=True):
        if method == "greedy":
            assert is_greedy(sequence, ids, tolerance)
        else:
            rows, best = linear_sum_assignment(sequence.numpy())
            assert len(set(ids.tolist())) == len(ids)
            assert sequence[rows, ids].sum() <= sequence[rows, best].sum() + tolerance


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("vocabulary", "k", "dtype", "student_lengths", "teacher_lengths"),
    [
        (1, 3, torch.float32, (2,), (1,)),
        (7, 9, torch.float64, (3, 1), (2, 4)),
        (7, 9, torch.float16, (3, 1), (2, 4)),
        (300, 5, torch.bfloat16, (3, 2), (4, 0)),
        (300, 17, torch.float32, (2,), (3,)),
    ],
)
@pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:invalid value")  # of the interpreter
def test_choices_are_best(
    method: str,
    vocabulary: int,
    k: int,
    dtype: torch.dtype,
    student_lengths: tuple[int, ...],
    teacher_lengths: tuple[int, ...],
    triton: list[str],
) -> None:
    """Lengths of both sides differ, and so do their masks; what is beyond the mask is garbage."""
    batch = len(student_lengths)
    student = random(batch, 3, vocabulary, seed=1, dtype=dtype)
    values = values_of(batch, 4, k, seed=2).to(torch.float64 if dtype == torch.float64 else torch.float32)
    masks = lengths_mask(student_lengths, 3), lengths_mask(teacher_lengths, 4)
    student[~masks[0]] = torch.nan
    values[~masks[1]] = torch.nan
    chosen = match_columns(student, values, *masks, method)
    assert "_costs" in triton
    assert chosen.shape == (batch, min(k, vocabulary))
    costs = all_costs(student, values, *masks)[:, : chosen.shape[1]]
    check(method, costs, chosen, 1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_equals_the_torch_code(method: str, triton: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 4,096 columns, of which the torch code rules most out and the kernels none."""
    student, values = random(2, 2, 5000, seed=3, dtype=torch.float32, scale=3.0), values_of(2, 3, 4, seed=4).float()
    masks = lengths_mask((2, 1), 2), lengths_mask((3, 2), 3)
    chosen = match_columns(student, values, *masks, method)
    assert triton
    monkeypatch.setenv("CROSSKD_KERNELS", "torch")
    triton.clear()
    assert torch.equal(match_columns(student, values, *masks, method), chosen)
    assert triton == []


@pytest.mark.parametrize("method", METHODS)
def test_a_student_that_has_the_teachers_columns_gives_them_back(method: str, triton: list[str]) -> None:
    student = random(2, 4, 40, seed=5)
    order = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:6] for seed in (0, 1)])
    values = student.softmax(-1).gather(-1, order.unsqueeze(1).expand(-1, 4, -1))
    masks = lengths_mask((4, 3), 4), lengths_mask((4, 4), 4)
    assert torch.equal(match_columns(student, values, *masks, method), order)
    assert triton


def test_among_equal_costs_the_least_squared_distance_is_taken(triton: list[str]) -> None:
    """One token: swapping two columns often costs nothing, as by hand |0.1 - 0.2| + |0.2 - 0.4| does either way."""
    student, values = random(4, 1, 6, seed=1), values_of(4, 1, 3, seed=2)
    mask = torch.ones(4, 1, dtype=torch.bool)
    every = torch.tensor(list(itertools.permutations(range(6), 3)))
    best = 0
    chosen = match_columns(student, values, mask, mask, "exact")
    for costs, ids in zip(all_costs(student, values, mask, mask), chosen, strict=True):
        totals, squares = costs[range(3), every].sum(1), costs[range(3), every].square().sum(1)
        tied = totals <= totals.min() + 1e-9
        best += int(tied.sum())
        assert costs[range(3), ids].sum() <= totals.min() + 1e-9
        assert costs[range(3), ids].square().sum() <= squares[tied].min() + 1e-9
    assert best > len(chosen)  # there were ties
    assert triton


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore:invalid value")  # of the interpreter
def test_logits_that_are_not_finite_give_distinct_columns(method: str, value: float, triton: list[str]) -> None:
    student, values = random(2, 2, 30, seed=6, dtype=torch.float32), values_of(2, 2, 5, seed=7).float()
    student[0, 1, 3] = value
    values[1, 0, 2] = torch.nan
    mask = torch.ones(2, 2, dtype=torch.bool)
    chosen = match_columns(student, values, mask, mask, method)
    assert triton
    assert all(len(set(row)) == 5 for row in chosen.tolist())
    assert 0 <= int(chosen.min()) <= int(chosen.max()) < 30


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kernel", ["torch", "triton"])
def test_nothing_to_compare(method: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sequences, no teacher columns; no tokens and ties everywhere still give distinct columns."""
    monkeypatch.setenv("CROSSKD_KERNELS", kernel)
    for batch, student_tokens, teacher_tokens, k in ((0, 2, 2, 4), (2, 2, 2, 0), (1, 0, 0, 4), (1, 3, 0, 4)):
        student, values = torch.zeros(batch, student_tokens, 9), torch.full((batch, teacher_tokens, k), 0.25)
        masks = (torch.ones(batch, tokens, dtype=torch.bool) for tokens in (student_tokens, teacher_tokens))
        chosen = match_columns(student, values, *masks, method)
        assert chosen.shape == (batch, k)
        assert chosen.dtype == torch.int64
        assert all(len(set(row)) == k for row in chosen.tolist())


@pytest.mark.parametrize("method", METHODS)
def test_large_batches_are_matched_in_parts(method: str, triton: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    student, values = random(3, 2, 40, seed=8, dtype=torch.float32), values_of(3, 2, 3, seed=9).float()
    masks = lengths_mask((2, 1, 2), 2), lengths_mask((2, 2, 1), 2)
    whole = match_columns(student, values, *masks, method)
    launches = triton.count("_costs")
    monkeypatch.setattr(matching, "_COST_BYTES", 1)
    assert torch.equal(match_columns(student, values, *masks, method), whole)
    assert triton.count("_costs") - launches == 3 * launches


@pytest.mark.parametrize(("method", "launches"), [("greedy", 4), ("exact", 4)])
def test_launches_do_not_grow_with_batch_tokens_or_columns(method: str, launches: int, triton: list[str]) -> None:
    """Costs, two launches of a selection, and the choice or the candidates' costs; no sums of columns are needed."""
    student = random(2, 2, 4200, seed=10, dtype=torch.float32)
    statistics = SoftmaxStatistics(
        student.amax(-1, keepdim=True), (student - student.amax(-1, keepdim=True)).logsumexp(-1, keepdim=True)
    )
    mask = torch.ones(2, 2, dtype=torch.bool)
    match_with_statistics(student, statistics, values_of(2, 2, 2, seed=11).float(), mask, mask, method)
    assert len(triton) == launches


class Operators(TorchDispatchMode):
    """Names of the operators that run, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_greedy_asks_for_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the kernels memory is allocated and the teacher's side masked: nothing needs what is in a tensor."""
    monkeypatch.setenv("CROSSKD_KERNELS", "triton")
    monkeypatch.setattr(kernels, "launch", lambda *_, **__: None)
    statistics = SoftmaxStatistics(torch.zeros(2, 3, 1), torch.zeros(2, 3, 2))
    masks = [torch.ones(2, tokens, dtype=torch.bool) for tokens in (3, 4)]
    logits, values = torch.zeros(2, 3, 5000, dtype=torch.bfloat16), torch.zeros(2, 4, 10)
    with Operators() as operators:
        chosen = match_with_statistics(logits, statistics, values, *masks, "greedy")
    assert chosen.shape == (2, 10)
    allocations = {"empty", "new_empty"}
    others = [name for name in operators.names if name not in allocations]
    assert others == ["bitwise_and", "bitwise_not", "masked_fill"]


@pytest.mark.parametrize(("method", "k"), [("exact", 129), ("greedy", 257)])
def test_more_columns_than_kernels_take_go_to_torch(method: str, k: int, triton: list[str]) -> None:
    assert matching.can_match(k - 1, method)
    student, values = random(1, 1, 300, seed=12, dtype=torch.float32), values_of(1, 1, k, seed=13).float()
    mask = torch.ones(1, 1, dtype=torch.bool)
    chosen = match_columns(student, values, mask, mask, method)
    assert "_costs" not in triton
    assert len(set(chosen[0].tolist())) == k
