"""Prompts: their text in both styles, their special tokens, truncation, and what they share."""

from __future__ import annotations

import pytest

from crosskd.errors import UsageError
from crosskd.text.prompts import PromptBuilder, token_ids
from crosskd.text.tasks import TASKS, Shot, Task
from helpers_tokenizers import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_DROPPING_SYSTEM,
    CHAT_TEMPLATE_WITHOUT_SYSTEM,
    FAILING_CHAT_TEMPLATE,
    TOKENIZERS,
    byte_level_tokenizer,
    sentencepiece_tokenizer,
    unigram_tokenizer,
)

TASK = Task(
    name="colours",
    system="Name the colour.",
    request_format="Context: {context}\nQuestion: {question}\nAnswer:",
    shots=(Shot("The sky is blue.", "blue", "Sky?"), Shot("Grass is green.", "green", "Grass?")),
)
EXAMPLE = {"id": "e7", "title": "", "context": "Snow is white.", "question": "Snow?", "answers": ["white"]}
REQUEST = "Context: Snow is white.\nQuestion: Snow?\nAnswer:"


def test_plain_text_with_and_without_shots():
    tokenizer = byte_level_tokenizer()
    assert PromptBuilder(tokenizer, TASK).build(EXAMPLE).text == REQUEST
    assert PromptBuilder(tokenizer, TASK, number_few_shot=2).build(EXAMPLE).text == (
        "Name the colour.\n\n"
        "Context: The sky is blue.\nQuestion: Sky?\nAnswer: blue\n\n"
        "Context: Grass is green.\nQuestion: Grass?\nAnswer: green\n\n" + REQUEST
    )


def test_chat_text_is_cut_after_the_last_cue():
    builder = PromptBuilder(byte_level_tokenizer(CHAT_TEMPLATE), TASK, number_few_shot=1)
    assert builder.build(EXAMPLE).text == (
        "<s><|turn|>system\nName the colour.</s>\n"
        "<|turn|>user\nContext: The sky is blue.\nQuestion: Sky?\nAnswer:</s>\n"
        "<|turn|>assistant\nblue</s>\n<|turn|>user\n" + REQUEST
    )


@pytest.mark.parametrize("template", [CHAT_TEMPLATE_WITHOUT_SYSTEM, CHAT_TEMPLATE_DROPPING_SYSTEM])
@pytest.mark.parametrize("shots", [0, 2])
def test_system_text_moves_into_the_first_user_turn_where_there_is_no_system_role(template, shots):
    builder = PromptBuilder(byte_level_tokenizer(template), TASK, number_few_shot=shots)
    text = builder.build(EXAMPLE).text
    assert text.removeprefix("<s>").startswith("<|turn|>user\nName the colour.\n\nContext: ")
    assert text.count("Name the colour.") == 1
    assert text.count("<|turn|>user") == 1 + shots
    assert text.endswith("<|turn|>user\n" + REQUEST if shots else "Name the colour.\n\n" + REQUEST)


def test_style_follows_the_tokenizer_unless_told():
    chat = byte_level_tokenizer(CHAT_TEMPLATE)
    assert PromptBuilder(chat, TASK, style="plain").build(EXAMPLE).text == REQUEST
    assert PromptBuilder(chat, TASK, style="chat").build(EXAMPLE) == PromptBuilder(chat, TASK).build(EXAMPLE)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE, CHAT_TEMPLATE_WITHOUT_SYSTEM, CHAT_TEMPLATE_DROPPING_SYSTEM])
def test_special_tokens_stand_first_and_once_and_nothing_follows_the_cue(kind, template):
    tokenizer = TOKENIZERS[kind](template)
    ids = PromptBuilder(tokenizer, TASK, number_few_shot=2).build(EXAMPLE).ids
    writes_bos = template in (CHAT_TEMPLATE, CHAT_TEMPLATE_WITHOUT_SYSTEM)
    expected = 1 if writes_bos or kind == "sentencepiece" else 0
    assert ids.count(tokenizer.bos_token_id) == expected
    assert (ids[0] == tokenizer.bos_token_id) == bool(expected)
    assert tokenizer.decode(ids).endswith("Answer:")


def test_encoder_prompts_may_end_with_the_end_of_sequence_token():
    tokenizer = unigram_tokenizer()
    plain = PromptBuilder(tokenizer, TASK)
    encoder = PromptBuilder(tokenizer, TASK, append_eos=True)
    assert encoder.build(EXAMPLE).ids == [*plain.build(EXAMPLE).ids, tokenizer.eos_token_id]
    assert encoder.build(EXAMPLE).ids == tokenizer(REQUEST)["input_ids"]
    limit = len(plain.build(EXAMPLE).ids)
    assert len(encoder.build(EXAMPLE, max_tokens=limit).ids) <= limit


def test_braces_and_placeholders_in_the_data_stay_as_they_are():
    example = {**EXAMPLE, "context": "{question} {{x}} {0}"}
    assert "Context: {question} {{x}} {0}\n" in PromptBuilder(byte_level_tokenizer(), TASK).build(example).text


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE, CHAT_TEMPLATE_WITHOUT_SYSTEM])
def test_shared_prefix_begins_every_prompt(kind, template):
    builder = PromptBuilder(TOKENIZERS[kind](template), TASKS["qa"], number_few_shot=2)
    prefix = builder.shared_prefix_ids
    examples = [
        {"title": title, "context": context, "question": "Q?"}
        for title in ("", "T", "\n t")
        for context in ("a", "7", "\n\nx", "🙂", "'s", "")
    ]
    prompts = [builder.build(example).ids for example in examples]
    assert all(ids[: len(prefix)] == prefix for ids in prompts)
    longest = next(
        (n for n, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1), min(map(len, prompts))
    )
    assert len(prefix) == longest
    assert len(prefix) > 0.9 * (
        len(prompts[0]) - len(token_ids(builder.tokenizer, "Context: a\nQuestion: Q?\nAnswer:"))
    )


def test_prompts_without_shots_may_share_nothing():
    assert PromptBuilder(byte_level_tokenizer(), TASKS["qa"]).shared_prefix_ids == []
    bos = sentencepiece_tokenizer().bos_token_id
    assert PromptBuilder(sentencepiece_tokenizer(), TASKS["qa"]).shared_prefix_ids[:1] == [bos]


def test_only_the_front_of_the_context_is_dropped():
    builder = PromptBuilder(byte_level_tokenizer(), TASK, number_few_shot=1)
    example = {**EXAMPLE, "context": "one two three four five six"}
    whole = builder.build(example)
    cut = builder.build(example, max_tokens=len(whole.ids) - 4)
    assert whole.context_tokens_dropped == 0
    assert 4 <= cut.context_tokens_dropped <= 6
    before, kept = cut.text.split("Context: ")[:-1], cut.text.split("Context: ")[-1].split("\n")[0]
    assert before == whole.text.split("Context: ")[:-1]
    assert example["context"].endswith(kept)
    assert 0 < len(kept) < len(example["context"])
    assert cut.text.endswith("\nQuestion: Snow?\nAnswer:")


def test_a_tokenizer_that_does_not_tell_where_its_tokens_begin_is_cut_at_words(monkeypatch):
    tokenizer = byte_level_tokenizer()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    builder = PromptBuilder(tokenizer, TASK)
    example = {**EXAMPLE, "context": "one two three four five six"}
    whole = builder.build(example)
    for limit in range(len(whole.ids) - 12, len(whole.ids)):
        cut = builder.build(example, max_tokens=limit)
        assert len(cut.ids) <= limit
        assert cut.text.split("\n")[0].removeprefix("Context: ") in {"two three four five six", "three four five six",
            "four five six", "five six", "six"}  # fmt: skip


def test_what_never_fits_is_refused_with_both_numbers():
    builder = PromptBuilder(byte_level_tokenizer(), TASK, number_few_shot=2)
    least = len(builder.build({**EXAMPLE, "context": ""}).ids)
    assert builder.build(EXAMPLE, max_tokens=least).context_tokens_dropped > 0
    with pytest.raises(UsageError, match=f"example 'e7' needs {least} tokens .*at most {least - 1}"):
        builder.build(EXAMPLE, max_tokens=least - 1)


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        (FAILING_CHAT_TEMPLATE, {}, "chat template of .* fails: no conversation pleases me"),
        ("{{ messages[0]['text'] + 1 }}", {}, "chat template of .* fails"),
        ("{% for %}", {}, "chat template of .* fails"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", {}, "loses 'Answer:'"),
        (None, {"style": "chat"}, "no chat template"),
        (None, {"style": "chatty"}, r"unknown prompt style 'chatty': did you mean 'chat'\?"),
        (None, {"number_few_shot": 3}, "number_few_shot: got 3; expected 0 to 2"),
        (None, {"number_few_shot": -1}, "number_few_shot: got -1"),
    ],
)
def test_mistakes_are_told_before_any_prompt_is_built(template, options, message):
    with pytest.raises(UsageError, match=message):
        PromptBuilder(byte_level_tokenizer(template), TASK, **options)


def test_encoder_prompts_need_an_end_of_sequence_token():
    tokenizer = byte_level_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="no end-of-sequence token"):
        PromptBuilder(tokenizer, TASK, append_eos=True)


def test_templates_that_write_the_date_give_the_same_prompt_every_day():
    template = "{% if date_string is not defined %}{% set date_string = strftime_now('%s') %}{% endif %}" + (
        "{{ date_string }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    assert PromptBuilder(byte_level_tokenizer(template), TASK).build(EXAMPLE).text.startswith("26 Jul 2024")
