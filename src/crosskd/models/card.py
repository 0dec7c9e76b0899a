"""The model card that travels with a student."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache

from crosskd.files import write_text

CARD = "README.md"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_DATA_FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".gz")
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
        "Student": _code(shown_name(facts.base_model)),
        "Teacher": _code(shown_name(facts.teacher)) if facts.teacher else "none",
        "Method": _code(facts.method),
        "Task": _code(shown_name(facts.task)),
        "Training data": f"{_code(shown_name(facts.data))}, {facts.examples} examples",
    }
    text = f"""\
---
{yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True).rstrip()}
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


def _metadata(facts: CardFacts) -> dict[str, Any]:
    """What the hub reads: https://huggingface.co/docs/hub/model-cards. What is not known for certain is left out."""
    base = hub_id(facts.base_model)
    dataset = _dataset_of(facts.data)
    found: dict[str, Any] = {"library_name": "peft" if facts.adapter else "transformers"}
    found |= {"pipeline_tag": "text-generation"}
    if base is not None:
        found |= {"base_model": base, "base_model_relation": "adapter" if facts.adapter else "finetune"}
    found |= _license_of(facts.base_model)
    found |= {"datasets": [dataset]} if dataset else {}
    return found | {"tags": ["crosskd", "knowledge-distillation", facts.method.replace("_", "-")]}


def shown_name(source: str) -> str:
    """What a card calls a model, a task or data: its hub id, or the last part of its path.

    Where something lay on the machine that trained is of no use to readers, and may tell more than it should.
    """
    return hub_id(source) or Path(source).name or source


def hub_id(source: str) -> str | None:
    """The hub id of a model that was loaded from ``source``; None for one that only this machine has.

    A folder is asked for the id that its card or its configuration names.
    """
    path = Path(source).expanduser()
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)[/\\\\]snapshots", source)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    if not path.exists():
        return source if _HUB_ID.fullmatch(source) else None
    if not path.is_dir():
        return None
    named = [_front_matter(path / CARD).get("base_model"), _config(path).get("_name_or_path")]
    named = [name for name in named if isinstance(name, str) and "/" in name and _HUB_ID.fullmatch(name)]
    return next((name for name in named if not Path(name).exists()), None)


def _license_of(source: str) -> dict[str, Any]:
    """The licence of a model, where its card lies on this machine."""
    path = Path(source).expanduser() / CARD
    if not path.is_file() and _HUB_ID.fullmatch(source):
        with suppress(ValueError):  # no name that a repository can have
            cached = try_to_load_from_cache(source, CARD)
            path = Path(cached) if isinstance(cached, str) else path
    names = ("license", "license_name", "license_link")
    return {name: value for name in names if (value := _front_matter(path).get(name)) is not None}


def _dataset_of(data: str) -> str | None:
    """The hub id of the data that `crosskd prepare` made a folder from."""
    path = Path(data).expanduser() / "prepare_summary.json"
    source = str(json.loads(path.read_text(encoding="utf-8")).get("source", "")) if path.is_file() else ""
    name = source.partition(":")[0]
    looks = "/" in name and _HUB_ID.fullmatch(name) and Path(name).suffix.lower() not in _DATA_FILES
    return name if looks and not Path(name).exists() else None


def _front_matter(path: Path) -> dict[str, Any]:
    """The metadata of a card; empty where there are none that can be read."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        value = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        value = None
    return value if isinstance(value, dict) else {}


def _config(folder: Path) -> dict[str, Any]:
    try:
        value = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


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
