"""What must hold for ULD whatever the numbers are."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosskd.losses.uld import uld_loss

sizes = st.integers(1, 9)
counts = st.one_of(st.none(), st.integers(1, 10))
seeds = st.integers(0, 10_000)


def problem(seed, batch, t_s, t_t, v_s, v_t):
    generator = torch.Generator().manual_seed(seed)
    student = 3 * torch.randn(batch, t_s, v_s, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(batch, t_t, v_t, generator=generator, dtype=torch.float64)
    student_mask = torch.arange(t_s) < torch.randint(0, t_s + 1, (batch, 1), generator=generator)
    teacher_mask = torch.arange(t_t) < torch.randint(0, t_t + 1, (batch, 1), generator=generator)
    return student, teacher, student_mask, teacher_mask


def assert_equal(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-10)


@settings(max_examples=40)
@given(seeds, sizes, sizes, sizes, sizes, counts)
def test_permuting_either_vocabulary_changes_nothing(seed, t_s, t_t, v_s, v_t, top_entries):
    student, teacher, student_mask, teacher_mask = problem(seed, 2, t_s, t_t, v_s, v_t)
    loss = uld_loss(student, teacher, student_mask, teacher_mask, top_entries=top_entries)
    generator = torch.Generator().manual_seed(seed)
    student = student[..., torch.randperm(v_s, generator=generator)]
    teacher = teacher[..., torch.randperm(v_t, generator=generator)]
    assert_equal(uld_loss(student, teacher, student_mask, teacher_mask, top_entries=top_entries), loss)


@settings(max_examples=40)
@given(seeds, sizes, sizes, counts)
def test_identical_models_give_zero_and_shifted_logits_too(seed, tokens, vocabulary, top_entries):
    student, _, mask, _ = problem(seed, 2, tokens, 1, vocabulary, 1)
    assert_equal(uld_loss(student, student + 5, mask, mask, top_entries=top_entries).item(), 0.0)


@settings(max_examples=40)
@given(seeds, st.integers(1, 4), sizes, sizes, sizes, sizes, counts)
def test_batch_equals_single_calls_and_padding_changes_nothing(seed, batch, t_s, t_t, v_s, v_t, top_entries):
    student, teacher, student_mask, teacher_mask = problem(seed, batch, t_s, t_t, v_s, v_t)
    loss = uld_loss(student, teacher, student_mask, teacher_mask, top_entries=top_entries)
    singles = student.new_zeros(())
    for b in range(batch):
        s, t = int(student_mask[b].sum()), int(teacher_mask[b].sum())
        masks = student_mask[b : b + 1, :s], teacher_mask[b : b + 1, :t]
        singles += uld_loss(student[b : b + 1, :s], teacher[b : b + 1, :t], *masks, top_entries=top_entries)
    assert_equal(singles, loss)


@settings(max_examples=40)
@given(seeds, sizes, sizes, sizes)
def test_bounded_by_two_a_token_and_growing_with_the_entries(seed, tokens, v_s, v_t):
    student, teacher, student_mask, teacher_mask = problem(seed, 2, tokens, tokens, v_s, v_t)
    compared = int((student_mask & teacher_mask).sum())
    losses = [uld_loss(student, teacher, student_mask, teacher_mask, top_entries=m).item() for m in range(1, 11)]
    assert all(early <= late + 1e-10 for early, late in pairwise(losses))
    assert -1e-10 <= losses[-1] <= 2 * compared + 1e-10
