"""Checkpoints that are whole or absent, and loaded strictly or not at all."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from crosskd.errors import TrainingFailed, UsageError, first_line
from crosskd.files import write_json
from crosskd.training.run_files import STATE

logger = logging.getLogger(__name__)

MANIFEST = "checkpoint_files.json"
UNFINISHED = ".unfinished"
"""Checkpoints are written in this folder of the run, and moved out of it when they are whole."""
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
    for _, checkpoint in sorted(_numbered(folder).items(), reverse=True):
        problem = problem_of(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("%s is not whole (%s): an older checkpoint is taken", checkpoint.name, problem)
    return None


def move_into_place(unfinished: Path, checkpoint: Path) -> None:
    """Give a whole checkpoint its name; one of that name from before (broken, or of a resumed run) goes."""
    write_manifest(unfinished)
    if checkpoint.exists():
        shutil.rmtree(checkpoint)
    unfinished.rename(checkpoint)


def remove_old_checkpoints(folder: Path, limit: int | None, kept: Collection[int | None]) -> None:
    """Remove checkpoints until ``limit`` are left: first those that are not whole, then the oldest.

    A checkpoint of a later step than those that are kept comes from a run that was resumed from an earlier step: it
    counts as not whole, since it will be written again.

    Args:
        folder: The run's.
        limit: How many may stay; None or 0 removes none.
        kept: Steps whose checkpoints stay, whatever the limit: the one just written, and the best.
    """
    if not limit:
        return
    numbered = _numbered(folder)
    newest = max((step for step in kept if step is not None), default=0)
    useful = {step: step < newest and problem_of(path) is None for step, path in numbered.items()}
    removable = sorted(numbered.keys() - set(kept), key=lambda step: (useful[step], step))
    for step in removable[: max(len(numbered) - limit, 0)]:
        shutil.rmtree(numbered[step], ignore_errors=True)


@contextmanager
def writing(run: Path, what: str) -> Iterator[None]:
    """Tell in one line that something of a run cannot be written: a full disk, a folder that became unwritable.

    Raises:
        TrainingFailed: With the reason, and the checkpoint that the run goes on from.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save has no error of its own, and many texts
        good = last_checkpoint(run)
        kept = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
        raise TrainingFailed(
            f"{what} of {run} cannot be written ({first_line(error)}); {kept}; "
            "make room or give the folder back, and the same command with --resume goes on"
        ) from error


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
            f"checkpoint {checkpoint}", got=first_line(error), fix="delete it and --resume again"
        ) from error


def _load_whole(model: nn.Module, checkpoint: Path) -> None:
    assert isinstance(model, PreTrainedModel)
    read: Any = type(model).from_pretrained(
        checkpoint, config=model.config, dtype=model.dtype, use_safetensors=True, output_loading_info=True,
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    loaded, info = read
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]  # shapes follow a name
    refuse_differences(checkpoint, info["missing_keys"], info["unexpected_keys"], mismatched)
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


def _numbered(folder: Path) -> dict[int, Path]:
    """The checkpoints of a run by their step, whole or not."""
    paths = [path for path in folder.glob("checkpoint-*") if path.is_dir()]
    steps = {path.name.removeprefix("checkpoint-"): path for path in paths}
    return {int(step): path for step, path in steps.items() if step.isdigit()}


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]
