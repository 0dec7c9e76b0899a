"""Cross-entropy, columns and log-normalizers of the fused pass: values, gradients, precision and memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from crosskd.losses.answer_pass import answer_pass
from crosskd.losses.cross_entropy import answer_cross_entropy
from crosskd.transport.softmax_statistics import softmax_statistics

LABELS = torch.tensor([[3, 0, -100, 8], [12, 12, 5, -100]])


def logits(dtype=torch.float64, scale=3.0):
    values = torch.randn(2, 4, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale
    return values.to(dtype).requires_grad_()


def columns(per_token):
    shape = (2, 4, 6) if per_token else (2, 6)
    return torch.rand(*shape[:-1], 13, generator=torch.Generator().manual_seed(1)).argsort(-1)[..., :6]


def naive(values, ids, temperatures):
    ids = ids if ids.ndim == 3 else ids.unsqueeze(1).expand(-1, 4, -1)
    cross_entropy = F.cross_entropy(values.flatten(0, 1), LABELS.flatten(), reduction="sum")
    return cross_entropy, [(values / tau).log_softmax(-1).gather(-1, ids) for tau in temperatures]


def mixture(cross_entropy, parts):
    """A scalar in which every output has its own weight."""
    return sum((part.sin() * (3 + index)).sum() for index, part in enumerate(parts)) + 2 * cross_entropy


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.parametrize("temperatures", [(1.0,), (1.0, 2.0), (1.0, 0.5, 1.5), (1.0, 3.0)])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_value_and_gradient_equal_plain_torch(chunk_size, temperatures, per_token, keep):
    values = logits()
    statistics = softmax_statistics(values.detach(), temperatures, keep=keep)
    ids = columns(per_token)
    result = answer_pass(
        values, labels=LABELS, columns=ids, temperatures=temperatures, statistics=statistics, chunk_size=chunk_size
    )
    ours = mixture(result.cross_entropy, [result.log_probabilities(tau) for tau in temperatures])
    expected = mixture(*naive(values, ids, temperatures))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    (expected_gradient,) = torch.autograd.grad(expected, values)
    # Twice: kept probabilities are used up by the first pass.
    for retain in (True, False):
        (gradient,) = torch.autograd.grad(ours, values, retain_graph=retain)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_worse_than_plain_torch_in_low_precision(dtype):
    values = logits(dtype)
    exact = values.detach().double().requires_grad_()
    ids, temperatures = columns(False), (1.0, 2.0)
    result = answer_pass(values, labels=LABELS, columns=ids, temperatures=temperatures)
    ours = mixture(result.cross_entropy, [result.log_probabilities(tau) for tau in temperatures])
    plain = mixture(*naive(values, ids, temperatures))
    truth = mixture(*naive(exact, ids, temperatures))
    assert ours.dtype == torch.float32
    assert abs(ours - truth) <= abs(plain - truth) + 1e-5 * abs(truth)
    gradient, plain_gradient = (torch.autograd.grad(value, values)[0].double() for value in (ours, plain))
    (truth_gradient,) = torch.autograd.grad(truth, exact)
    assert gradient.isfinite().all()
    assert (gradient - truth_gradient).norm() <= (plain_gradient - truth_gradient).norm() + 1e-6


def test_gradients_of_a_leaf_and_of_an_inner_tensor_are_alike():
    """A slice of longer logits, as a model returns them: the gradient outside of it is zero."""
    whole = torch.cat([logits().detach(), logits().detach()], dim=1).requires_grad_()
    answer_cross_entropy(whole[:, 4:], LABELS).backward()
    leaf = logits()
    answer_cross_entropy(leaf, LABELS).backward()
    torch.testing.assert_close(whole.grad[:, 4:], leaf.grad, rtol=0, atol=0)
    assert (whole.grad[:, :4] == 0).all()


def test_large_logits():
    values = logits(torch.float32, scale=1e4)
    result = answer_pass(values, labels=LABELS, columns=columns(False), temperatures=(1.0, 2.0))
    truth = naive(values.detach().double(), columns(False), (1.0, 2.0))
    torch.testing.assert_close(result.cross_entropy.double(), truth[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(result.log_probabilities(2.0).double(), truth[1][1], rtol=1e-6, atol=1e-6)
    result.cross_entropy.backward()
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 4, 13), (2, 0, 13), (0, 4, 13)])
def test_no_labels_give_zero_with_a_graph(shape):
    values = torch.randn(shape, requires_grad=True)
    loss = answer_cross_entropy(values, torch.full(shape[:2], -100))
    loss.backward()
    assert loss.item() == 0
    assert loss.shape == ()
    assert (values.grad == 0).all()


class LargestFloat32(TorchDispatchMode):
    """Records the largest float32 tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                self.elements = max(self.elements, value.untyped_storage().nbytes() // 4)
        return result


def test_no_float32_copy_of_half_precision_logits():
    values = torch.randn(2, 30, 500).bfloat16().requires_grad_()
    labels = torch.randint(500, (2, 30))
    with LargestFloat32() as largest:
        result = answer_pass(values, labels=labels, columns=labels[:, :5], temperatures=(1.0, 2.0), chunk_size=4)
        (result.cross_entropy + result.log_probabilities(2.0).sum()).backward()
    assert values.grad.dtype == torch.bfloat16
    assert 0 < largest.elements <= 4 * 500
