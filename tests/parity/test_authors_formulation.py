"""``formulation="authors"`` and the dense reference against values and gradients of the published code."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from crosskd.losses import StudentAnswers, create_method, multilevel_ot_loss, targets_from_logits

FOLDER = Path(__file__).parent / "authors_reference"
CASES = json.loads((FOLDER / "index.json").read_text())
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "dense_reference.py"


def load(case):
    with np.load(FOLDER / case["file"]) as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def answers(logits, labels, skip_eos=False):
    """Logits that predict the answer, its labels and the distillation mask, answers starting at column 0."""
    counts, starts = (labels != -100).sum(1), (labels != -100).int().argmax(1)
    places = torch.arange(int(counts.max()))
    index = (starts.unsqueeze(1) - 1 + places).clamp(max=logits.shape[1] - 1)
    rows = logits.gather(1, index.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
    tokens = labels.gather(1, (index + 1).clamp(max=labels.shape[1] - 1))
    tokens = tokens.masked_fill(places >= counts.unsqueeze(1), -100)
    return rows, tokens, places < (counts - int(skip_eos)).unsqueeze(1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_published_value_and_gradient(case):
    arrays = load(case)
    student = arrays["student_logits"].double().requires_grad_()
    rows, labels, mask = answers(student, arrays["student_labels"], case["skip_student_eos"])
    teacher, _, teacher_mask = answers(arrays["teacher_logits"].double(), arrays["teacher_labels"])
    method = create_method("multilevel_ot", formulation="authors", matching={1: "fast", 2: "greedy"}[case["f"]])
    targets = targets_from_logits(teacher, teacher_mask, method.request())
    terms = method.terms(StudentAnswers(rows, labels, mask), targets)
    count = (labels != -100).sum()
    distillation = case["distillation_weight"] * terms["distillation"] / count
    assert distillation.item() == pytest.approx(case["distillation"], rel=1e-6)
    assert (terms["cross_entropy"] / count).item() == pytest.approx(case["cross_entropy"], rel=1e-12)
    (gradient,) = torch.autograd.grad(distillation, student)
    expected = arrays["student_logits_grad_of_distillation"].double()
    assert gradient.norm().item() == pytest.approx(case["grad_norm"], rel=1e-6)
    assert ((gradient - expected).norm() / expected.norm()).item() < 1e-6


@pytest.mark.parametrize("case", [case for case in CASES if case["f"] == 1], ids=lambda case: case["file"])
def test_dense_reference_of_the_benchmark(case):
    specification = importlib.util.spec_from_file_location("dense_reference", BENCHMARK)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    arrays = load(case)
    labels = arrays["student_labels"].clone()
    if case["skip_student_eos"]:
        for row in labels:
            row[int((row != -100).nonzero().max())] = -100
    value = module.dense_distillation(
        arrays["student_logits"].double(), arrays["teacher_logits"].double(), labels, arrays["teacher_labels"]
    )
    assert (case["distillation_weight"] * value).item() == pytest.approx(case["distillation"], rel=1e-6)


def random_batch(student_tokens, teacher_tokens):
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(2, student_tokens, 30, generator=generator, dtype=torch.float64)
    teacher = torch.randn(2, teacher_tokens, 25, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([student_tokens, 1]), torch.tensor([2, teacher_tokens])
    masks = [torch.arange(n) < m.unsqueeze(1) for n, m in zip((student_tokens, teacher_tokens), lengths, strict=True)]
    return student, teacher, *masks


@pytest.mark.parametrize("matching", ["fast", "greedy"])
def test_student_sequence_shorter_than_the_longest_answer(matching):
    """The published code fails with a shape error here; padding the student by hand must change nothing."""
    student, teacher, student_mask, teacher_mask = random_batch(3, 6)
    terms = multilevel_ot_loss(student, teacher, student_mask, teacher_mask, formulation="authors", matching=matching)
    wide = torch.nn.functional.pad(student, (0, 0, 0, 5), value=7.0)
    wide_mask = torch.nn.functional.pad(student_mask, (0, 5))
    wide_terms = multilevel_ot_loss(wide, teacher, wide_mask, teacher_mask, formulation="authors", matching=matching)
    torch.testing.assert_close(torch.stack(wide_terms), torch.stack(terms), rtol=1e-12, atol=1e-12)


def test_targets_of_another_batch_are_refused():
    student, teacher, student_mask, teacher_mask = random_batch(4, 4)
    method = create_method("multilevel_ot", formulation="authors")
    request = method.request()
    whole = targets_from_logits(teacher, teacher_mask, request)
    alone = [targets_from_logits(teacher[i : i + 1], teacher_mask[i : i + 1], request) for i in range(2)]
    labels = torch.zeros(2, 4, dtype=torch.int64)
    answers_of_both = StudentAnswers(student, labels, student_mask)
    assert method.terms(answers_of_both, type(whole).stack([whole.example(0), whole.example(1)]))
    with pytest.raises(ValueError, match="ranked in batches of 1"):
        method.terms(answers_of_both, type(whole).stack(alone))
    with pytest.raises(ValueError, match="ranked in batches of 2"):
        method.terms(StudentAnswers(student[:1], labels[:1], student_mask[:1]), whole.example(0))


def test_paper_and_authors_differ():
    student, teacher, student_mask, teacher_mask = random_batch(4, 4)
    paper = multilevel_ot_loss(student, teacher, student_mask, teacher_mask)
    authors = multilevel_ot_loss(student, teacher, student_mask, teacher_mask, formulation="authors")
    assert abs(paper.total - authors.total) > 0.1
