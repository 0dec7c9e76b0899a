"""Prompts: a task's texts and one example, as text and as tokens of one tokenizer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from crosskd.errors import UsageError, did_you_mean
from crosskd.text.chat import chat_renderer
from crosskd.text.tasks import FIELDS, Task

PromptStyle = Literal["auto", "plain", "chat"]

# What may follow the prefix that prompts share: characters of all the kinds that tokenizers treat differently.
_PROBES = ("a", "Zebra", "7", " x", "\n", "\n\n", "'s", '"', "(", "-", "é", "中", "🙂", "")


@dataclass(frozen=True)
class Prompt:
    """A prompt, ready for the model.

    Attributes:
        text: What the model reads, without the special tokens that the tokenizer adds by itself.
        ids: Its tokens, beginning with those special tokens.
        context_tokens_dropped: Tokens of the context that were left out at its front to fit.
    """

    text: str
    ids: list[int]
    context_tokens_dropped: int


class PromptTooLong(UsageError):
    """A prompt that is too long without any context.

    Attributes:
        tokens: Its length, in tokens.
    """

    def __init__(self, example: Mapping[str, Any], tokens: int, limit: int) -> None:
        self.tokens = tokens
        super().__init__(
            f"example {example.get('id', '')!r} needs {tokens} tokens for its prompt without any context",
            expected=f"at most {limit}",
            fix="allow a greater length or use fewer shots",
        )


class PromptBuilder:
    """Builds the prompts of a task for one tokenizer.

    Plain prompts are system text, shots and request, separated by blank lines; without shots the request stands alone,
    since that is what a student learns to answer. Chat prompts are system, user and assistant turns through the
    tokenizer's chat template, cut right after the answer cue of the last user turn. All end in the answer cue.

    Args:
        tokenizer: The model's tokenizer.
        task: The task.
        number_few_shot: How many of the task's shots stand before the request: the first ones.
        style: ``"plain"``, ``"chat"``, or ``"auto"``: chat where the tokenizer has a chat template.
        append_eos: Whether prompts end with the end-of-sequence token, as the encoders of T5 and its kin were trained.

    Raises:
        UsageError: The task has fewer shots; the style is unknown; chat is asked for and there is no chat template, or
            it fails; ``append_eos`` is set and the tokenizer has no such token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        *,
        number_few_shot: int = 0,
        style: PromptStyle = "auto",
        append_eos: bool = False,
    ) -> None:
        if not 0 <= number_few_shot <= len(task.shots):
            raise UsageError(
                "number_few_shot",
                got=number_few_shot,
                expected=f"0 to {len(task.shots)}, the shots of task {task.name}",
            )
        if append_eos and tokenizer.eos_token_id is None:
            raise UsageError("the tokenizer has no end-of-sequence token", fix="set its eos_token")
        self.tokenizer = tokenizer
        self.task = task
        self.append_eos = append_eos
        shots = task.shots[:number_few_shot]
        if _is_chat(tokenizer, style):
            self._render = chat_renderer(tokenizer, task, shots)
        else:
            before = [task.system] if shots and task.system else []
            before += [f"{task.request(vars(shot))} {shot.answer}" for shot in shots]
            self._render = lambda request: "\n\n".join([*before, request])
        self._leading = _leading_special_ids(tokenizer)

    def build(self, example: Mapping[str, Any], *, max_tokens: int | None = None) -> Prompt:
        """The prompt of one example.

        Args:
            example: ``title``, ``context`` and ``question``; ``id`` is named in errors.
            max_tokens: Longest prompt; None has no limit. A longer one loses the front of its context, at a boundary of
                the context's tokens; question, shots and template stay whole.

        Returns:
            Text, tokens, and how many tokens of the context were dropped.

        Raises:
            UsageError: The prompt does not fit even without context.
        """
        prompt = self._prompt(example, str(example.get("context") or ""), 0)
        if max_tokens is None or len(prompt.ids) <= max_tokens:
            return prompt
        return self._shortened(example, len(prompt.ids), max_tokens)

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt's text with the special tokens that the tokenizer puts first, each once."""
        begins_with_bos = bool(self.tokenizer.bos_token) and text.startswith(str(self.tokenizer.bos_token))
        return [*([] if begins_with_bos else self._leading), *token_ids(self.tokenizer, text)]

    @cached_property
    def shared_prefix_ids(self) -> list[int]:
        """Tokens with which every prompt of this builder begins: template, system text and shots.

        It is found by comparing prompts whose fields begin in many different ways, so it ends where their tokens first
        differ. Without shots it may be empty.
        """
        columns = zip(*(self.build(probe).ids for probe in _probe_examples()), strict=False)
        return [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]

    def _prompt(self, example: Mapping[str, Any], context: str, dropped: int) -> Prompt:
        text = self._render(self.task.request({**example, "context": context}))
        end = [int(self.tokenizer.eos_token_id)] if self.append_eos else []  # pyright: ignore[reportArgumentType]
        return Prompt(text, self.encode(text) + end, dropped)

    def _shortened(self, example: Mapping[str, Any], length: int, limit: int) -> Prompt:
        context = str(example.get("context") or "")
        tokens = len(token_ids(self.tokenizer, context))
        cuts = _cuts(self.tokenizer, context)
        skipped = 0
        while skipped < len(cuts):
            # Each cut drops tokens / len(cuts) tokens: one where the tokenizer tells where its tokens begin.
            skipped = min(len(cuts), skipped + max(1, (length - limit) * len(cuts) // max(1, tokens)))
            kept = context[cuts[skipped] :].lstrip() if skipped < len(cuts) else ""
            prompt = self._prompt(example, kept, max(1, tokens - len(token_ids(self.tokenizer, kept))))
            length = len(prompt.ids)
            if length <= limit:
                return prompt
        raise PromptTooLong(example, length, limit)


def _is_chat(tokenizer: PreTrainedTokenizerBase, style: str) -> bool:
    if style not in get_args(PromptStyle):
        raise UsageError(f"unknown prompt style {style!r}", fix=did_you_mean(style, get_args(PromptStyle)))
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if style == "chat" and not has_template:
        raise UsageError(
            "prompt style 'chat': the tokenizer has no chat template", fix="use the style 'plain' or 'auto'"
        )
    return style != "plain" and has_template


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens of ``text`` without special tokens."""
    # verbose=False: lengths are checked here, so the tokenizer need not warn about its own limit.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # pyright: ignore[reportArgumentType]


def _leading_special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Special tokens that the tokenizer puts before a text, such as the beginning-of-sequence token."""
    plain = token_ids(tokenizer, "a")
    marked = list(tokenizer("a", add_special_tokens=True)["input_ids"])  # pyright: ignore[reportArgumentType]
    for start in range(len(marked) - len(plain) + 1):
        if marked[start : start + len(plain)] == plain:
            return marked[:start]
    return []


def _cuts(tokenizer: PreTrainedTokenizerBase, context: str) -> list[int]:
    """Characters at which the context may be cut: where its tokens begin, or its words where that is not known."""
    if not tokenizer.is_fast:
        return [match.start() for match in re.finditer(r"\S+", context)]
    offsets = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    # Tokens of one character (byte fallback) begin at the same place; they are one cut, at the character.
    return sorted({start for start, _ in offsets})  # pyright: ignore[reportGeneralTypeIssues]


def _probe_examples() -> Iterator[dict[str, str]]:
    for value in _PROBES:
        for absent in (None, *FIELDS):
            yield {name: "" if name == absent else value + name for name in FIELDS}
