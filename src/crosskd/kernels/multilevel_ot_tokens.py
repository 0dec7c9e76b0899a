"""The terms of MultiLevelOT on matched columns (Eq. 14, 16, 17 of arXiv 2412.14528), and the way back to the logits.

Forward, a program a token reads its k columns on both sides, adds up the first two terms and the cross-entropy, and
writes the probabilities that the Sinkhorn distance compares. Backward, a program a token makes the gradient of its
columns and log-sums again from the same numbers, and writes the gradient of the whole row: nothing of size V is kept in
between.

With c the logits of the columns minus the row's largest, ``s = exp(c / tau - log_sum)`` and t the teacher's
probabilities::

    HAD = sum |t - s|        d/dc = sign(s - t) s             d/dlog_sum = -sum sign(s - t) s
    SL  = -sum t log s       d/dc = -t / tau                  d/dlog_sum = sum t
    SD  = <plan, cost>       d/dc = D s / tau                 d/dlog_sum = -sum D s,      D = dSD/ds
"""
# what Triton compiles is not Python to a type checker
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from crosskd.kernels.answer_gradient import softmax_mixture, write_mixture


@triton.jit
def _teacher_at(log_probability, normalizers, row, COUNT: tl.constexpr, INDEX: tl.constexpr, INV: tl.constexpr):
    """The teacher's probabilities at a temperature; INDEX is that of its normalizer, -1 for temperature 1."""
    if INDEX < 0:
        return tl.exp(log_probability)
    return tl.exp(log_probability * INV - tl.load(normalizers + row * COUNT + INDEX).to(log_probability.dtype))


@triton.jit
def token_terms(
    logits,
    maxima,
    log_sums,
    ids,
    labels,
    student_mask,
    teacher_values,
    normalizers,
    teacher_mask,
    terms,
    student_probabilities,
    teacher_probabilities,
    stride_b,
    stride_t,
    id_stride_b,
    teacher_stride_b,
    teacher_stride_t,
    student_tokens,
    teacher_tokens,
    kept,
    HAD: tl.constexpr,
    SL: tl.constexpr,
    SD: tl.constexpr,
    N: tl.constexpr,
    SL_INDEX: tl.constexpr,
    SD_INDEX: tl.constexpr,
    SL_INV: tl.constexpr,
    SD_INV: tl.constexpr,
    NORMALIZERS: tl.constexpr,
    SL_NORMALIZER: tl.constexpr,
    SD_NORMALIZER: tl.constexpr,
    KEPT: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Program (token, sequence): its cross-entropy, HAD and SL, and both sides' probabilities for SD."""
    token, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    slot = tl.arange(0, KEPT)
    there = slot < kept
    # beyond the end of its side a program reads the last token and counts nothing
    student_row = sequence * student_tokens + tl.minimum(token, student_tokens - 1)
    teacher_row = sequence * teacher_tokens + tl.minimum(token, teacher_tokens - 1)
    base = logits + sequence * stride_b + tl.minimum(token, student_tokens - 1).to(tl.int64) * stride_t
    place = teacher_values + sequence * teacher_stride_b
    place += tl.minimum(token, teacher_tokens - 1).to(tl.int64) * teacher_stride_t
    column = tl.load(ids + sequence * id_stride_b + slot, mask=there, other=0)
    maximum = tl.load(maxima + student_row)
    log_sum = tl.load(log_sums + student_row * N)
    shifted = tl.load(base + column, mask=there, other=0.0).to(DTYPE) - maximum
    taught = tl.load(place + slot, mask=there, other=0.0).to(DTYPE)
    both = tl.load(student_mask + student_row).to(tl.int32) * tl.load(teacher_mask + teacher_row).to(tl.int32)
    counted = slot < tl.where(token < tl.minimum(student_tokens, teacher_tokens), kept, 0) * both
    label = tl.where(token < student_tokens, tl.load(labels + student_row), -1)
    logit = tl.load(base + tl.maximum(label, 0)).to(DTYPE)
    into = terms + (sequence * tl.num_programs(0) + token) * 3
    tl.store(into, tl.where(label >= 0, log_sum - (logit - maximum), 0.0))
    if HAD:
        difference = tl.abs(tl.exp(taught) - tl.exp(shifted - log_sum))
        tl.store(into + 1, tl.sum(tl.where(counted, difference, 0.0), 0))
    if SL:
        weight = _teacher_at(taught, normalizers, teacher_row, NORMALIZERS, SL_NORMALIZER, SL_INV)
        sl_sum = tl.load(log_sums + student_row * N + SL_INDEX)
        # a column that the teacher rules out costs nothing, whatever the student says of it
        counts = counted & (weight != 0)
        tl.store(into + 2, -tl.sum(tl.where(counts, weight * (shifted * SL_INV - sl_sum), 0.0), 0))
    if SD:
        if token < student_tokens:
            sd_sum = tl.load(log_sums + student_row * N + SD_INDEX)
            own = tl.exp(shifted * SD_INV - sd_sum)
            tl.store(student_probabilities + (sequence * kept + slot) * student_tokens + token, own, mask=there)
        if token < teacher_tokens:
            other = _teacher_at(taught, normalizers, teacher_row, NORMALIZERS, SD_NORMALIZER, SD_INV)
            tl.store(teacher_probabilities + (sequence * kept + slot) * teacher_tokens + token, other, mask=there)


@triton.jit
def collect(
    terms, distances, result, rows, pairs, HAD: tl.constexpr, SL: tl.constexpr, SD: tl.constexpr,
    HAD_WEIGHT: tl.constexpr, SL_WEIGHT: tl.constexpr, SD_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """One program: (cross-entropy, weighted total, HAD, SL, SD) from those of tokens and pairs."""
    lanes = tl.arange(0, BLOCK)
    cross_entropy = tl.zeros((BLOCK,), DTYPE)
    had = tl.zeros((BLOCK,), DTYPE)
    sl = tl.zeros((BLOCK,), DTYPE)
    sd = tl.zeros((BLOCK,), DTYPE)
    for start in range(0, rows, BLOCK):
        row = start + lanes
        cross_entropy += tl.load(terms + row * 3, mask=row < rows, other=0.0)
        if HAD:
            had += tl.load(terms + row * 3 + 1, mask=row < rows, other=0.0)
        if SL:
            sl += tl.load(terms + row * 3 + 2, mask=row < rows, other=0.0)
    if SD:
        for start in range(0, pairs, BLOCK):
            pair = start + lanes
            sd += tl.load(distances + pair, mask=pair < pairs, other=0.0)
    had_sum, sl_sum, sd_sum = tl.sum(had, 0), tl.sum(sl, 0), tl.sum(sd, 0)
    tl.store(result, tl.sum(cross_entropy, 0))
    tl.store(result + 1, HAD_WEIGHT * had_sum + SL_WEIGHT * sl_sum + SD_WEIGHT * sd_sum)
    tl.store(result + 2, had_sum)
    tl.store(result + 3, sl_sum)
    tl.store(result + 4, sd_sum)


@triton.jit
def _upstream(own, total, WEIGHT: tl.constexpr, OWN: tl.constexpr, TOTAL: tl.constexpr, DTYPE: tl.constexpr):
    """Gradient of a term: its own, and by its weight that of the total."""
    result = tl.zeros((), DTYPE)
    if OWN:
        result += tl.load(own).to(DTYPE)
    if TOTAL:
        result += tl.load(total).to(DTYPE) * WEIGHT
    return result


@triton.jit
def row_gradient(
    logits,
    result,
    maxima,
    log_sums,
    ids,
    labels,
    student_mask,
    teacher_values,
    normalizers,
    teacher_mask,
    of_probabilities,
    of_cross_entropy,
    of_total,
    of_had,
    of_sl,
    of_sd,
    stride_b,
    stride_t,
    id_stride_b,
    teacher_stride_b,
    teacher_stride_t,
    student_tokens,
    teacher_tokens,
    vocabulary,
    kept,
    columns_a_part,
    HAD: tl.constexpr,
    SL: tl.constexpr,
    SD: tl.constexpr,
    HAD_WEIGHT: tl.constexpr,
    SL_WEIGHT: tl.constexpr,
    SD_WEIGHT: tl.constexpr,
    UPSTREAM: tl.constexpr,
    N: tl.constexpr,
    SL_INDEX: tl.constexpr,
    SD_INDEX: tl.constexpr,
    SL_INV: tl.constexpr,
    SD_INV: tl.constexpr,
    NORMALIZERS: tl.constexpr,
    SL_NORMALIZER: tl.constexpr,
    SD_NORMALIZER: tl.constexpr,
    SQUARE: tl.constexpr,
    INV_0: tl.constexpr,
    INV_1: tl.constexpr,
    INV_2: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Program (token, part of the vocabulary); UPSTREAM has a bit for each gradient given, in order."""
    row = tl.program_id(0).to(tl.int64)
    sequence, token = row // student_tokens, row % student_tokens
    slot = tl.arange(0, KEPT)
    there = slot < kept
    base = logits + sequence * stride_b + token * stride_t
    column = tl.load(ids + sequence * id_stride_b + slot, mask=there, other=-1)
    maximum = tl.load(maxima + row)
    log_sum = tl.load(log_sums + row * N)
    shifted = tl.load(base + column, mask=there, other=0.0).to(DTYPE) - maximum
    label = tl.load(labels + row)
    of_label = tl.zeros((), DTYPE)
    if UPSTREAM & 1:
        of_label += tl.where(label >= 0, tl.load(of_cross_entropy).to(DTYPE), 0.0)
    # the weight of each temperature's softmax in the row, and the gradient of each column
    weight_0 = of_label
    weight_1 = tl.zeros((), DTYPE)
    weight_2 = tl.zeros((), DTYPE)
    added = tl.where(column == label, -of_label, tl.zeros((KEPT,), DTYPE))
    taught = tl.zeros((KEPT,), DTYPE)
    counted = there
    if HAD or SL:
        last = tl.minimum(token, teacher_tokens - 1)
        teacher_row = sequence * teacher_tokens + last
        place = teacher_values + sequence * teacher_stride_b + last * teacher_stride_t + slot
        taught = tl.load(place, mask=there, other=0.0).to(DTYPE)
        both = tl.load(student_mask + row).to(tl.int32) * tl.load(teacher_mask + teacher_row).to(tl.int32)
        counted = slot < tl.where(token < teacher_tokens, kept, 0) * both
    if HAD:
        upstream = _upstream(of_had, of_total, HAD_WEIGHT, (UPSTREAM & 4) != 0, (UPSTREAM & 2) != 0, DTYPE)
        own = tl.exp(shifted - log_sum)
        other = tl.exp(taught)
        slope = tl.where(own > other, own, tl.where(own < other, -own, 0.0))
        slope = tl.where(counted, slope, 0.0) * upstream
        added += slope
        weight_0 -= tl.sum(slope, 0)
    if SL:
        upstream = _upstream(of_sl, of_total, SL_WEIGHT, (UPSTREAM & 8) != 0, (UPSTREAM & 2) != 0, DTYPE)
        slope = _teacher_at(taught, normalizers, teacher_row, NORMALIZERS, SL_NORMALIZER, SL_INV)
        slope = tl.where(counted, slope, 0.0) * upstream
        added -= slope * SL_INV
        if SL_INDEX == 0:
            weight_0 += tl.sum(slope, 0)
        elif SL_INDEX == 1:
            weight_1 += tl.sum(slope, 0)
        else:
            weight_2 += tl.sum(slope, 0)
    if SD:
        upstream = _upstream(of_sd, of_total, SD_WEIGHT, (UPSTREAM & 16) != 0, (UPSTREAM & 2) != 0, DTYPE)
        sd_sum = tl.load(log_sums + row * N + SD_INDEX)
        probability = of_probabilities + (sequence * kept + slot) * student_tokens + token
        slope = tl.load(probability, mask=there, other=0.0)
        slope = tl.where(there, slope * tl.exp(shifted * SD_INV - sd_sum), 0.0) * upstream
        added += slope * SD_INV
        if SD_INDEX == 0:
            weight_0 -= tl.sum(slope, 0)
        elif SD_INDEX == 1:
            weight_1 -= tl.sum(slope, 0)
        else:
            weight_2 -= tl.sum(slope, 0)
    weight_0 *= INV_0 * tl.exp(-log_sum)
    if N > 1:
        weight_1 *= INV_1 * tl.exp(-tl.load(log_sums + row * N + 1))
    if N > 2:
        weight_2 *= INV_2 * tl.exp(-tl.load(log_sums + row * N + 2))
    low = tl.program_id(1) * columns_a_part
    high = tl.minimum(vocabulary, low + columns_a_part)
    into = result + row * vocabulary
    at_columns = added + softmax_mixture(shifted, weight_0, weight_1, weight_2, N, SQUARE, INV_0, INV_1, INV_2)
    write_mixture(
        base, into, low, high, maximum, weight_0, weight_1, weight_2, label, -of_label,
        N, SQUARE, INV_0, INV_1, INV_2, BLOCK, DTYPE,
    )  # fmt: skip
    tl.debug_barrier()  # the columns' own values come after those of the loop
    tl.store(into + column, at_columns.to(result.dtype.element_ty), mask=(column >= low) & (column < high))
