"""The chunked pass over logits against plain torch."""

import pytest
import torch

from crosskd.transport.softmax_statistics import answer_chunks, softmax_statistics, softmaxes, token_chunks
from helpers_tolerances import rounding


def logits(dtype=torch.float64):
    return (torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4).to(dtype)


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 7, 1000])
@pytest.mark.parametrize("temperatures", [(1.0,), (1.0, 2.0), (2.0, 1.0), (1.0, 0.5, 2.0), (1.0, 1.5), (3.0, 1.0, 1.5)])
@pytest.mark.parametrize("keep", [False, True])
def test_equals_plain_torch(chunk_size, temperatures, keep):
    values = logits()
    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) > 0.3
    result = softmax_statistics(values, temperatures, mask, chunk_size, keep)
    maximum = values.amax(-1, keepdim=True)
    log_sums = torch.stack([((values - maximum) / tau).logsumexp(-1) for tau in temperatures], -1)
    sums = ((values / temperatures[0]).softmax(-1) * mask.unsqueeze(-1)).sum(1)
    torch.testing.assert_close(result.maximum, maximum, rtol=0, atol=0)
    torch.testing.assert_close(result.log_sums, log_sums, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.column_sums, sums, rtol=1e-12, atol=1e-12)
    if keep:
        kept = (values / max(temperatures)).softmax(-1)
        torch.testing.assert_close(result.probabilities, kept, rtol=1e-12, atol=1e-12)
    else:
        assert result.probabilities is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    values = logits(dtype)
    result = softmax_statistics(values, (1.0, 3.0), torch.ones(3, 5, dtype=torch.bool))
    exact = softmax_statistics(values.double(), (1.0, 3.0), torch.ones(3, 5, dtype=torch.bool))
    assert result.log_sums.dtype == torch.float32
    log_error = rounding(torch.float32, 11) * float(values.abs().max())  # a logarithm is as exact as its logits
    torch.testing.assert_close(result.log_sums.double(), exact.log_sums, rtol=0, atol=log_error)
    torch.testing.assert_close(result.column_sums.double(), exact.column_sums, rtol=rounding(torch.float32, 16), atol=0)


def test_known_probabilities_are_read_and_not_overwritten():
    values = logits()
    first = (values / 2).softmax(-1)
    copy = first.clone()
    steps = [
        step if scale is None else step * scale for step, scale in softmaxes(values, [2.0, 1.0], first, known=True)
    ]
    torch.testing.assert_close(first, copy, rtol=0, atol=0)
    torch.testing.assert_close(steps[1], values.softmax(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 7, 5), (1, 1, 3), (6, 2, 4), (2, 0, 4), (0, 3, 4)])
@pytest.mark.parametrize("size", [1, 3, 5, 100, None])
def test_chunks_cover_every_token_once_within_their_size(shape, size):
    counts = torch.zeros(shape)
    for chunk in answer_chunks(counts, size):
        counts[chunk] += 1
        assert counts[chunk][..., 0].numel() <= (size or 10**9)
        assert counts[chunk].is_contiguous()
    assert (counts == 1).all()
    for chunk in token_chunks(counts, size):
        counts[:, chunk] += 1
    assert (counts == 2).all()
