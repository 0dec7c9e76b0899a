"""What a cache of targets was made from, so that it is used for nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from crosskd.errors import UsageError
from crosskd.losses.targets import TargetRequest
from crosskd.models.gguf import file_sha256
from crosskd.text.tasks import Task

_REQUEST = "request_"


def data_sha256(examples: Dataset, supervision: str) -> str:
    """Hash of what a prompt and its supervised answer are made of, in order."""
    digest = hashlib.sha256()
    for index in range(len(examples)):
        example = examples[index]
        answer = example.get("teacher_answer") if supervision == "teacher" else next(iter(example["answers"]), None)
        fields = [example.get(name) or "" for name in ("title", "context", "question")]
        digest.update(json.dumps([*fields, answer], ensure_ascii=False).encode())
    return digest.hexdigest()


def prompt_sha256(task: Task, number_few_shot: int) -> str:
    """Hash of a task's texts: system, request format and the shots that are used."""
    parts = [task.system, task.request_format, task.answer_cue, [asdict(shot) for shot in task.shots[:number_few_shot]]]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a tokenizer's vocabulary, added tokens included, and of its chat template."""
    # tokens of the first Qwen models are bytes
    vocabulary = sorted((str(token), index) for token, index in tokenizer.get_vocab().items())
    parts = [vocabulary, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def weights_sha256(folder: Path) -> str | None:
    """Hash of a model folder's weight files; None where the folder holds none (a hub id has its revision)."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    if not files:
        return None
    return hashlib.sha256("".join(file_sha256(path) for path in files).encode()).hexdigest()


def request_fields(request: TargetRequest) -> dict[str, Any]:
    """A request as identity fields, ``request_top_k`` and so on."""
    return {_REQUEST + name: list(v) if isinstance(v, tuple) else v for name, v in asdict(request).items()}


def check_identity(made: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Refuse targets or answers that were made from something else.

    Args:
        made: The identity of what lies there.
        wanted: The fields that matter to the caller; a request is satisfied by targets that hold at least as much.
        what: The flag and folder, for the message.

    Raises:
        UsageError: Names every field that differs, the value there and ours.
    """
    differing = [name for name, value in wanted.items() if not _satisfies(name, made.get(name), value)]
    if differing:
        told = "; ".join(f"{name}: there {_short(made.get(name))}, here {_short(wanted[name])}" for name in differing)
        raise UsageError(
            f"{what}: made from something else ({told})",
            expected="the same teacher, data, prompts and settings",
            fix="set the fields as they are there, or make it anew for these settings in another folder",
        )


def _satisfies(name: str, cached: Any, wanted: Any) -> bool:
    if name in (_REQUEST + "top_k", _REQUEST + "top_entries"):
        if wanted is None:
            return True
        return cached == 0 or (cached is not None and wanted != 0 and cached >= wanted)
    if name == _REQUEST + "temperatures":
        return set(cached or ()) >= set(wanted)
    if name in (_REQUEST + "entry_ids", _REQUEST + "answer_tokens"):
        return bool(cached) or not wanted
    return cached == wanted


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) > 40 and " " not in text and "/" not in text else text
