"""What must hold for MinED whatever the numbers are."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosskd.losses.base import StudentAnswers
from crosskd.losses.mined import MinED
from crosskd.losses.targets import targets_from_logits

sizes = st.integers(1, 8)
counts = st.one_of(st.none(), st.integers(1, 9))
seeds = st.integers(0, 10_000)


def problem(seed, batch, t_s, t_t, v_s, v_t):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(v_s, (batch, t_s), generator=generator)
    labels[torch.arange(t_s) >= torch.randint(0, t_s + 1, (batch, 1), generator=generator)] = -100
    student = 3 * torch.randn(batch, t_s, v_s, generator=generator, dtype=torch.float64)
    alignment = torch.randint(-1, t_t, (batch, t_s), generator=generator)
    teacher = 3 * torch.randn(batch, t_t, v_t, generator=generator, dtype=torch.float64)
    mask = torch.arange(t_t) < torch.randint(0, t_t + 1, (batch, 1), generator=generator)
    table = torch.randint(-1, v_s, (v_t,), generator=generator)
    return StudentAnswers(student, labels, labels != -100, alignment), teacher, mask, table


def loss(student, teacher, mask, table, top_entries=None):
    method = MinED(top_entries).with_vocabulary_map(table)
    terms = method.terms(student, targets_from_logits(teacher, mask, method.request()))
    return torch.stack([terms["cross_entropy"], terms["distillation"], terms["tail_mass"], terms["unmapped_mass"]])


def assert_equal(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-9)


@settings(max_examples=40)
@given(seeds, sizes, sizes, sizes, sizes, counts)
def test_permuting_either_vocabulary_with_its_map_changes_nothing(seed, t_s, t_t, v_s, v_t, top_entries):
    student, teacher, mask, table = problem(seed, 2, t_s, t_t, v_s, v_t)
    expected = loss(student, teacher, mask, table, top_entries)
    generator = torch.Generator().manual_seed(seed)
    new_of_student, old_of_teacher = (torch.randperm(size, generator=generator) for size in (v_s, v_t))
    labels = torch.where(student.labels >= 0, new_of_student[student.labels.clamp(min=0)], -100)
    logits = student.logits[..., new_of_student.argsort()]
    table = torch.where(table >= 0, new_of_student[table.clamp(min=0)], -1)[old_of_teacher]
    permuted = StudentAnswers(logits, labels, student.mask, student.alignment)
    assert_equal(loss(permuted, teacher[..., old_of_teacher], mask, table, top_entries), expected)


@settings(max_examples=40)
@given(seeds, st.integers(1, 4), sizes, sizes, sizes, sizes, counts)
def test_batch_equals_single_calls_and_padding_changes_nothing(seed, batch, t_s, t_t, v_s, v_t, top_entries):
    student, teacher, mask, table = problem(seed, batch, t_s, t_t, v_s, v_t)
    singles = torch.zeros(4, dtype=torch.float64)
    for b in range(batch):
        s, t, row = int(student.mask[b].sum()), int(mask[b].sum()), slice(b, b + 1)
        assert student.alignment is not None
        parts = (x[row, :s] for x in (student.logits, student.labels, student.mask, student.alignment))
        singles += loss(StudentAnswers(*parts), teacher[row, :t], mask[row, :t], table, top_entries)
    assert_equal(singles, loss(student, teacher, mask, table, top_entries))


@settings(max_examples=40)
@given(seeds, sizes, sizes, counts)
def test_zero_for_identical_models_and_nonnegative_otherwise(seed, tokens, vocabulary, top_entries):
    student, teacher, mask, _ = problem(seed, 2, tokens, tokens, vocabulary, vocabulary)
    identity = torch.arange(vocabulary)
    aligned = torch.arange(tokens).expand(2, -1)
    student = StudentAnswers(student.logits, student.labels, student.mask, aligned)
    assert_equal(loss(student, student.logits, mask, identity, top_entries)[1].item(), 0.0)
    assert loss(student, teacher, mask, identity, top_entries)[1] >= -1e-12


@settings(max_examples=40)
@given(seeds, sizes, sizes)
def test_an_injective_map_gives_a_loss_that_grows_with_the_entries(seed, tokens, vocabulary):
    student, teacher, mask, _ = problem(seed, 2, tokens, tokens, vocabulary, vocabulary)
    losses = [loss(student, teacher, mask, torch.arange(vocabulary), m)[1].item() for m in range(1, 9)]
    assert all(early <= late + 1e-9 for early, late in pairwise(losses))
