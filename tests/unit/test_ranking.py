"""Sequence-level ranking."""

import pytest
import torch

from crosskd.transport import rank_columns
from crosskd.transport.ranking import largest_columns


def test_each_sequence_has_its_own_order_by_sums_over_its_tokens():
    probabilities = torch.tensor(
        [[[0.1, 0.6, 0.3], [0.5, 0.1, 0.4]], [[0.2, 0.2, 0.6], [0.9, 0.05, 0.05]]], dtype=torch.float64
    )
    mask = torch.tensor([[True, True], [True, False]])
    # Sums: 0.6, 0.7, 0.7 (a tie, the smaller id first) and 0.2, 0.2, 0.6 (the masked token does not count).
    assert rank_columns(probabilities.log(), mask, 3).tolist() == [[1, 2, 0], [2, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 7, 40, 64, 200])
def test_equals_a_stable_sort_also_with_ties(dtype, k):
    sums = torch.randint(0, 9, (3, 200), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = sums.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(largest_columns(sums, k), expected)


def test_small_differences_decide():
    sums = torch.rand(2, 5000, generator=torch.Generator().manual_seed(0)) * 1e-30
    assert torch.equal(largest_columns(sums, 50), sums.argsort(dim=-1, descending=True)[:, :50])


def test_temperature_and_k_above_the_vocabulary():
    values = torch.tensor([[[3.0, 0.0, 0.0], [-9.0, 1.0, 1.1]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert rank_columns(values, mask, 50).tolist() == [[0, 2, 1]]
    assert rank_columns(values, mask, 1, temperature=8.0).tolist() == [[2]]
