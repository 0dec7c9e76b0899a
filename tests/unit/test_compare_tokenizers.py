"""Two tokenizers compared: habits, overlap, lengths, and warnings of what hurts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from crosskd.errors import UsageError
from crosskd.text.alignment import read_vocabulary
from crosskd.text.compare_tokenizers import Spread, compare_tokenizers
from crosskd.text.prompts import PromptBuilder
from crosskd.text.sides import Side
from crosskd.text.tasks import TASKS
from crosskd.text.tokenizer_habits import describe_habits, show_piece
from crosskd.text.tokenizer_warnings import find_trouble
from helpers_models import examples
from helpers_tokenizers import CHAT_TEMPLATE, byte_level_tokenizer, sentencepiece_tokenizer, unigram_tokenizer


def word_level(pre_tokenizer, words, normalizer=None):
    """A tokenizer that cuts as told; numbers of up to three digits are entries."""
    entries = ["<unk>", "</s>", *words, *map(str, range(1000)), *(f"{i:03d}" for i in range(100)), "00"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(entries))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>", model_max_length=4096
    )


def digits(pattern):
    return pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
    )


def habits(tokenizer):
    return describe_habits(tokenizer, read_vocabulary(tokenizer))


def side(name, tokenizer, max_length=None, style="plain"):
    return Side(name, PromptBuilder(tokenizer, TASKS["qa"], style=style), name == "student", max_length)


def compare(teacher, student, rows=None, teacher_limit=None, student_limit=None):
    return compare_tokenizers(
        side("teacher", teacher, teacher_limit),
        side("student", student, student_limit),
        examples(10) if rows is None else rows,
    )


def codes(comparison, outputs=None):
    return [finding.code for finding in find_trouble(comparison, outputs)]


@pytest.mark.parametrize(
    ("pattern", "habit", "number"),
    [
        (r"\d", "one by one", "8|9|0|7|6|5|4"),
        (r"\d{1,3}", "groups of three from the left", "890|765|4"),
        (r"\d{1,3}(?=(\d{3})*\b)", "groups of three from the right", "8|907|654"),
        (r"\d{1,2}", "learned pieces", "89|07|65|4"),
    ],
)
def test_digit_habits(pattern, habit, number):
    tokenizer = word_level(digits(pattern), ["in", "of", "07", "09", "08", "05", "01", "02", "03", "04", "06"])
    found = habits(tokenizer)
    assert (found.digits, found.number) == (habit, number)


def test_habits_of_spaces_lines_and_special_tokens():
    byte_level, sentencepiece, unigram = map(
        habits, (byte_level_tokenizer(CHAT_TEMPLATE), sentencepiece_tokenizer(), unigram_tokenizer())
    )
    assert byte_level.spaces == sentencepiece.spaces == "part of the word after it"
    assert (byte_level.prefix_space, sentencepiece.prefix_space) == (False, True)
    assert (byte_level.before, sentencepiece.before, unigram.after) == ("", "<s>", "</s>")
    assert byte_level.keeps_line_breaks
    assert not unigram.keeps_line_breaks
    assert unigram.line_breaks == "become spaces"
    assert (byte_level.chat_template, sentencepiece.chat_template) == (True, False)
    assert byte_level.keeps_case
    assert byte_level.unknown == "spelled in bytes or parts"


def test_an_uncased_tokenizer_is_seen_through():
    fold = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
    found = habits(word_level(pre_tokenizers.Whitespace(), ["the", "end", "ete", "of"], fold))
    assert not found.keeps_case
    assert not found.keeps_accents
    assert found.spaces == "dropped"
    assert found.space_runs == "become one"
    assert found.unknown == "becomes <unk>"


def test_pieces_show_white_space_and_bytes():
    assert show_piece(" a\n\t\udce4") == "·a⏎⇥<E4>"


def test_spread():
    spread = Spread.of([1, 2, 3, 4, 5])
    assert (spread.mean, spread.least, spread.most, spread.quantiles["50"]) == (3, 1, 5, 3)


def test_a_tokenizer_equals_itself():
    comparison = compare(byte_level_tokenizer(), byte_level_tokenizer())
    overlap = comparison.overlap
    assert overlap.identical
    assert overlap.teacher_share == overlap.student_share == overlap.teacher_share_in_use == 1
    assert comparison.answer_ratio.mean == 1
    assert comparison.unequal_answers == 0
    assert comparison.example.teacher == comparison.example.student
    assert codes(comparison) == ["identical_tokenizers"]


def test_lengths_and_overlap_are_counted_by_hand():
    teacher = word_level(pre_tokenizers.WhitespaceSplit(), ["ada", "lives", "where?", "here", "Answer:", "Question:"])
    student = word_level(pre_tokenizers.Split(Regex(r"\S\S?"), "isolated"), ["ad", "a", "li", "ve", "s", "he", "re"])
    rows = [{"id": "1", "title": "", "context": "ada lives", "question": "ada", "answers": ["ada"]}]
    comparison = compare(teacher, student, rows)
    assert comparison.teacher.tokens_per_word == 1
    assert comparison.teacher.characters_per_token == pytest.approx(15 / 4)  # "ada lives", "ada", "ada"
    assert comparison.teacher.answer_tokens.mean == 1
    assert comparison.example.teacher == ["ada"]
    assert comparison.example.student[-2:] == ["ad", "a"]
    teacher_texts = set(read_vocabulary(teacher).pieces)
    student_texts = set(read_vocabulary(student).pieces)
    assert comparison.overlap.entries == len(teacher_texts & student_texts)
    assert comparison.overlap.teacher_share_in_use == 0
    assert not comparison.overlap.identical
    assert "low_overlap" in codes(comparison)
    assert "answer_ratio" in codes(comparison)


def test_data_and_limits_raise_warnings():
    teacher, student = sentencepiece_tokenizer(CHAT_TEMPLATE), byte_level_tokenizer()
    longest = int(compare(teacher, student).student.sequence_tokens.most)
    comparison = compare(teacher, student, student_limit=longest - 1)
    assert comparison.student.shortened > 0
    assert comparison.student.sequence_tokens.most < longest
    assert {"student_context_cut", "one_chat_template"} <= {*codes(comparison)}
    long_rows = [*examples(3), {**examples(1)[0], "answers": ["no word of it. " * 100]}]
    assert "answers_over_generation_limit" in codes(compare(teacher, student, long_rows))
    cut = compare(teacher, student, long_rows, teacher_limit=400)
    assert (cut.teacher.misfits, cut.student.misfits) == (1, 0)
    assert "teacher_too_long" in codes(cut)
    assert codes(cut, {"teacher": 10, "student": 10**6})[0] == "teacher_embeddings_missing"


def test_digits_case_line_breaks_padding_and_unknown_tokens_raise_warnings():
    folding = word_level(digits(r"\d"), ["ada"], normalizers.Lowercase())
    found = codes(compare(byte_level_tokenizer(), folding))
    assert {"student_folds_case", "student_loses_line_breaks", "student_unknown_tokens", "pad_is_eos"} <= {*found}
    alone = compare(byte_level_tokenizer(), byte_level_tokenizer())
    other = replace(alone.student, habits=replace(alone.student.habits, digits="groups of three from the left"))
    assert "digits" in codes(replace(alone, student=other))
    assert "unequal_answers" in codes(replace(alone, unequal_answers=0.6))


def test_no_example_is_an_error():
    with pytest.raises(UsageError, match="at least one"):
        compare(byte_level_tokenizer(), byte_level_tokenizer(), [])
    with pytest.raises(UsageError, match="none that fits the student's 5 tokens"):
        compare(byte_level_tokenizer(), byte_level_tokenizer(), student_limit=5)
