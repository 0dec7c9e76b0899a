"""Sinkhorn plans: closed forms, masks, gradients, extremes."""

import pytest
import torch

from crosskd.errors import UsageError
from crosskd.transport import sinkhorn_plan
from crosskd.transport.sinkhorn import token_cost
from helpers_tolerances import rounding


def cost(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def divided(values, epsilon, iterations):
    """Eq. 18-20 outside of the log domain."""
    kernel = (-values / epsilon).exp()
    for _ in range(iterations):
        kernel = kernel / kernel.sum(-1, keepdim=True)
        kernel = kernel / kernel.sum(-2, keepdim=True) * (values.shape[-2] / values.shape[-1])
    return kernel


@pytest.mark.parametrize("iterations", [1, 2, 20])
@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 5, 2), (1, 1, 6)])
def test_value_and_unrolled_gradient_equal_plain_division(iterations, shape):
    values = cost(*shape).requires_grad_()
    weights = cost(*shape, seed=1)
    plan, expected = sinkhorn_plan(values, 0.2, iterations), divided(values, 0.2, iterations)
    torch.testing.assert_close(plan, expected, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad((result * weights).sum(), values)[0] for result in (plan, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("iterations", [1, 2, 7, 20])
def test_rounds_made_again_give_the_same_gradient(iterations, monkeypatch):
    values = cost(2, 4, 5).requires_grad_()
    column_mask = torch.tensor([[True] * 5, [True, False, True, True, False]])
    weights = cost(2, 4, 5, seed=1)
    gradients = []
    for kept in (2**22, 0):
        monkeypatch.setattr("crosskd.transport.sinkhorn._KEPT_ELEMENTS", kept)
        plan = sinkhorn_plan(values, 0.2, iterations, column_mask=column_mask)
        gradients.append(torch.autograd.grad((plan * weights).sum(), values)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_gradcheck_with_masks():
    row_mask = torch.tensor([[True, True, False], [True, True, True]])
    column_mask = torch.tensor([[True, True, True, False], [True, False, True, True]])
    values = cost(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sinkhorn_plan(x, 0.3, 4, row_mask, column_mask), values)


def test_masked_rows_and_columns_are_as_if_absent():
    values = cost(2, 4, 5)
    row_mask = torch.arange(4) < torch.tensor([[3], [0]])
    column_mask = torch.arange(5) < torch.tensor([[2], [4]])
    garbage = values.masked_fill(~(row_mask.unsqueeze(2) & column_mask.unsqueeze(1)), 1e30)
    plan = sinkhorn_plan(garbage, 0.1, 7, row_mask, column_mask)
    torch.testing.assert_close(plan[0, :3, :2], sinkhorn_plan(values[:1, :3, :2], 0.1, 7)[0], rtol=1e-12, atol=1e-12)
    assert (plan[0, 3:] == 0).all()
    assert (plan[0, :, 2:] == 0).all()
    assert (plan[1] == 0).all()


def test_small_epsilon_gives_the_permutation_and_stays_finite():
    values = torch.tensor([[[0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]]).requires_grad_()
    plan = sinkhorn_plan(values, epsilon=1e-5)  # exp(-1 / 1e-5) is zero in any float
    torch.testing.assert_close(plan.detach(), 1 - values.detach())
    (plan * values).sum().backward()
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_costs_are_worked_on_in_float32(dtype):
    values = cost(1, 6, 6).to(dtype)
    assert sinkhorn_plan(values).dtype == torch.float32
    plan, exact = sinkhorn_plan(values), sinkhorn_plan(values.double())
    # 20 iterations add up 6 rows and 6 columns; costs of up to 1 are divided by 0.1 and exponentiated
    torch.testing.assert_close(plan.double(), exact, rtol=rounding(torch.float32, 20 * 12) / 0.1, atol=0)


@pytest.mark.parametrize("arguments", [{"epsilon": 0.0}, {"epsilon": float("nan")}, {"iterations": 0}])
def test_settings_out_of_range(arguments):
    with pytest.raises(UsageError, match="sinkhorn_"):
        sinkhorn_plan(cost(1, 2, 2), **arguments)


def test_token_cost_in_parts(monkeypatch):
    teacher, student = cost(2, 5, 3), cost(2, 4, 3, seed=1)
    whole = token_cost(teacher, student)
    torch.testing.assert_close(whole, (teacher.unsqueeze(2) - student.unsqueeze(1)).abs().sum(-1))
    monkeypatch.setattr("crosskd.transport.sinkhorn._COST_ELEMENTS", 48)
    torch.testing.assert_close(token_cost(teacher, student), whole, rtol=0, atol=0)
