"""Teacher targets: what they hold, how they stack, store, and how small they are."""

import pytest
import torch

from crosskd.errors import UsageError
from crosskd.losses import StudentAnswers, TargetRequest, TeacherTargets, create_method, targets_from_logits
from crosskd.transport import rank_columns

EVERYTHING = TargetRequest(top_k=4, temperatures=(2.0, 0.5), top_entries=3, entry_ids=True, answer_tokens=True)


def teacher(dtype=torch.float64, batch=3, tokens=6, vocabulary=20, scale=3.0):
    logits = torch.randn(batch, tokens, vocabulary, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(tokens) < torch.tensor([tokens, 3, 0][:batch]).unsqueeze(1)
    ids = torch.randint(vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(1))
    return (logits * scale).to(dtype), mask, ids


def test_contents_equal_plain_torch():
    logits, mask, ids = teacher()
    targets = targets_from_logits(logits, mask, EVERYTHING, ids)
    log_probabilities = logits.log_softmax(-1)
    columns = rank_columns(logits, mask, 4)
    assert torch.equal(targets.column_ids.long(), columns)
    expanded = columns.unsqueeze(1).expand(-1, 6, -1)
    torch.testing.assert_close(targets.column_log_probabilities, log_probabilities.gather(-1, expanded))
    assert targets.temperatures == (0.5, 2.0)
    for index, tau in enumerate(targets.temperatures):
        at_tau = targets.column_log_probabilities / tau - targets.log_normalizers[..., index : index + 1]
        torch.testing.assert_close(at_tau, (logits / tau).log_softmax(-1).gather(-1, expanded), rtol=1e-12, atol=1e-12)
    top = log_probabilities.topk(3)
    torch.testing.assert_close(targets.entry_log_probabilities, top.values)
    assert torch.equal(targets.entry_ids.long(), top.indices)
    torch.testing.assert_close(targets.entry_tail, 1 - top.values.exp().sum(-1))
    chosen = log_probabilities.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(targets.answer_log_probabilities[mask], chosen[mask])
    assert torch.equal(targets.answer_ids[mask], ids[mask])
    assert targets.vocabulary_size == 20


def test_all_entries_leave_no_tail():
    logits, mask, _ = teacher()
    targets = targets_from_logits(logits, mask, TargetRequest(top_k=0, top_entries=0))
    assert targets.column_log_probabilities.shape == targets.entry_log_probabilities.shape == (3, 6, 20)
    assert (targets.entry_tail == 0).all()
    assert targets.entry_ids is None


def assert_equal(first, second):
    assert (first.temperatures, first.vocabulary_size) == (second.temperatures, second.vocabulary_size)
    assert first.tensors().keys() == second.tensors().keys()
    for name, value in first.tensors().items():
        expected = second.tensors()[name]
        assert value.dtype == expected.dtype
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12, msg=name)


def test_one_at_a_time_equals_the_batch():
    logits, mask, ids = teacher()
    whole = targets_from_logits(logits, mask, EVERYTHING, ids)
    for index, length in enumerate((6, 3, 0)):
        part = slice(index, index + 1), slice(0, length)
        alone = targets_from_logits(logits[part], mask[part], EVERYTHING, ids[part])
        assert_equal(whole.example(index), alone)


def test_stack_undoes_example_and_dictionaries_come_back():
    logits, mask, ids = teacher()
    whole = targets_from_logits(logits, mask, EVERYTHING, ids)
    assert_equal(TeacherTargets.from_dict(whole.to_dict()), whole)
    assert all(value.shape[0] == 3 for value in whole.tensors().values())
    squeezed = [
        {**whole.to_dict(), **{name: value[0] for name, value in whole.example(i).tensors().items()}} for i in range(3)
    ]
    for parts in ([whole.example(index) for index in range(3)], squeezed):
        stacked = TeacherTargets.stack(parts)
        assert torch.equal(stacked.mask, mask)
        for index in range(3):
            assert_equal(stacked.example(index), whole.example(index))


def test_bytes_of_multilevel_ot_targets_in_half_precision():
    logits = torch.randn(1, 40, 300)
    request = create_method("multilevel_ot").request()

    def size(tokens):
        targets = targets_from_logits(logits[:, :tokens], torch.ones(1, tokens, dtype=torch.bool), request)
        return sum(value.nbytes for value in targets.to(dtype=torch.float16).tensors().values())

    assert (size(40) - size(20)) / 20 <= 120
    assert size(0) <= 250


@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
def test_half_precision_keeps_the_stated_error(scale):
    logits, mask, ids = teacher(scale=scale)
    request = TargetRequest(top_k=0, temperatures=(2.0,))
    exact = targets_from_logits(logits, mask, request, ids)
    half = exact.to(dtype=torch.float16)
    log_probabilities = exact.column_log_probabilities
    probabilities = log_probabilities.exp()
    error = (half.column_log_probabilities.double().exp() - probabilities).abs()
    assert (error <= probabilities * (log_probabilities.abs() / 2048).expm1() + 3e-8).all()
    assert error.max() < 1.8e-4
    assert half.log_normalizers.dtype == torch.float32


def test_float16_does_not_run_into_infinity():
    logits = torch.tensor([[[0.0, -1e6, -torch.inf]]])
    targets = targets_from_logits(logits, torch.ones(1, 1, dtype=torch.bool), TargetRequest(top_k=3))
    assert targets.to(dtype=torch.float16).column_log_probabilities.isfinite().all()


def test_requests_merge_and_serve_each_method_alike():
    first = TargetRequest(top_k=4, temperatures=(2.0,))
    merged = first | TargetRequest(top_k=7, temperatures=(1.5,), top_entries=3) | TargetRequest(top_entries=0)
    assert merged == TargetRequest(top_k=7, temperatures=(1.5, 2.0), top_entries=0)
    assert (first | TargetRequest(top_k=0)).top_k == 0
    logits, mask, _ = teacher(batch=2)
    method = create_method("multilevel_ot", top_k=4)
    student = StudentAnswers(logits.flip(0, -1), torch.zeros(2, 6, dtype=torch.int64), mask)
    own = method.terms(student, targets_from_logits(logits, mask, method.request()))
    shared = method.terms(student, targets_from_logits(logits, mask, method.request() | merged))
    for name, value in own.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-12, atol=1e-12)


def test_errors():
    logits, mask, _ = teacher()
    with pytest.raises(UsageError, match="token_ids"):
        targets_from_logits(logits, mask, TargetRequest(answer_tokens=True))
    with pytest.raises(UsageError, match="authors"):
        TargetRequest(standardized=True) | TargetRequest()
    with pytest.raises(UsageError, match="at least one"):
        TeacherTargets.stack([])
    targets = targets_from_logits(logits, mask, TargetRequest(top_k=2))
    other = targets_from_logits(logits, mask, TargetRequest(top_k=2, temperatures=(2.0,)))
    with pytest.raises(UsageError, match="2 kinds"):
        TeacherTargets.stack([targets, other])
    with pytest.raises(UsageError, match="teacher targets"):
        TeacherTargets.from_dict({"mask": mask, "colums": mask})
    with pytest.raises(UsageError, match=r"\[0, 3\)"):
        targets.example(3)
