"""The alignment against all order-keeping matchings of tiny sequences."""

import random
from itertools import combinations

import pytest

from crosskd.text.alignment import align_tokens
from helpers_edit_distance import edit_distance


def cost(student, teacher, pairs):
    matched = sum(edit_distance(student[i], teacher[j]) / max(len(student[i]), len(teacher[j])) for i, j in pairs)
    return matched + (len(student) + len(teacher) - 2 * len(pairs)) / 2


def least_cost(student, teacher):
    return min(
        cost(student, teacher, list(zip(rows, columns, strict=True)))
        for size in range(min(len(student), len(teacher)) + 1)
        for rows in combinations(range(len(student)), size)
        for columns in combinations(range(len(teacher)), size)
    )


@pytest.mark.parametrize("seed", range(60))
def test_no_matching_is_cheaper(seed):
    generator = random.Random(seed)
    student, teacher = (
        ["".join(generator.choices("ab c", k=generator.randint(1, 5))) for _ in range(generator.randint(1, 6))]
        for _ in range(2)
    )
    alignment = align_tokens(student, teacher)
    pairs = [(i, j) for i, j in enumerate(alignment) if j >= 0]
    assert [j for _, j in pairs] == sorted({j for _, j in pairs})
    assert len(alignment) == len(student)
    assert cost(student, teacher, pairs) == pytest.approx(least_cost(student, teacher), abs=1e-5)
