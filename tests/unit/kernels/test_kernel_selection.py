"""Largest entries by kernels, in Triton's interpreter, against a stable sort in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crosskd.kernels import launch as kernels
from crosskd.kernels import selection
from crosskd.kernels.selection import can_select, select_largest
from crosskd.transport.largest import largest_ids
from crosskd.transport.ranking import largest_columns


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sorted_ids(values: Tensor, count: int, largest: bool) -> Tensor:
    return values.double().sort(dim=-1, descending=largest, stable=True).indices[..., :count]


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("vocabulary", "count"), [(1, 1), (7, 3), (7, 9), (300, 50), (5000, 12)])
def test_equals_a_stable_sort(vocabulary: int, count: int, dtype: torch.dtype, largest: bool) -> None:
    values = rows(2, vocabulary).to(dtype)
    assert torch.equal(select_largest(values, count, largest), sorted_ids(values, count, largest))


@pytest.mark.parametrize("largest", [True, False])
def test_ties_go_to_the_smaller_id_also_across_pieces(largest: bool) -> None:
    values = rows(2, 9001).mul(2).round()  # about ten values, so that the threshold is tied in all three pieces
    assert torch.equal(select_largest(values, 40, largest), sorted_ids(values, 40, largest))
    few = torch.zeros(1, 5000)
    few[0, 4999] = 1 if largest else -1
    assert select_largest(few, 4, largest).tolist() == [[4999, 0, 1, 2]]


def test_zeros_of_either_sign_are_equal_and_infinities_are_numbers() -> None:
    values = torch.tensor([[-0.0, 0.0, -0.0, torch.inf, -torch.inf, 1e-45, -1e-45]])
    assert select_largest(values, 7).tolist() == [[3, 5, 0, 1, 2, 6, 4]]
    assert select_largest(values, 7, largest=False).tolist() == [[4, 6, 0, 1, 2, 5, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [20, 4500])
def test_rows_with_nan_give_distinct_ids(vocabulary: int, dtype: torch.dtype) -> None:
    values = rows(3, vocabulary).to(dtype)
    values[0] = torch.nan
    values[1, ::3] = torch.nan
    values[2] = -torch.nan
    for largest in (True, False):
        for row in select_largest(values, 15, largest).tolist():
            assert len(set(row)) == 15
            assert 0 <= min(row) <= max(row) < vocabulary


def test_slices_of_logits_are_read_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    launch = kernels.launch
    monkeypatch.setattr(kernels, "launch", lambda *a, **named: (started.append(a[2:]), launch(*a, **named))[1])
    logits = rows(2, 3, 10)
    for part in (logits[:, 1:3], logits[..., 3:9], logits.transpose(1, 2), logits[:, :, ::2]):
        assert torch.equal(select_largest(part, 2), sorted_ids(part, 2, True))
        assert started.pop()[0].data_ptr() == part.data_ptr()
    assert started == []


@pytest.mark.parametrize(("vocabulary", "launches"), [(4096, 1), (4097, 2)])
def test_at_most_two_launches(vocabulary: int, launches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    grids = []
    monkeypatch.setattr(kernels, "launch", lambda kernel, grid, *a, **named: grids.append(grid))
    select_largest(torch.zeros(3, vocabulary), 50)
    assert len(grids) == launches
    assert all(grid[0] == 3 for grid in grids)


@pytest.mark.parametrize("count", [1, 50, 256])
@pytest.mark.parametrize("vocabulary", [1, 4097, 50_304, 151_936, 262_144, 1_000_000])
def test_pieces_hold_what_is_wanted_of_them_and_cover_the_row(vocabulary: int, count: int) -> None:
    count = min(count, vocabulary)
    if not can_select(torch.empty(0, vocabulary), count):
        assert vocabulary > 262_144
        return
    grids, sizes = [], []

    def record(kernel: object, grid: tuple[int, ...], *a: object, **named: int) -> None:
        grids.append(grid)
        sizes.append((a[-1], named["BLOCK"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "launch", record)
        select_largest(torch.empty(1, vocabulary), count)
    (size, block), pieces = sizes[0], grids[0][1]
    assert size <= block <= 16_384
    assert count <= vocabulary - (pieces - 1) * size <= size
    assert sizes[-1][1] <= max(8192, block)


def test_nothing_to_select() -> None:
    assert select_largest(torch.zeros(0, 9), 3).shape == (0, 3)
    assert select_largest(torch.zeros(2, 0, 9), 3).shape == (2, 0, 3)
    assert select_largest(torch.zeros(2, 9), 0).shape == (2, 0)
    assert select_largest(torch.zeros(9), 3).tolist() == [0, 1, 2]


def test_what_no_kernel_does_is_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_launch", None)
    for values, count in ((rows(2, 50).double(), 5), (rows(2, 600), 300)):
        assert not can_select(values, count)
        assert torch.equal(select_largest(values, count, False), sorted_ids(values, count, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_largest_ids_and_columns_take_the_kernels(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    launch = kernels.launch
    monkeypatch.setattr(kernels, "launch", lambda *a, **named: (started.append(1), launch(*a, **named))[1])
    logits = rows(2, 3, 300).to(dtype)
    sums = logits.float().exp().to(dtype)[:, 0]
    for chosen, expected in (("torch", 0), ("triton", 0 if dtype == torch.float64 else 2)):
        monkeypatch.setenv("CROSSKD_KERNELS", chosen)
        values = logits.gather(-1, largest_ids(logits, 10))
        assert torch.equal(values, logits.topk(10, dim=-1).values)
        assert torch.equal(largest_columns(sums, 10), sorted_ids(sums, 10, True))
        assert len(started) == expected
