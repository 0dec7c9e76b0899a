"""Answer spans: the answer's tokens follow the prompt's and never change them."""

from __future__ import annotations

import pytest

from crosskd.errors import UsageError
from crosskd.text.answer_spans import tokenize_example
from crosskd.text.prompts import PromptBuilder
from crosskd.text.tasks import TASKS
from helpers_tokenizers import CHAT_TEMPLATE, TOKENIZERS, byte_level_tokenizer, unigram_tokenizer

EXAMPLE = {"id": "e7", "title": "The river", "context": "The river rises in the hills. " * 12, "question": "where?"}
ANSWER = "in the hills , Zürich"


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE])
def test_prompt_and_answer_together_are_the_tokens_of_the_whole_text(kind, template):
    tokenizer = TOKENIZERS[kind](template)
    builder = PromptBuilder(tokenizer, TASKS["qa"], number_few_shot=1)
    prompt = builder.build(EXAMPLE)
    found = tokenize_example(builder, EXAMPLE, ANSWER, append_eos=False, max_length=None)
    assert found.prompt_ids == prompt.ids
    assert found.prompt_ids + found.answer_ids == builder.encode(f"{prompt.text} {ANSWER}")
    expected = ANSWER if kind != "unigram" else ANSWER.replace("Zürich", "<unk>rich")
    assert tokenizer.decode(found.answer_ids).strip() == expected
    assert found.context_tokens_dropped == 0


def test_end_of_sequence_is_the_last_token_where_asked_for():
    tokenizer = byte_level_tokenizer()
    builder = PromptBuilder(tokenizer, TASKS["qa"])
    without = tokenize_example(builder, EXAMPLE, ANSWER, append_eos=False, max_length=None)
    with_end = tokenize_example(builder, EXAMPLE, f" {ANSWER}\n", append_eos=True, max_length=None)
    assert with_end.answer_ids == [*without.answer_ids, tokenizer.eos_token_id]
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="no end-of-sequence token"):
        tokenize_example(builder, EXAMPLE, ANSWER, append_eos=True, max_length=None)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_answer_that_would_change_the_prompt_is_tokenized_by_itself(kind, monkeypatch):
    builder = PromptBuilder(TOKENIZERS[kind](), TASKS["qa"])
    usual = tokenize_example(builder, EXAMPLE, ANSWER, append_eos=False, max_length=None)
    encode = builder.encode

    def merging(text):  # as if the cue and the answer shared a token
        ids = encode(text)
        return ids if text.endswith("Answer:") else [*ids[:3], 0, *ids[5:]]

    monkeypatch.setattr(builder, "encode", merging)
    assert tokenize_example(builder, EXAMPLE, ANSWER, append_eos=False, max_length=None) == usual


def test_the_answer_of_an_encoder_decoder_model_is_a_text_of_its_own():
    tokenizer = unigram_tokenizer()
    builder = PromptBuilder(tokenizer, TASKS["qa"], append_eos=True)
    found = tokenize_example(builder, EXAMPLE, "in the hills", append_eos=True, max_length=None)
    assert found.prompt_ids[-1] == tokenizer.eos_token_id
    assert found.answer_ids == tokenizer("in the hills")["input_ids"]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("fewer", [1, 7, 40])
def test_prompt_and_answer_fit_and_the_answer_stays_whole(kind, fewer):
    builder = PromptBuilder(TOKENIZERS[kind](), TASKS["qa"])
    whole = tokenize_example(builder, EXAMPLE, ANSWER, append_eos=True, max_length=None)
    limit = len(whole.prompt_ids) + len(whole.answer_ids) - fewer
    cut = tokenize_example(builder, EXAMPLE, ANSWER, append_eos=True, max_length=limit)
    assert len(cut.prompt_ids) + len(cut.answer_ids) <= limit
    assert cut.answer_ids == whole.answer_ids
    assert cut.context_tokens_dropped >= fewer - 1  # the first token may bring its space along
    assert cut == tokenize_example(builder, EXAMPLE, ANSWER, append_eos=True, max_length=limit)


def test_what_never_fits_is_refused_with_the_example_and_both_numbers():
    builder = PromptBuilder(byte_level_tokenizer(), TASKS["qa"])
    bare = tokenize_example(builder, {**EXAMPLE, "context": ""}, ANSWER, append_eos=True, max_length=None)
    least = len(bare.prompt_ids) + len(bare.answer_ids)
    assert tokenize_example(builder, EXAMPLE, ANSWER, append_eos=True, max_length=least)
    for limit in (least - 1, 2):
        with pytest.raises(UsageError, match=f"example 'e7' needs {least} tokens .*at most {limit};"):
            tokenize_example(builder, EXAMPLE, ANSWER, append_eos=True, max_length=limit)


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_an_empty_answer_is_refused(answer):
    builder = PromptBuilder(byte_level_tokenizer(), TASKS["qa"])
    with pytest.raises(UsageError, match="answer of example 'e7'"):
        tokenize_example(builder, EXAMPLE, answer, append_eos=True, max_length=None)
