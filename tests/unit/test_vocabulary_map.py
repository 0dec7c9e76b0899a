"""The map of one vocabulary to another: its rules, its exactness, and its place on disk."""

import logging
import random

import pytest
import torch
from rapidfuzz.distance import Levenshtein
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from crosskd.errors import UsageError
from crosskd.text import vocabulary_map as module
from crosskd.text.alignment import Vocabulary
from crosskd.text.vocabulary_map import load_vocabulary_map, vocabulary_map


def brute_force(student, teacher, cutoff):
    """Every pair, by the rule of the docstring."""
    result = []
    for text in teacher:
        if text in student:
            result.append(student.index(text))
            continue
        candidates = []
        for token, other in enumerate(student):
            distance = Levenshtein.distance(text, other)
            if distance < cutoff * max(len(text), len(other)):
                candidates.append((distance, -len(other), student.index(other), token))
        result.append(min(candidates)[2] if candidates else -1)
    return result


@pytest.mark.parametrize("cutoff", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_equals_brute_force(cutoff, seed, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BYTES", 64)  # many blocks
    generator = random.Random(seed)
    student, teacher = (
        ["".join(generator.choices("ab cé", k=generator.randint(1, 9))) for _ in range(size)] for size in (60, 90)
    )
    result = vocabulary_map(Vocabulary(tuple(student)), Vocabulary(tuple(teacher)), cutoff=cutoff, workers=1)
    assert result.tolist() == brute_force(student, teacher, cutoff)


def test_pieces_longer_than_a_byte_counts():
    student, teacher = ["x" * 300, "x" * 299 + "y" * 40, "ab"], ["x" * 299, "y" + "x" * 600]
    result = vocabulary_map(Vocabulary(tuple(student)), Vocabulary(tuple(teacher)), workers=1)
    assert result.tolist() == brute_force(student, teacher, 0.5) == [0, -1]


def test_special_tokens_map_by_role_and_otherwise_only_by_their_text():
    student = Vocabulary(("<s>", "</s>", "<tool>", "<end>"), added=frozenset({0, 1, 2}), roles={"bos": 0, "eos": 1})
    teacher = Vocabulary(
        ("<|end|>", "<tool>", "<tools>", "<bos>", "</s>", "<ends>"),
        added=frozenset({0, 1, 2, 3, 4}),
        roles={"eos": 0, "pad": 0, "bos": 3},
    )
    assert vocabulary_map(student, teacher, workers=1).tolist() == [1, 2, -1, 0, 1, 3]


def test_a_token_in_two_roles_counts_as_the_first():
    student = Vocabulary(("e", "p"), added=frozenset({0, 1}), roles={"eos": 0, "pad": 1})
    teacher = Vocabulary(("x",), added=frozenset({0}), roles={"eos": 0, "pad": 0})
    assert vocabulary_map(student, teacher).tolist() == [0]


def test_an_ordinary_entry_is_preferred_to_one_that_spells_the_byte():
    student = Vocabulary(("\n", "a", "\udce2", "a", "\n"), fallback=frozenset({0, 1, 2}))
    teacher = Vocabulary(("a", "\n", "\udce2", "\udce3", ""))
    assert vocabulary_map(student, teacher, workers=1).tolist() == [3, 4, 2, -1, -1]


def test_an_ordinary_entry_is_preferred_to_an_added_one():
    student = Vocabulary(("x", "x"), added=frozenset({0}))
    assert vocabulary_map(student, Vocabulary(("x",)), workers=1).tolist() == [1]


def test_parts_of_characters_have_no_nearest_entry():
    student, teacher = Vocabulary((" \udce2\udc82", "abc")), Vocabulary((" \udce2\udc83", "ab\udce2"))
    assert vocabulary_map(student, teacher, workers=1).tolist() == [-1, -1]


def test_the_cutoff_drops_strangers_unless_told_otherwise():
    student, teacher = Vocabulary((" open", "zz")), Vocabulary((" Copenhagen", "中"))
    assert vocabulary_map(student, teacher).tolist() == [-1, -1]
    assert vocabulary_map(student, teacher, cutoff=1.0).tolist() == [0, -1]
    with pytest.raises(UsageError, match="cutoff: got 0; expected"):
        vocabulary_map(student, teacher, cutoff=0)


def test_empty_vocabularies():
    assert vocabulary_map(Vocabulary(()), Vocabulary(("a",))).tolist() == [-1]
    assert vocabulary_map(Vocabulary(("a",)), Vocabulary(())).shape == (0,)


def tokenizer(*words):
    vocabulary = {word: token for token, word in enumerate((*words, "<unk>"))}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")


@pytest.fixture
def calls(monkeypatch):
    made = []

    def counted(*arguments, **settings):
        made.append(arguments)
        return vocabulary_map(*arguments, **settings)

    monkeypatch.setattr(module, "vocabulary_map", counted)
    return made


def test_computed_once_for_a_pair_and_anew_for_another(tmp_path, monkeypatch, calls):
    monkeypatch.setenv("CROSSKD_CACHE", str(tmp_path))
    student, teacher = tokenizer("sister", "sea"), tokenizer("sea", "sisters", "seas")
    first = load_vocabulary_map(student, teacher, workers=1)
    assert first.tolist() == [1, 0, 1, 2]
    assert torch.equal(load_vocabulary_map(student, teacher), first)
    assert len(calls) == 1
    (file,) = (tmp_path / "vocabulary_maps").iterdir()
    load_vocabulary_map(student, teacher, cutoff=1.0)
    load_vocabulary_map(tokenizer("sisters", "sea"), teacher)
    load_vocabulary_map(teacher, student)
    assert len(calls) == 4
    file.write_bytes(b"not a tensor")
    assert torch.equal(load_vocabulary_map(student, teacher), first)
    assert torch.equal(load_vocabulary_map(student, teacher), first)
    assert len(calls) == 5


def test_the_cache_directory_of_crosskd_holds_the_maps(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of all programs"))
    monkeypatch.setenv("CROSSKD_CACHE", str(tmp_path / "of crosskd"))
    load_vocabulary_map(tokenizer("sea"), tokenizer("sea"), workers=1)
    assert len(list((tmp_path / "of crosskd" / "vocabulary_maps").iterdir())) == 1
    assert not (tmp_path / "of all programs").exists()


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        result = load_vocabulary_map(tokenizer("a"), tokenizer("a"), folder=tmp_path / "file" / "below")
    assert result.tolist() == [0, 1]
    assert "could not be kept" in caplog.text
