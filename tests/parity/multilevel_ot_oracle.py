"""Slow oracle of MultiLevelOT: loops over sequences, tokens and columns, written from the equations.

Numbers are torch scalars in float64, so that autograd gives the oracle's gradient too.
"""

import itertools

import torch

ZERO = torch.zeros((), dtype=torch.float64)


def probability(row, column, temperature):
    """Softmax at a temperature, from its definition."""
    shifted = (row - row.max().detach()) / temperature
    return torch.exp(shifted[column]) / torch.exp(shifted).sum()


def ranked(rows, k):
    """Eq. 10 and 12."""
    rows = rows.detach()
    sums = [sum(float(probability(row, column, 1.0)) for row in rows) for column in range(len(rows[0]))]
    return sorted(range(len(sums)), key=lambda column: (-sums[column], column))[:k]


def column_costs(teacher, student, columns, tokens, squares=0.0):
    """L1 distances over the tokens, plus ``squares`` times the squared distance, which decides between equal ones."""
    teacher, student = teacher.detach(), student.detach()

    def cost(i, j):
        differences = [float(probability(teacher[t], i, 1.0) - probability(student[t], j, 1.0)) for t in range(tokens)]
        return sum(abs(value) + squares * value**2 for value in differences)

    return [[cost(i, j) for j in range(student.shape[1])] for i in columns]


def matched(teacher, student, columns, method):
    """Eq. 11."""
    k = len(columns)
    if method == "fast":
        return ranked(student, k)
    squares = 1e-10 if method == "exact" else 0.0
    costs = column_costs(teacher, student, columns, min(len(teacher), len(student)), squares)
    if method == "greedy":
        chosen = []
        for row in costs:
            chosen.append(min((j for j in range(len(row)) if j not in chosen), key=row.__getitem__))
        return chosen
    return list(
        min(itertools.permutations(range(student.shape[1]), k), key=lambda p: sum(costs[i][p[i]] for i in range(k)))
    )


def sinkhorn(costs, epsilon, iterations):
    """Eq. 18-20 as they stand: divide the kernel itself; columns sum to rows / columns."""
    rows, columns = len(costs), len(costs[0])
    kernel = [[torch.exp(-value / epsilon) for value in row] for row in costs]
    for _ in range(iterations):
        kernel = [[value / sum(row) for value in row] for row in kernel]
        sums = [sum(kernel[i][j] for i in range(rows)) for j in range(columns)]
        kernel = [[kernel[i][j] / sums[j] * (rows / columns) for j in range(columns)] for i in range(rows)]
    return sum((kernel[i][j] * costs[i][j] for i in range(rows) for j in range(columns)), ZERO)


def oracle(
    student_logits, teacher_logits, student_lengths, teacher_lengths, *, k=50, method="fast", beta=0.1, gamma=0.1,
    temperature=2.0, epsilon=0.1, iterations=20,
):  # fmt: skip
    """(total, HAD, SL, SD): Eq. 14, 16, 20, 21 before alpha, summed over sequences."""
    terms = [ZERO, ZERO, ZERO]
    k = min(k, student_logits.shape[-1], teacher_logits.shape[-1])
    for b in range(len(student_logits)):
        student, teacher = student_logits[b, : student_lengths[b]], teacher_logits[b, : teacher_lengths[b]]
        if len(student) == 0 or len(teacher) == 0:
            continue
        teacher_columns = ranked(teacher, k)
        student_columns = matched(teacher, student, teacher_columns, method)
        pairs = list(zip(teacher_columns, student_columns, strict=True))
        for t in range(min(len(student), len(teacher))):
            for i, j in pairs:
                t_i, s_j = probability(teacher[t], i, 1.0), probability(student[t], j, 1.0)
                terms[0] = terms[0] + abs(t_i - s_j)
                terms[1] = terms[1] - t_i * torch.log(s_j)
        costs = [
            [
                sum(abs(probability(x, i, temperature) - probability(y, j, temperature)) for i, j in pairs)
                for y in student
            ]
            for x in teacher
        ]
        terms[2] = terms[2] + sinkhorn(costs, epsilon, iterations)
    return terms[0] + beta * terms[1] + gamma * terms[2], *terms


def prefix_masks(lengths, width):
    return torch.tensor([[t < length for t in range(width)] for length in lengths])
