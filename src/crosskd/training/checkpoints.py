"""Checkpoints that are whole or absent, and loaded strictly or not at all."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from crosskd.errors import UsageError
from crosskd.files import write_json

logger = logging.getLogger(__name__)

MANIFEST = "checkpoint_files.json"
UNFINISHED = ".unfinished"
"""Checkpoints are written in this folder of the run, and moved out of it when they are whole."""
STATE = "trainer_state.json"
_ADAPTER = "adapter_model.safetensors"
_SHOWN = 5


def write_manifest(folder: Path) -> None:
    """Note the size of every file of a checkpoint; `problem_of` compares with it."""
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder) if path.name != MANIFEST}
    write_json(folder / MANIFEST, sizes)


def problem_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None where every file has the size it was written with."""
    try:
        sizes: dict[str, int] = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        return f"no {Path(error.filename).name}"
    except (OSError, ValueError) as error:
        return f"{MANIFEST} or {STATE} cannot be read ({error})"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"no {name}"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
    return None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run that is whole; newer ones that are not are named in the log."""
    numbered = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*") if path.is_dir()}
    found = sorted((path for path, step in numbered.items() if step.isdigit()), key=lambda path: int(numbered[path]))
    for checkpoint in reversed(found):
        problem = problem_of(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("%s is not whole (%s): an older checkpoint is taken", checkpoint.name, problem)
    return None


def is_finished(folder: Path) -> bool:
    """Whether a run has written its student: ``trainer_state.json`` is the last file that it writes."""
    return (folder / STATE).is_file()


def move_into_place(unfinished: Path, checkpoint: Path) -> None:
    """Give a whole checkpoint its name; one of that name from before (broken, or of a resumed run) goes."""
    write_manifest(unfinished)
    if checkpoint.exists():
        shutil.rmtree(checkpoint)
    unfinished.rename(checkpoint)


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into the model that is trained; all of them, and nothing besides.

    A whole model is read by its own ``from_pretrained``, which knows under which names its weights are saved (GPT-NeoX
    saves ``lm_head`` as ``embed_out``); an adapter by peft.

    Args:
        model: The model that the checkpoint was saved from, on any device.
        checkpoint: The folder.

    Raises:
        UsageError: A weight is missing, unexpected or of another shape (named), or the file cannot be read.
    """
    try:
        if hasattr(model, "peft_config"):
            _load_adapter(model, checkpoint)
        else:
            _load_whole(model, checkpoint)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UsageError(
            f"checkpoint {checkpoint}", got=str(error).strip().split("\n")[0], fix="delete it and --resume again"
        ) from error


def _load_whole(model: nn.Module, checkpoint: Path) -> None:
    assert isinstance(model, PreTrainedModel)
    found: Any = type(model).from_pretrained(
        checkpoint, config=model.config, dtype=model.dtype, use_safetensors=True, output_loading_info=True
    )
    loaded, info = found
    refuse_differences(checkpoint, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
    model.load_state_dict(loaded.state_dict(), strict=True)


def _load_adapter(model: Any, checkpoint: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    name = model.active_adapters[0] if isinstance(model.active_adapters, list) else model.active_adapter
    saved = load_file(checkpoint / _ADAPTER)
    own = get_peft_model_state_dict(model, adapter_name=name)
    mismatched = [key for key in own.keys() & saved.keys() if own[key].shape != saved[key].shape]
    refuse_differences(checkpoint, own.keys() - saved.keys(), saved.keys() - own.keys(), mismatched)
    set_peft_model_state_dict(model, saved, adapter_name=name)


def refuse_differences(
    checkpoint: Path | str, missing: Iterable[Any], unexpected: Iterable[Any], mismatched: Iterable[Any] = ()
) -> None:
    """Raise a UsageError that names the weights by which a checkpoint differs from its model, if there are any."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}
    named = {kind: sorted(map(str, keys)) for kind, keys in kinds.items()}
    parts = [
        f"{len(keys)} weights {kind}: {', '.join(keys[:_SHOWN])}{' ...' if len(keys) > _SHOWN else ''}"
        for kind, keys in named.items()
        if keys
    ]
    if parts:
        raise UsageError(
            f"checkpoint {checkpoint}",
            got="; ".join(parts),
            expected="exactly the weights of the model that is trained",
            fix="check that student, --peft and versions are those that wrote it; train afresh with --overwrite",
        )


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]
