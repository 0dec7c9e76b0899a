"""MinED as published against a naive reading of it: plain Python over strings, one token at a time."""

from __future__ import annotations

import math
import random
from functools import cache
from itertools import pairwise

import pytest
import torch

from crosskd.losses.base import StudentAnswers
from crosskd.losses.mined import MinED
from crosskd.losses.targets import targets_from_logits
from crosskd.text.alignment import Vocabulary, align_by_warping, warp_tokens
from crosskd.text.vocabulary_map import vocabulary_map
from helpers_edit_distance import edit_distance

ALPHABET = "ab "


def warped(student: list[str], teacher: list[str]) -> list[list[int]]:
    """The teacher tokens of each student token, by the recursion of dynamic time warping, without its spaces."""

    @cache
    def total(i: int, j: int) -> float:
        if i < 0 or j < 0:
            return 0.0 if i == j == -1 else math.inf
        here = edit_distance(student[i].replace(" ", ""), teacher[j].replace(" ", ""))
        return here + min(total(i - 1, j - 1), total(i, j - 1), total(i - 1, j))

    i, j = len(student) - 1, len(teacher) - 1
    partners: list[list[int]] = [[] for _ in student]
    while True:
        partners[i].insert(0, j)
        if i == j == 0:
            return partners
        both, of_teacher, of_student = total(i - 1, j - 1), total(i, j - 1), total(i - 1, j)
        if both <= min(of_teacher, of_student):
            i, j = i - 1, j - 1
        elif of_teacher <= of_student:
            j -= 1
        else:
            i -= 1


class Problem:
    """A text, two vocabularies that spell it, and logits of two models, one row for each token to predict."""

    def __init__(self, seed: int) -> None:
        generator = random.Random(seed)
        text = "".join(generator.choices(ALPHABET, k=generator.randint(4, 14)))
        self.pieces = [split(text, generator), split(text, generator)]
        every = [a + b + c for a in ALPHABET for b in ("", *ALPHABET) for c in ("", *ALPHABET)]
        vocabularies = []
        for used in self.pieces:
            entries = sorted({*generator.sample(sorted(set(every)), 12), *used})
            generator.shuffle(entries)
            vocabularies.append(entries)
        self.entries = vocabularies
        self.ids = [[v.index(p) for p in pieces] for v, pieces in zip(vocabularies, self.pieces, strict=True)]
        numbers = torch.Generator().manual_seed(seed)
        self.logits = [
            3 * torch.randn(len(pieces), len(v), generator=numbers, dtype=torch.float64)
            for v, pieces in zip(vocabularies, self.pieces, strict=True)
        ]
        student, teacher = (Vocabulary(tuple(entries)) for entries in vocabularies)
        self.table = vocabulary_map(student, teacher, cutoff=1.0, workers=1)


def split(text: str, generator: random.Random) -> list[str]:
    pieces = []
    while text:
        size = generator.randint(1, 3)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def by_hand(problem: Problem, top_entries: int) -> tuple[float, int]:
    """The published loss of one answer, summed over its tokens, and how many tokens learn their label."""
    student, teacher = problem.pieces
    partners = warped(["", *student], ["", *teacher])
    total, labels = 0.0, 0
    for i, label in enumerate(problem.ids[0]):
        logits = problem.logits[0][i].tolist()
        shift = max(logits)
        normalizer = shift + math.log(math.fsum(math.exp(z - shift) for z in logits))
        kept: dict[int, float] = {}
        if len(partners[i]) == 1 and partners[i][0] < len(teacher):
            j = partners[i][0]
            alike = i == j == 0
            if i > 0 and j > 0:
                mapped = int(problem.table[problem.ids[1][j - 1]])
                alike = student[i - 1] == teacher[j - 1] or mapped == problem.ids[0][i - 1]
            if alike:
                row = problem.logits[1][j].tolist()
                for entry in sorted(range(len(row)), key=lambda v: -row[v])[:top_entries]:
                    target = int(problem.table[entry])
                    if target >= 0 and target not in kept:
                        kept[target] = row[entry]
        if not kept:
            labels += 1
            kept = {label: 1.0}
        largest = max(kept.values())
        masses = {v: math.exp(z - largest) for v, z in kept.items()}
        whole = math.fsum(masses.values())
        total += math.fsum(m / whole * (math.log(m / whole) - logits[v] + normalizer) for v, m in masses.items())
    return total, labels


@pytest.mark.parametrize("seed", range(60))
def test_the_path_is_that_of_the_recursion(seed: int) -> None:
    student, teacher = Problem(seed).pieces
    assert [list(found) for found in warp_tokens(student, teacher)] == warped(student, teacher)


@pytest.mark.parametrize("top_entries", [1, 3, 10])
@pytest.mark.parametrize("seed", range(40))
def test_the_loss_is_that_of_the_naive_reading(seed: int, top_entries: int) -> None:
    problem = Problem(seed)
    (student, teacher), table = problem.pieces, problem.table
    alignment = align_by_warping(
        student,
        teacher,
        lambda i, j: student[i] == teacher[j] or int(table[problem.ids[1][j]]) == problem.ids[0][i],
    )
    method = MinED(top_entries, 1.0, "dtw", "dropped").with_vocabulary_map(table)
    masks = [torch.ones(1, len(pieces), dtype=torch.bool) for pieces in problem.pieces]
    targets = targets_from_logits(problem.logits[1][None], masks[1], method.request())
    labels = torch.tensor([problem.ids[0]])
    answers = StudentAnswers(problem.logits[0][None], labels, masks[0], torch.tensor([alignment]))
    found = method.terms(answers, targets)
    expected, of_labels = by_hand(problem, top_entries)
    assert found["distillation"].item() == pytest.approx(expected, abs=1e-10)
    assert found["label_targets"].item() == of_labels


def test_the_problems_hold_every_kind_of_token() -> None:
    """The parity above says nothing if no token is aligned, or none left alone."""
    counts = [by_hand(problem, 10)[1] for problem in map(Problem, range(40))]
    tokens = [len(problem.pieces[0]) for problem in map(Problem, range(40))]
    assert 0 < sum(counts) < sum(tokens) - 40
    paths = [warped(["", *p.pieces[0]], ["", *p.pieces[1]]) for p in map(Problem, range(40))]
    assert any(len(partners) > 1 for path in paths for partners in path)
    shared = [left[-1] == right[0] for path in paths for left, right in pairwise(path)]
    assert any(shared)


def test_gradcheck() -> None:
    problem = Problem(3)
    student, teacher = problem.pieces
    alignment = align_by_warping(student, teacher, lambda i, j: student[i] == teacher[j])
    method = MinED(3, 1.0, "dtw", "dropped").with_vocabulary_map(problem.table)
    masks = [torch.ones(1, len(pieces), dtype=torch.bool) for pieces in problem.pieces]
    targets = targets_from_logits(problem.logits[1][None], masks[1], method.request())
    labels = torch.tensor([problem.ids[0]])

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return method.terms(StudentAnswers(logits, labels, masks[0], torch.tensor([alignment])), targets)[
            "distillation"
        ]

    assert torch.autograd.gradcheck(loss, problem.logits[0][None].clone().requires_grad_())
