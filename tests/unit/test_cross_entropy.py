"""SFT and SeqKD are the cross-entropy on labels."""

import pytest
import torch
import torch.nn.functional as F

from crosskd.losses import StudentAnswers, create_method


@pytest.mark.parametrize("name", ["sft", "seqkd"])
def test_sum_over_labels(name):
    logits = torch.randn(2, 5, 9, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 8, 0, -100, -100], [3, 3, 3, 3, 2]])
    method = create_method(name)
    assert method.request() is None
    terms = method.terms(StudentAnswers(logits, labels, labels != -100), None)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(terms["cross_entropy"], expected, rtol=1e-12, atol=1e-12)
    assert terms["distillation"].item() == 0
    (gradient,) = torch.autograd.grad(terms["cross_entropy"] + terms["distillation"], logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0], rtol=1e-10, atol=1e-12)


def test_gradcheck():
    logits = torch.randn(1, 3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[2, -100, 4]])
    method = create_method("sft")
    assert torch.autograd.gradcheck(
        lambda x: method.terms(StudentAnswers(x, labels, labels != -100), None)["cross_entropy"], logits
    )
