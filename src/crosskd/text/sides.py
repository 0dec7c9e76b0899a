"""How each side, student or teacher, reads an example: its prompt and the answer it is judged on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crosskd.errors import UsageError
from crosskd.text.answer_spans import TokenizedExample, tokenize_example
from crosskd.text.prompts import PromptBuilder


@dataclass(frozen=True)
class Side:
    """How one side, student or teacher, reads an example.

    Attributes:
        name: ``"student"`` or ``"teacher"``, for messages.
        builder: Its prompts.
        append_eos: Whether its answers end with the end-of-sequence token (the student's do).
        max_length: Longest prompt and answer, in tokens; None has no limit.
    """

    name: str
    builder: PromptBuilder
    append_eos: bool
    max_length: int | None

    def tokenize(self, example: Mapping[str, Any], answer: str) -> TokenizedExample:
        """Tokens of prompt and answer; the front of the context is dropped where they are too many."""
        return tokenize_example(self.builder, example, answer, append_eos=self.append_eos, max_length=self.max_length)


def supervised_answer(example: Mapping[str, Any], supervision: str) -> str:
    """The text that the student learns to write: the first label, or the teacher's answer.

    Raises:
        UsageError: It is missing or empty.
    """
    if supervision == "teacher":
        answer = example.get("teacher_answer")
        fix = "make the teacher answer first, or train with supervision='labels'"
    else:
        answer = next(iter(example["answers"]), None)
        fix = "prepare the data again: `crosskd prepare` drops examples without an answer"
    if not answer or not answer.strip():
        raise UsageError(f"answer of example {example['id']!r}", got="an empty answer", expected="text", fix=fix)
    return answer
