"""Turns of a conversation through a tokenizer's own chat template."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from crosskd.errors import UsageError
from crosskd.text.tasks import Shot, Task

# Templates that write today's date would give other prompts tomorrow, and caches would not match. Some take the date as
# a word (Llama 3), some read the clock in any case (SmolLM3).
_DATE = datetime(2024, 7, 26)
_CLOCK = re.compile(r"""\bstrftime_now\(\s*(?P<quote>['"])(?P<format>.*?)(?P=quote)\s*\)""")
_FAILURES = (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError)

Turn = dict[str, str]


def chat_renderer(tokenizer: PreTrainedTokenizerBase, task: Task, shots: Sequence[Shot]) -> Callable[[str], str]:
    """A function that puts a request into a conversation and cuts the text right after the request's answer cue.

    System text, shots (user and assistant turns) and request (the last user turn) go through the tokenizer's chat
    template. Where the template has no system role (it raises, or leaves the text out), the system text stands at the
    beginning of the first user turn. The answer thus continues the last user turn, as after plain text.

    Args:
        tokenizer: A tokenizer with a chat template.
        task: Gives the system text and the answer cue.
        shots: Examples that come before the request.

    Returns:
        Request to text of the prompt. It raises `UsageError` where the template loses the answer cue.

    Raises:
        UsageError: The template fails on this conversation with and without a system turn.
    """
    turns: list[Turn] = []
    for shot in shots:
        turns.append({"role": "user", "content": task.request(vars(shot))})
        turns.append({"role": "assistant", "content": shot.answer})
    with_role = _has_system_role(tokenizer, task, turns)

    def render(request: str) -> str:
        text = _apply(tokenizer, _conversation(task.system, [*turns, {"role": "user", "content": request}], with_role))
        end = text.rfind(task.answer_cue)
        if end < 0:
            raise UsageError(f"chat template of {_name(tokenizer)} loses {task.answer_cue!r}", fix="use plain prompts")
        return text[: end + len(task.answer_cue)]

    render(task.answer_cue)  # if the template fails, let it fail before any work is done
    return render


def _has_system_role(tokenizer: PreTrainedTokenizerBase, task: Task, turns: Sequence[Turn]) -> bool:
    if not task.system:
        return False
    conversation = _conversation(task.system, [*turns, {"role": "user", "content": task.answer_cue}], True)
    try:
        return task.system in _apply(tokenizer, conversation)
    except UsageError:
        return False


def _conversation(system: str, turns: Sequence[Turn], with_role: bool) -> list[Turn]:
    if not system:
        return list(turns)
    if with_role:
        return [{"role": "system", "content": system}, *turns]
    first = {"role": "user", "content": f"{system}\n\n{turns[0]['content']}"}
    return [first, *turns[1:]]


def _apply(tokenizer: PreTrainedTokenizerBase, conversation: list[Turn]) -> str:
    try:
        template = _CLOCK.sub(lambda found: repr(_DATE.strftime(found["format"])), tokenizer.get_chat_template())
        return str(
            tokenizer.apply_chat_template(
                conversation, chat_template=template, tokenize=False, date_string=_DATE.strftime("%d %b %Y")
            )
        )
    except _FAILURES as error:
        raise UsageError(
            f"chat template of {_name(tokenizer)} fails: {error}", fix="fix the template, or use plain prompts"
        ) from error


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
