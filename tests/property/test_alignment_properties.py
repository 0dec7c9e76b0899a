"""What must hold for alignments of any two token sequences, and for maps of any two vocabularies."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from crosskd.text.alignment import Vocabulary, align_tokens
from crosskd.text.vocabulary_map import vocabulary_map

pieces = st.lists(st.text("ab €\udce2", min_size=1, max_size=5), max_size=8)


def total(left, right, alignment):
    matched = [Levenshtein.normalized_distance(left[i], right[j]) for i, j in enumerate(alignment) if j >= 0]
    return sum(matched) + (len(left) + len(right) - 2 * len(matched)) / 2


@settings(max_examples=100)
@given(pieces, pieces)
def test_one_to_one_in_order_and_never_between_strangers(left, right):
    alignment = align_tokens(left, right)
    used = [index for index in alignment if index >= 0]
    assert len(alignment) == len(left)
    assert used == sorted(set(used))
    assert all(set(left[i]) & set(right[j]) for i, j in enumerate(alignment) if j >= 0)


@settings(max_examples=100)
@given(pieces, pieces)
def test_swapping_or_reversing_both_sides_costs_the_same(left, right):
    cost = total(left, right, align_tokens(left, right))
    assert abs(total(right, left, align_tokens(right, left)) - cost) < 1e-5
    assert abs(total(left[::-1], right[::-1], align_tokens(left[::-1], right[::-1])) - cost) < 1e-5


@settings(max_examples=100)
@given(st.lists(st.text("abc ", min_size=1, max_size=4), max_size=12, unique=True), st.randoms())
def test_a_shuffled_vocabulary_maps_back_to_itself(texts, generator):
    shuffled = list(texts)
    generator.shuffle(shuffled)
    result = vocabulary_map(Vocabulary(tuple(texts)), Vocabulary(tuple(shuffled)), workers=1)
    assert result.dtype == torch.int64
    assert [texts[token] for token in result.tolist()] == shuffled
