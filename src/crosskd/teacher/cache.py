"""Targets of a teacher on disk: written in shards, guarded by an identity, read one example at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from crosskd.errors import UsageError
from crosskd.files import read_json, write_json
from crosskd.losses.targets import TeacherTargets
from crosskd.teacher.identity import check_identity
from crosskd.teacher.shards import Shard, damaged_shards_error, shard_path, shard_problem, write_shard

IDENTITY = "identity.json"


@dataclass
class TargetCache:
    """A folder of teacher targets; ``cache[i]`` are those of training example ``i``.

    Make one with ``crosskd cache`` or `TargetCache.create` and `fill`; open one with `TargetCache.open`.

    Attributes:
        folder: Where it lies.
        identity: What it was made from: teacher, tokenizer, data, prompts, request, dtype, versions, and ``examples``
            and ``shard_size``, which say how many shards there are.
    """

    folder: Path
    identity: Mapping[str, Any]
    _shards: dict[int, Shard] = field(default_factory=dict, repr=False)

    @classmethod
    def create(cls, folder: Path, identity: Mapping[str, Any]) -> TargetCache:
        """Start a cache, or go on with one that has the same identity.

        Raises:
            UsageError: The folder holds a cache made from something else.
        """
        path = folder / IDENTITY
        if path.is_file():
            check_identity(read_json(path), identity, f"--output {folder}")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, dict(identity))
        return cls(folder, dict(identity))

    @classmethod
    def open(cls, folder: str | Path) -> TargetCache:
        """Open a finished cache; every shard's checksum is verified.

        Raises:
            UsageError: No cache is there, its identity is not what `create` wrote, or shards are missing or damaged
                (named).
        """
        folder = Path(folder)
        if not (folder / IDENTITY).is_file():
            raise UsageError(
                f"--teacher_cache {folder}", got="no cache", expected="a folder written by `crosskd cache`"
            )
        cache = cls(folder, _checked(read_json(folder / IDENTITY), folder / IDENTITY))
        if problems := cache.problems():
            raise damaged_shards_error(folder, problems)
        return cache

    @property
    def shard_count(self) -> int:
        """Shards of the finished cache."""
        return -(-self.identity["examples"] // self.identity["shard_size"])

    def __len__(self) -> int:
        return int(self.identity["examples"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Targets of example ``index`` as `TeacherTargets.from_dict` takes them (B = 1)."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of a cache of {len(self)}")
        shard, row = divmod(index, self.identity["shard_size"])
        if shard not in self._shards:
            self._shards[shard] = Shard(shard_path(self.folder, shard))
        return self._shards[shard][row]

    def __getstate__(self) -> dict[str, Any]:
        """Workers of a data loader open the files themselves."""
        return {**self.__dict__, "_shards": {}}

    def problems(self, part: tuple[int, int] = (1, 1)) -> dict[int, str]:
        """Shards that are missing, unfinished or damaged, and which of these; every file's checksum is computed.

        Args:
            part: ``(i, n)``: look at those of process i of n only, counted from 1; shard s is written by s mod n + 1.
        """
        own = range(part[0] - 1, self.shard_count, part[1])
        told = {index: shard_problem(shard_path(self.folder, index)) for index in own}
        return {index: problem for index, problem in told.items() if problem is not None}

    def fill(
        self,
        capture: Callable[[range], Sequence[TeacherTargets]],
        problems: Mapping[int, str],
        *,
        repair: bool = False,
    ) -> None:
        """Write the shards that are not there yet.

        Args:
            capture: Gives the targets of a range of examples.
            problems: What `problems` found.
            repair: Write damaged shards anew too, instead of refusing to go on.

        Raises:
            UsageError: A damaged shard, without ``repair``.
        """
        damaged = {index: told for index, told in problems.items() if told == "damaged"}
        if damaged and not repair:
            raise damaged_shards_error(self.folder, damaged)
        for index in problems:
            write_shard(shard_path(self.folder, index), capture(self.examples_of(index)))

    def remove_leftovers(self) -> None:
        """Delete what killed writers left behind; only where no other process writes to the folder."""
        for left in self.folder.glob(".writing-*"):
            shutil.rmtree(left)

    def examples_of(self, shard: int) -> range:
        """The examples whose targets a shard holds."""
        size = self.identity["shard_size"]
        return range(shard * size, min((shard + 1) * size, len(self)))


def _checked(identity: dict[str, Any], path: Path) -> dict[str, Any]:
    """An identity that says how many shards there are and whose they are."""
    sizes = [identity.get(name) for name in ("examples", "shard_size")]
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not whole or not isinstance(identity.get("teacher"), str):
        raise UsageError(
            f"{path} does not say what the cache holds",
            expected="the examples, shard_size and teacher that `crosskd cache` wrote",
            fix="write the cache again",
        )
    return identity
