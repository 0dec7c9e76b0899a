"""ULD at its edges: extremes, empty answers, targets that do not fit, names."""

import pytest
import torch

from crosskd.errors import UsageError
from crosskd.losses import create_method
from crosskd.losses.base import StudentAnswers
from crosskd.losses.targets import TargetRequest, targets_from_logits
from crosskd.losses.uld import ULD, uld_loss
from crosskd.transport.largest import largest_ids


def ones(*shape):
    return torch.ones(*shape, dtype=torch.bool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_entries", [None, 4])
def test_huge_logits_give_disjoint_certainties(dtype, top_entries):
    student, teacher = torch.zeros(1, 1, 10, dtype=dtype), torch.zeros(1, 1, 12, dtype=dtype)
    student[0, 0, 3], teacher[0, 0, 5] = 1e4, -1e4
    student.requires_grad_()
    loss = uld_loss(student, teacher, ones(1, 1), ones(1, 1), top_entries=top_entries)
    loss.backward()
    # a certainty against 11 equal entries: 1 - 1/11 above, 10/11 below
    assert loss.item() == pytest.approx(20 / 11, abs=1e-5)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_ties_give_zero_for_uniform_models_of_one_size():
    logits = torch.full((1, 3, 20), 2.0, requires_grad=True)
    loss = uld_loss(logits, logits.detach() - 7, ones(1, 3), ones(1, 3))
    assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("t_s", "t_t"), [(0, 3), (3, 0), (3, 3)])
def test_without_answer_tokens_the_loss_is_zero_with_a_graph(t_s, t_t):
    student = torch.randn(2, t_s, 6, requires_grad=True)
    nothing = torch.zeros(2, t_s, dtype=torch.bool)
    loss = uld_loss(student, torch.randn(2, t_t, 5), nothing, ones(2, t_t))
    assert loss.shape == ()
    assert loss.item() == 0
    loss.backward()
    assert student.grad is not None
    assert student.grad.abs().sum() == 0


def test_one_student_token_against_a_long_answer():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 1, 6), torch.randn(1, 200, 9)
    long = uld_loss(student, teacher, ones(1, 1), ones(1, 200))
    torch.testing.assert_close(long, uld_loss(student, teacher[:, :1], ones(1, 1), ones(1, 1)))
    assert long > 0


def test_terms_have_a_cross_entropy_over_labels_also_beyond_the_teacher():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 11, requires_grad=True)
    labels = torch.tensor([[1, 2, 3, 4, 5], [6, 7, -100, -100, -100]])
    targets = targets_from_logits(torch.randn(2, 2, 9), ones(2, 2), ULD().request())
    terms = ULD().terms(StudentAnswers(logits, labels, labels != -100), targets)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(terms["cross_entropy"], expected)
    assert all(value.shape == () for value in terms.values())


def test_entries_of_shared_targets_beyond_the_own_join_the_tail():
    torch.manual_seed(0)
    teacher, mask = torch.randn(2, 4, 15, dtype=torch.float64), ones(2, 4)
    student = StudentAnswers(torch.randn(2, 4, 13, dtype=torch.float64), torch.full((2, 4), -100), mask)
    shared = targets_from_logits(teacher, mask, ULD(3).request() | TargetRequest(top_entries=9, entry_ids=True))
    own = targets_from_logits(teacher, mask, ULD(3).request())
    for name, value in ULD(3).terms(student, own).items():
        torch.testing.assert_close(ULD(3).terms(student, shared)[name], value)


@pytest.mark.parametrize("vocabulary", [64, 640, 1000, 1007])
@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.parametrize("ties", [False, True])
def test_largest_entries_of_a_wide_vocabulary_are_those_of_topk(vocabulary, count, ties):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, vocabulary)
    logits = logits.round() if ties else logits
    values = logits.gather(-1, largest_ids(logits, count))
    assert torch.equal(values, logits.topk(count, dim=-1).values)


def test_half_precision_targets_move_the_loss_by_their_stated_error():
    torch.manual_seed(0)
    teacher, mask = 3 * torch.randn(2, 4, 300), ones(2, 4)
    student = StudentAnswers(3 * torch.randn(2, 4, 200), torch.full((2, 4), -100), mask)
    targets = targets_from_logits(teacher, mask, ULD(50).request())
    exact = ULD(50).terms(student, targets)["distillation"]
    small = ULD(50).terms(student, targets.to(dtype=torch.float16))["distillation"]
    entropies = torch.distributions.Categorical(logits=teacher).entropy().sum()
    assert 0 < (small - exact).abs() <= entropies / 2048


def test_registered_with_its_setting():
    assert create_method("uld", top_entries=7) == ULD(7)
    assert ULD().request() == TargetRequest(top_entries=200)
    assert ULD(None).request() == ULD(0).request() == TargetRequest(top_entries=0)


def test_bad_settings_and_targets_name_the_fix():
    with pytest.raises(UsageError, match="top_entries: got -1"):
        ULD(-1)
    student = StudentAnswers(torch.randn(1, 2, 5), torch.full((1, 2), -100), ones(1, 2))
    with pytest.raises(UsageError, match="teacher targets of uld"):
        ULD().terms(student, None)
    few = targets_from_logits(torch.randn(1, 2, 9), ones(1, 2), TargetRequest(top_entries=3))
    with pytest.raises(UsageError, match="top_entries: got 4; expected at most the 3 entries"):
        ULD(4).terms(student, few)
    with pytest.raises(UsageError, match="top_entries: got 'all'"):
        ULD(None).terms(student, few)
