"""The model card that travels with a student."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crosskd.files import write_text

CARD = "README.md"
_SCORES = ("<!-- crosskd scores -->", "<!-- end of scores -->")
_NO_SCORES = "Not evaluated yet: `crosskd evaluate` writes its scores here."
_PROMPTS = {
    False: "It was trained with zero-shot prompts of its task, and writes one line.",
    True: "It was trained with prompts of its user's own making.",
}
_CITATION = """\
```bibtex
@inproceedings{cui2025multilevelot,
  title     = {Multi-Level Optimal Transport for Universal Cross-Tokenizer Knowledge Distillation on Language Models},
  author    = {Cui, Xiao and Zhu, Mo and Qin, Yulei and Xie, Liang and Zhou, Wengang and Li, Houqiang},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2025},
  note      = {arXiv 2412.14528}
}
```"""


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells.

    Attributes:
        base_model: The student before training.
        teacher: The teacher, or None.
        method: Distillation method.
        task: Name of the task.
        data: What the training data is called.
        examples: How many there were.
        settings: Hyperparameters worth telling, by name.
        versions: Of crosskd and what it runs on, by package.
        encoder_decoder: Whether the student is an encoder-decoder model.
        own_tokens: Whether the examples came as tokens, with prompts that crosskd does not know.
        adapter: Whether the folder holds a LoRA adapter instead of a whole model.
    """

    base_model: str
    teacher: str | None
    method: str
    task: str
    data: str
    examples: int
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    encoder_decoder: bool = False
    own_tokens: bool = False
    adapter: bool = False


def write_card(folder: Path, facts: CardFacts) -> Path:
    """Write ``README.md`` into a model's folder, in the form that model hubs read."""
    rows = {
        "Student": _code(facts.base_model),
        "Teacher": _code(facts.teacher) if facts.teacher else "none",
        "Method": _code(facts.method),
        "Task": _code(facts.task),
        "Training data": f"{_code(facts.data)}, {facts.examples} examples",
    }
    text = f"""\
---
library_name: {"peft" if facts.adapter else "transformers"}
pipeline_tag: text-generation
tags: [crosskd, knowledge-distillation]
---
# A student distilled with crosskd

{_table(("", ""), rows)}

Load it with `{_loader(facts)}.from_pretrained(...)`. {_PROMPTS[facts.own_tokens]}

## Scores
{_SCORES[0]}
{_NO_SCORES}
{_SCORES[1]}

## Settings
{_table(("setting", "value"), {f"`{name}`": _plain(str(value)) for name, value in facts.settings.items()})}

## Versions
{_table(("package", "version"), facts.versions)}

## Citation
{_CITATION}
"""
    return write_text(folder / CARD, text)


def _loader(facts: CardFacts) -> str:
    architecture = "Seq2SeqLM" if facts.encoder_decoder else "CausalLM"
    return f"AutoPeftModelFor{architecture}" if facts.adapter else f"AutoModelFor{architecture}"


def add_scores(folder: Path, name: str, scores: Mapping[str, float]) -> bool:
    """Write the scores of an evaluation into the card of a student trained here.

    Args:
        folder: The model's folder.
        name: What was scored (task, examples, shots); a later evaluation of the same name replaces its line.
        scores: In [0, 1], by metric.

    Returns:
        False where the folder holds no card of crosskd; nothing is written then.
    """
    path = folder / CARD
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8")
    found = re.search(f"{_SCORES[0]}\n(.*?)\n{_SCORES[1]}", text, re.DOTALL)
    if found is None:
        return False
    name = _plain(name)
    told = ", ".join(f"{metric} {100 * value:.2f}" for metric, value in scores.items())
    lines = [line for line in found[1].split("\n") if line != _NO_SCORES and not line.startswith(f"- {name}: ")]
    section = "\n".join([_SCORES[0], *lines, f"- {name}: {told}", _SCORES[1]])
    write_text(path, text[: found.start()] + section + text[found.end() :])
    return True


def _code(text: str) -> str:
    """A name as code; it stays one span of one cell, whatever is in it."""
    return f"`{_one_line(text).replace('`', chr(39))}`"


def _plain(text: str) -> str:
    """Text that is neither markup of HTML nor the end of a cell."""
    return html.escape(_one_line(text), quote=False)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(head: tuple[str, str], rows: Mapping[str, object]) -> str:
    return "\n".join([f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows.items())])
