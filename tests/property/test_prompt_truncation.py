"""Truncation of prompts, for any text and limit."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crosskd.errors import UsageError
from crosskd.text.answer_spans import tokenize_example
from crosskd.text.prompts import PromptBuilder
from crosskd.text.tasks import Task
from helpers_tokenizers import CHAT_TEMPLATE_WITHOUT_SYSTEM, TOKENIZERS

TASK = Task("t", "Say it.", "Context: {context}\nQuestion: {question}\nAnswer:")
QUESTION = "where does it rise?"
PIECES = st.sampled_from(
    ["The river ", "rises", " in the hills", "\n\n", "  ", "🙂", "ü", "中文", "Answer:", "7", "{x}"]
)
CONTEXTS = st.lists(PIECES, min_size=1, max_size=30).map("".join) | st.text(max_size=60)


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE_WITHOUT_SYSTEM])
@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60)
@given(context=CONTEXTS, share=st.floats(0, 1))
def test_a_prompt_that_is_too_long_loses_the_front_of_its_context_only(kind, template, context, share):
    builder = PromptBuilder(TOKENIZERS[kind](template), TASK)
    whole = builder.build({"context": context, "question": QUESTION})
    bare = builder.build({"context": "", "question": QUESTION})
    limit = len(bare.ids) + round(share * (len(whole.ids) - len(bare.ids)))
    cut = builder.build({"context": context, "question": QUESTION}, max_tokens=limit)
    assert len(cut.ids) <= limit or cut == whole
    if len(whole.ids) <= limit:
        assert cut == whole
        return
    assert cut.context_tokens_dropped >= 1
    suffixes = [context[start:] for start in range(len(context) + 1)]
    texts = {builder.build({"context": kept, "question": QUESTION}).text for kept in suffixes}
    assert cut.text in texts
    assert cut.ids == builder.encode(cut.text)
    # Not much more is dropped than must be: one character's bytes, and white space that the cut laid bare.
    if template is None and "Context:" in cut.text and not any(character.isspace() for character in context):
        assert len(cut.ids) >= limit - 4 - len(whole.ids) // 10


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=40)
@given(context=CONTEXTS, answer=st.text(min_size=1, max_size=20), limit=st.integers(1, 150))
def test_prompt_and_answer_fit_or_are_refused(kind, context, answer, limit):
    builder = PromptBuilder(TOKENIZERS[kind](), TASK)
    example = {"id": "e", "context": context, "question": QUESTION}
    assume(answer.strip() and builder.encode(answer.strip()))
    bare = tokenize_example(builder, {**example, "context": ""}, answer, append_eos=True, max_length=None)
    if limit < len(bare.prompt_ids) + len(bare.answer_ids):
        with pytest.raises(UsageError, match="example 'e' needs"):
            tokenize_example(builder, example, answer, append_eos=True, max_length=limit)
        return
    found = tokenize_example(builder, example, answer, append_eos=True, max_length=limit)
    assert len(found.prompt_ids) + len(found.answer_ids) <= limit
    assert found.answer_ids[-1] == builder.tokenizer.eos_token_id
    assert builder.tokenizer.decode(found.prompt_ids).endswith("Answer:")
