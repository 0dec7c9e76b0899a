"""One file of a cache: the targets of some consecutive examples, with a checksum beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from crosskd.errors import UsageError
from crosskd.files import write_text
from crosskd.hashes import file_sha256, known_sha256
from crosskd.losses.target_types import NUMBERS, PER_SEQUENCE, TeacherTargets

Check = Literal["read", "known", "presence"]
_OFFSETS = "token_offsets"  # (n + 1,) int64: the tokens of example i are offsets[i] to offsets[i + 1]
_NUMBERS = "numbers"  # key of the file's metadata: `NUMBERS` as JSON, which gives every float back as it was


def shard_path(folder: Path, index: int) -> Path:
    """Where shard ``index`` of a cache lies."""
    return folder / f"targets-{index:05d}.safetensors"


def write_shard(path: Path, examples: Sequence[TeacherTargets]) -> None:
    """Write targets (B = 1 each) with their tokens end to end, then the checksum that says the shard is whole."""
    rows = [example.tensors() for example in examples]
    lengths = torch.tensor([0, *(row["mask"].shape[1] for row in rows)])
    tensors = {_OFFSETS: lengths.cumsum(0)}
    for name in rows[0]:
        if name == "mask":
            continue  # every token between two offsets is an answer token
        tensors[name] = torch.cat([row[name] if name in PER_SEQUENCE else row[name][0] for row in rows]).contiguous()
    numbers = json.dumps({name: getattr(examples[0], name) for name in NUMBERS})
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, unfinished, metadata={_NUMBERS: numbers})
        checksum = file_sha256(unfinished)
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):  # of a disk that failed the first error is the one to tell
            unfinished.unlink(missing_ok=True)
        raise
    write_text(_checksum_path(path), checksum + "\n")


def shard_problem(path: Path, check: Check = "read") -> str | None:
    """What is wrong with a shard: ``"missing"``, ``"unfinished"`` or ``"damaged"``; None where it is whole.

    Args:
        path: The shard.
        check: ``"read"`` computes its checksum, ``"known"`` only if the file changed since that was last done (see
            `known_sha256`), ``"presence"`` looks that it is there.
    """
    if not path.is_file():
        return "missing"
    if not _checksum_path(path).is_file():
        return "unfinished"
    if check == "presence":
        return None
    checksum = file_sha256(path) if check == "read" else known_sha256(path)
    return None if checksum == _checksum_path(path).read_text().strip() else "damaged"


class Shard:
    """A shard open for reading; its tensors are memory-mapped and sliced one example at a time."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")
        self._names = [name for name in self._file.keys() if name != _OFFSETS]  # noqa: SIM118 - not a mapping
        numbers = json.loads(self._file.metadata()[_NUMBERS])
        self._numbers = {**numbers, "temperatures": tuple(numbers["temperatures"])}
        self._offsets: list[int] = self._file.get_tensor(_OFFSETS).tolist()
        self._slices = {name: self._file.get_slice(name) for name in self._names}

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = self._offsets[index], self._offsets[index + 1]
        row: dict[str, Any] = {"mask": torch.ones(1, end - start, dtype=torch.bool), **self._numbers}
        for name, values in self._slices.items():
            row[name] = values[index : index + 1] if name in PER_SEQUENCE else values[start:end][None]
        return row


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def damaged_shards_error(folder: Path, problems: dict[int, str]) -> UsageError:
    """The error that names the shards which cannot be used."""
    told = ", ".join(f"{shard_path(folder, index).name} is {problem}" for index, problem in sorted(problems.items()))
    return UsageError(
        f"--teacher_cache {folder}",
        got=told,
        expected="whole shards",
        fix="run the same `crosskd cache` command again: with --resume it adds what is missing, with --repair it also "
        "writes damaged shards again",
    )
