"""One file of a cache: the targets of some consecutive examples, with a checksum beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from crosskd.errors import UsageError
from crosskd.files import write_text
from crosskd.losses.target_types import NUMBERS, PER_SEQUENCE, TeacherTargets
from crosskd.models.gguf import file_sha256

_OFFSETS = "token_offsets"  # (n + 1,) int64: the tokens of example i are offsets[i] to offsets[i + 1]


def shard_path(folder: Path, index: int) -> Path:
    """Where shard ``index`` of a cache lies."""
    return folder / f"targets-{index:05d}.safetensors"


def write_shard(path: Path, examples: Sequence[TeacherTargets]) -> None:
    """Write targets (B = 1 each) with their tokens end to end, then the checksum that says the shard is whole."""
    rows = [example.to_dict() for example in examples]
    lengths = torch.tensor([0, *(row["mask"].shape[1] for row in rows)])
    tensors = {_OFFSETS: lengths.cumsum(0)}
    for name in rows[0]:
        if name == "mask":
            continue  # every token between two offsets is an answer token
        per_sequence = name in (*PER_SEQUENCE, *NUMBERS)
        tensors[name] = torch.cat([row[name] if per_sequence else row[name][0] for row in rows]).contiguous()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as temporary:
        unfinished = Path(temporary) / path.name
        save_file(tensors, unfinished)
        checksum = file_sha256(unfinished)
        unfinished.chmod(0o644)
        unfinished.replace(path)
    write_text(_checksum_path(path), checksum + "\n")


def shard_problem(path: Path) -> str | None:
    """What is wrong with a shard: ``"missing"``, ``"unfinished"`` or ``"damaged"``; None where it is whole."""
    if not path.is_file():
        return "missing"
    if not _checksum_path(path).is_file():
        return "unfinished"
    return None if file_sha256(path) == _checksum_path(path).read_text().strip() else "damaged"


class Shard:
    """A shard open for reading; its tensors are memory-mapped and sliced one example at a time."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")
        self._names = [name for name in self._file.keys() if name != _OFFSETS]  # noqa: SIM118 - not a mapping
        self._offsets: list[int] = self._file.get_tensor(_OFFSETS).tolist()
        self._slices = {name: self._file.get_slice(name) for name in self._names}

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start, end = self._offsets[index], self._offsets[index + 1]
        row: dict[str, Tensor] = {"mask": torch.ones(1, end - start, dtype=torch.bool)}
        for name, values in self._slices.items():
            per_sequence = name in (*PER_SEQUENCE, *NUMBERS)
            row[name] = values[index : index + 1] if per_sequence else values[start:end][None]
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
        "writes damaged shards anew",
    )
