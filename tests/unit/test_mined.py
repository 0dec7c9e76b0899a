"""MinED at its edges: extremes, empty answers, tokens and entries without a counterpart, what it asks for."""

import pickle

import pytest
import torch

from crosskd.errors import UsageError
from crosskd.losses import create_method
from crosskd.losses.base import StudentAnswers
from crosskd.losses.mined import MinED, merge_entries
from crosskd.losses.targets import TargetRequest, targets_from_logits


def ones(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def terms(student, teacher, alignment, table, top_entries=None, labels=None):
    method = MinED(top_entries).with_vocabulary_map(torch.as_tensor(table))
    labels = torch.zeros(student.shape[:2], dtype=torch.long) if labels is None else labels
    targets = targets_from_logits(teacher, ones(*teacher.shape[:2]), method.request())
    return method.terms(StudentAnswers(student, labels, ones(*student.shape[:2]), torch.as_tensor(alignment)), targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_are_finite_and_right(dtype):
    student, teacher = torch.zeros(1, 1, 6, dtype=dtype), torch.zeros(1, 1, 6, dtype=dtype)
    student[0, 0, 3], teacher[0, 0, 2] = 9984.0, 9984.0  # exact in bfloat16
    student.requires_grad_()
    result = terms(student, teacher, [[0]], range(6), top_entries=2)
    assert result["distillation"].item() == pytest.approx(9984.0)
    result["distillation"].backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad[0, 0], torch.tensor([0, 0, -1, 1, 0, 0], dtype=dtype))


@pytest.mark.parametrize(("t_s", "t_t"), [(0, 3), (3, 0), (2, 2)])
def test_without_aligned_tokens_the_loss_is_zero_with_a_graph(t_s, t_t):
    student = torch.randn(2, t_s, 6, requires_grad=True)
    labels = torch.full((2, t_s), -100)
    result = terms(student, torch.randn(2, t_t, 5), torch.full((2, t_s), -1), range(5), labels=labels)
    for value in result.values():
        assert value.shape == ()
        assert value.item() == 0
    (result["distillation"] + result["cross_entropy"]).backward()
    assert student.grad is not None
    assert student.grad.abs().sum() == 0


def test_student_masked_tokens_and_teacher_padding_contribute_nothing():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 3, 6), torch.randn(1, 3, 6)
    method = MinED(None).with_vocabulary_map(torch.arange(6))
    labels, alignment = torch.zeros(1, 3, dtype=torch.long), torch.tensor([[0, 1, 2]])
    targets = targets_from_logits(teacher, torch.tensor([[True, True, False]]), method.request())
    mask = torch.tensor([[False, True, True]])
    result = method.terms(StudentAnswers(student, labels, mask, alignment), targets)
    alone = terms(student[:, 1:2], teacher[:, 1:2], [[0]], range(6))
    torch.testing.assert_close(result["distillation"], alone["distillation"])


def test_teacher_entries_that_share_a_student_entry_add_up():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 1, 2), torch.randn(1, 1, 4)
    p, s = teacher.softmax(-1)[0, 0], student.log_softmax(-1)[0, 0]
    q = torch.stack([p[0] + p[3], p[1] + p[2]])
    result = terms(student, teacher, [[0]], [0, 1, 1, 0])
    torch.testing.assert_close(result["distillation"], (q * (q.log() - s)).sum())


def test_an_unmapped_entry_is_anything_else():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 1, 5), torch.randn(1, 1, 3)
    p, s = teacher.softmax(-1)[0, 0], student.softmax(-1)[0, 0]
    result = terms(student, teacher, [[0]], [4, -1, 2])
    q, of_student = torch.stack([p[0], p[2], p[1]]), torch.stack([s[4], s[2], s[0] + s[1] + s[3]])
    torch.testing.assert_close(result["distillation"], (q * (q / of_student).log()).sum())
    torch.testing.assert_close(result["unmapped_mass"], p[1])


def test_a_token_without_any_mapped_entry_says_nothing():
    student = torch.randn(1, 1, 5, requires_grad=True)
    result = terms(student, torch.randn(1, 1, 3), [[0]], [-1, -1, -1])
    assert result["distillation"] == 0
    torch.testing.assert_close(result["unmapped_mass"], torch.tensor(1.0))


def test_a_rest_for_which_the_student_has_no_entry_is_left_out():
    student = torch.randn(1, 1, 2, requires_grad=True)
    teacher = torch.randn(1, 1, 3)
    p = teacher.softmax(-1)[0, 0]
    result = terms(student, teacher, [[0]], [1, 0, -1])
    expected = p[0] * (p[0].log() - student.log_softmax(-1)[0, 0, 1])
    expected = expected + p[1] * (p[1].log() - student.log_softmax(-1)[0, 0, 0])
    torch.testing.assert_close(result["distillation"], expected)
    result["distillation"].backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_columns_that_only_pad_either_models_logits_map_to_nothing():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 1, 4), torch.randn(1, 1, 6)
    padded_teacher = terms(student, teacher, [[0]], [0, 1, 2, 3])
    explicit = terms(student, teacher, [[0]], [0, 1, 2, 3, -1, -1])
    beyond_student = terms(student, teacher, [[0]], [0, 1, 2, 3, 4, 5])
    torch.testing.assert_close(padded_teacher, explicit)
    torch.testing.assert_close(beyond_student, explicit)


def test_half_precision_targets_give_nearly_the_same():
    torch.manual_seed(0)
    teacher, mask = 3 * torch.randn(2, 4, 300), ones(2, 4)
    method = MinED(50).with_vocabulary_map(torch.randint(-1, 200, (300,)))
    labels, alignment = torch.zeros(2, 4, dtype=torch.long), torch.arange(4).expand(2, 4)
    student = StudentAnswers(3 * torch.randn(2, 4, 200), labels, mask, alignment)
    targets = targets_from_logits(teacher, mask, method.request())
    exact = method.terms(student, targets)["distillation"]
    small = method.terms(student, targets.to(dtype=torch.float16))["distillation"]
    assert small.dtype == torch.float32
    # the stored logarithms are off by half an eps of their size, and stand in the loss as weight and as value
    torch.testing.assert_close(small, exact, rtol=torch.finfo(torch.float16).eps, atol=0)


def test_merge_entries_keeps_each_id_once():
    mapped = torch.tensor([[[5, 2, -1, 5, 2, 9], [-1] * 6]])
    probabilities = torch.tensor([[[1, 2, 4, 8, 16, 32], [1] * 6]]) / 64
    mass, ids, keep = merge_entries(probabilities, mapped)
    kept = dict(zip(ids[0, 0][keep[0, 0]].tolist(), (mass[0, 0][keep[0, 0]] * 64).tolist(), strict=True))
    assert kept == {2: 18, 5: 9, 9: 32}
    assert set(ids[0, 0].tolist()) == {2, 5, 9}
    assert keep[0, 1].tolist() == [True] + [False] * 5
    assert mass[0, 1].sum() == 0
    assert ids[0, 1].tolist() == [0] * 6


def test_registered_with_its_setting_and_without_its_map():
    assert create_method("mined", top_entries=7) == MinED(7)
    assert MinED().request() == TargetRequest(top_entries=200, entry_ids=True)
    assert MinED(None).request() == TargetRequest(top_entries=0, entry_ids=True)
    with pytest.raises(UsageError, match="vocabulary_map"):
        create_method("mined", vocabulary_map=torch.arange(3))
    method = MinED(7).with_vocabulary_map(torch.arange(3))
    assert method.top_entries == 7
    assert MinED(7).vocabulary_map is None
    assert pickle.loads(pickle.dumps(method)).vocabulary_map.tolist() == [0, 1, 2]


def test_what_is_missing_is_named():
    student = StudentAnswers(torch.randn(1, 1, 5), torch.zeros(1, 1, dtype=torch.long), ones(1, 1))
    targets = targets_from_logits(torch.randn(1, 1, 9), ones(1, 1), MinED().request())
    with pytest.raises(UsageError, match="alignment of mined"):
        MinED().terms(student, targets)
    aligned = StudentAnswers(student.logits, student.labels, student.mask, torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(UsageError, match="vocabulary map of mined"):
        MinED().terms(aligned, targets)
    without_ids = targets_from_logits(torch.randn(1, 1, 9), ones(1, 1), TargetRequest(top_entries=200))
    with pytest.raises(UsageError, match="no entry_ids"):
        MinED().terms(aligned, without_ids)
    with pytest.raises(UsageError, match="top_entries"):
        MinED(-3)
