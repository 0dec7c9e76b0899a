"""What a cache of targets was made from, so that it is used for nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedTokenizerBase

from crosskd.errors import UsageError, list_differences
from crosskd.files import read_json
from crosskd.hashes import known_sha256
from crosskd.losses.targets import TargetRequest
from crosskd.models.files import base_of
from crosskd.models.load import locate
from crosskd.text.alignment import ROLES
from crosskd.text.tasks import Task

_REQUEST = "request_"
_CONFIGS = ("adapter_config.json", "config.json")
_VOLATILE = ("_name_or_path", "base_model_name_or_path", "transformers_version", "peft_version", "dtype", "torch_dtype")
_INFORMATION = ("task",)  # a name: the task's texts are compared by their hash
_NAMES = ("teacher", "teacher_revision")  # compared where the files of one side could not be read


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
    """Hash of all that decides which tokens a text becomes: vocabulary, merges, normalization, added tokens, template.

    A fast tokenizer is hashed by what it would write to ``tokenizer.json``, a slow one by its class, its vocabulary
    and the files that it was read from; neither by names of folders.
    """
    # tokens of the first Qwen models are bytes
    vocabulary = sorted((str(token), index) for token, index in tokenizer.get_vocab().items())
    roles = [getattr(tokenizer, f"{role}_token_id", None) for role in ROLES]
    parts = [vocabulary, tokenizer.chat_template, roles, _inner_state(tokenizer)]
    return _sha256_of(parts)


def _inner_state(tokenizer: PreTrainedTokenizerBase) -> Any:
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        # how a batch was last padded and cut is no part of the tokenizer
        return {name: value for name, value in state.items() if name not in ("truncation", "padding", "version")}
    named = (tokenizer.init_kwargs.get(name) for name in type(tokenizer).vocab_files_names)
    files = [Path(path) for path in named if isinstance(path, str)]
    added = sorted((index, str(token)) for index, token in tokenizer.added_tokens_decoder.items())
    return [type(tokenizer).__name__, added, sorted(known_sha256(path) for path in files if path.is_file())]


def model_folder(source: str, revision: str | None = None) -> Path | None:
    """Where the files of a model lie on this machine: its folder, or the snapshot of a hub id; None for neither."""
    try:
        location = locate(source)
    except UsageError:
        return None
    if Path(location).is_dir():
        return Path(location)
    for name in ("config.json", "adapter_config.json"):
        with suppress(ValueError):  # no name that a repository can have
            kept = try_to_load_from_cache(location, name, revision=revision or "main")
            if isinstance(kept, str):
                return Path(kept).parent
    return None


def model_fields(source: str, revision: str | None = None) -> dict[str, Any]:
    """Identity fields of a model by its files, wherever they lie; a field is None where its files cannot be read."""
    folder = model_folder(source, revision)
    return {
        "teacher_weights_sha256": None if folder is None else weights_sha256(folder),
        "teacher_config_sha256": None if folder is None else config_sha256(folder),
    }


def weights_sha256(folder: Path) -> str | None:
    """Hash of the weights that a folder's model is loaded from, an adapter's base included; None for none."""
    files = _weight_files(folder)
    if not files:
        return None
    parts = [known_sha256(path) for path in files]
    if (folder / "adapter_config.json").is_file():
        base = base_of(folder)
        base_folder = model_folder(base)
        parts.append((None if base_folder is None else weights_sha256(base_folder)) or base)
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads, in its order of preference; a folder may hold others beside them."""
    for kind in ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin"):
        if (folder / kind).is_file():
            return [folder / kind]
        index = folder / f"{kind}.index.json"
        if index.is_file():
            files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
            return files if all(path.is_file() for path in files) else []
    return []


def config_sha256(folder: Path) -> str | None:
    """Hash of a model's configuration and of the code that it brings, without what saving it again changes."""
    file = next((path for name in _CONFIGS if (path := folder / name).is_file()), None)
    if file is None:
        return None
    stated = {name: value for name, value in read_json(file).items() if name not in _VOLATILE}
    code = [known_sha256(path) for path in sorted(folder.glob("*.py"))] if "auto_map" in stated else []
    return _sha256_of([stated, code])


def _sha256_of(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode(errors="replace")).hexdigest()


def request_fields(request: TargetRequest) -> dict[str, Any]:
    """A request as identity fields, ``request_top_k`` and so on."""
    return {_REQUEST + name: list(v) if isinstance(v, tuple) else v for name, v in asdict(request).items()}


def check_identity(made: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Refuse targets or answers that were made from something else.

    A teacher is known by its files: where the hash of its weights is known on both sides, what it is called and where
    it lies do not matter. Elsewhere its name and revision are compared.

    Args:
        made: The identity of what lies there.
        wanted: The fields that matter to the caller; a request is satisfied by targets that hold at least as much.
        what: The flag and folder, for the message.

    Raises:
        UsageError: Names every field that differs, the value there and ours.
    """
    by_files = all(fields.get("teacher_weights_sha256") for fields in (made, wanted))
    ignored = (*_INFORMATION, *(_NAMES if by_files else ()))
    differing = [
        name for name, value in wanted.items() if name not in ignored and not _satisfies(name, made.get(name), value)
    ]
    if differing:
        raise UsageError(
            f"{what}: made from something else ({list_differences(made, wanted, differing)})",
            expected="the same teacher, data, prompts and settings",
            fix="set the fields as they are there, or make it again for these settings in another folder",
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
    if name == "vocabulary_sha256":
        return wanted is None or cached == wanted
    return cached == wanted
