"""Answer spans: which tokens of a sequence are the prompt and which are the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crosskd.errors import UsageError
from crosskd.text.prompts import Prompt, PromptBuilder, PromptTooLong, token_ids


@dataclass(frozen=True)
class TokenizedExample:
    """A prompt with its answer, in tokens.

    Attributes:
        prompt_ids: Tokens of the prompt, special tokens at its beginning included.
        answer_ids: Tokens of the answer, then the end-of-sequence token where it was asked for.
        context_tokens_dropped: Tokens of the context that were left out at its front to fit.
    """

    prompt_ids: list[int]
    answer_ids: list[int]
    context_tokens_dropped: int


def tokenize_example(
    builder: PromptBuilder,
    example: Mapping[str, Any],
    answer: str,
    *,
    append_eos: bool,
    max_length: int | None,
) -> TokenizedExample:
    """Tokens of an example's prompt and of an answer that follows it after one space.

    The answer never changes the tokens of the prompt, so that the model meets the same prompt in training and when it
    answers by itself. Where ``prompt + " " + answer`` begins with the prompt's tokens the rest is the answer; else the
    answer is tokenized by itself.

    Args:
        builder: Prompts of the task in the tokenizer of this side.
        example: ``title``, ``context`` and ``question``; ``id`` is named in errors.
        answer: The answer; white space around it is dropped.
        append_eos: Whether the end-of-sequence token ends the answer.
        max_length: Longest prompt and answer together, in tokens; None has no limit. The front of the context is
            dropped where they are longer, never the question, the template or the answer. Prompts that end with the
            end-of-sequence token are for an encoder; the answer is then the decoder's, and does not count.

    Returns:
        Tokens of prompt and answer, none empty, and how many tokens of the context were dropped.

    Raises:
        UsageError: The answer is empty or has no tokens, the tokenizer has no end-of-sequence token, or prompt and
            answer do not fit even without context.
    """
    prompt = builder.build(example)
    answer_ids = _answer_ids(builder, example, prompt, answer, append_eos)
    room = None
    while max_length is not None and len(prompt.ids) > (fitting := max_length - _beside(builder, answer_ids)):
        room = fitting if room is None else min(fitting, room - 1)
        try:
            prompt = builder.build(example, max_tokens=room)
        except PromptTooLong as error:
            raise _too_long(example, error.tokens, _beside(builder, answer_ids), max_length) from error
        answer_ids = _answer_ids(builder, example, prompt, answer, append_eos)
    return TokenizedExample(prompt.ids, answer_ids, prompt.context_tokens_dropped)


def _beside(builder: PromptBuilder, answer_ids: list[int]) -> int:
    """Tokens of the answer that stand in one sequence with the prompt."""
    return 0 if builder.append_eos else len(answer_ids)


def _answer_ids(
    builder: PromptBuilder, example: Mapping[str, Any], prompt: Prompt, answer: str, append_eos: bool
) -> list[int]:
    text = answer.strip()
    ids = _continuation(builder, prompt, text) if text else []
    if not ids:
        raise UsageError(f"answer of example {example.get('id', '')!r}", got=answer, expected="text")
    if not append_eos:
        return ids
    end = builder.tokenizer.eos_token_id
    if end is None:
        raise UsageError("the tokenizer has no end-of-sequence token", fix="set its eos_token")
    return [*ids, int(end)]  # pyright: ignore[reportArgumentType]


def _continuation(builder: PromptBuilder, prompt: Prompt, answer: str) -> list[int]:
    alone = token_ids(builder.tokenizer, answer)
    if builder.append_eos:  # the answer of an encoder-decoder model is a text of its own
        return alone
    full = builder.encode(f"{prompt.text} {answer}")
    if full[: len(prompt.ids)] == prompt.ids:
        return full[len(prompt.ids) :]
    # SentencePiece puts the space before a text by itself; byte-level tokenizers need it written out.
    implied = token_ids(builder.tokenizer, f"x {answer}")[-len(alone) :] == alone
    return alone if implied else token_ids(builder.tokenizer, f" {answer}")


def _too_long(example: Mapping[str, Any], prompt: int, answer: int, limit: int) -> UsageError:
    return UsageError(
        f"example {example.get('id', '')!r} needs {prompt + answer} tokens without any context "
        f"({prompt} for the prompt, {answer} for the answer)",
        expected=f"at most {limit}",
        fix="allow a greater length or use fewer shots",
    )
