"""Targets of a teacher on disk: written in shards, guarded by an identity, read one example at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosskd.errors import UsageError
from crosskd.files import write_bytes, write_json
from crosskd.hashes import file_sha256
from crosskd.losses.targets import TeacherTargets
from crosskd.teacher.cache_identity import FORMAT, IDENTITY, identity_of, read_identity
from crosskd.teacher.identity import check_identity
from crosskd.teacher.shards import Check, Shard, damaged_shards_error, shard_path, shard_problem, write_shard
from crosskd.text.alignment import Vocabulary, parse_vocabulary, write_vocabulary

VOCABULARY = "teacher_vocabulary.json.gz"


@dataclass
class TargetCache:
    """A folder of teacher targets; ``cache[i]`` are those of training example ``i``.

    Make one with ``crosskd cache`` or `TargetCache.create` and `fill`; open one with `TargetCache.open`.

    Attributes:
        folder: Where it lies.
        identity: What it was made from: teacher, tokenizer, data, prompts, request, dtype, versions, and ``examples``
            and ``shard_size``, which say how many shards there are.

    Methods that align tokens need the texts of the teacher's tokens. The cache keeps them, so that its tokenizer, which
    may have changed or bring code to run, is not needed again.
    """

    folder: Path
    identity: Mapping[str, Any]
    _shards: dict[int, Shard] = field(default_factory=dict, repr=False)

    @classmethod
    def create(cls, folder: Path, identity: Mapping[str, Any], vocabulary: Vocabulary | None = None) -> TargetCache:
        """Start a cache, or go on with one that has the same identity.

        Args:
            folder: Where it is written.
            identity: See the class.
            vocabulary: The teacher's, where a method that aligns tokens is to be served.

        Raises:
            UsageError: The folder holds a cache made from something else, or by another version.
        """
        content = None if vocabulary is None else write_vocabulary(vocabulary)
        checksum = None if content is None else hashlib.sha256(content).hexdigest()
        identity = {"format": FORMAT, **identity, "vocabulary_sha256": checksum}
        path = folder / IDENTITY
        if path.is_file():
            made = read_identity(folder, f"--output {folder}")
            check_identity(made, identity, f"--output {folder}")
            identity = made  # what is there may serve more than was asked for now
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, identity)
        if content is not None and not _holds(folder / VOCABULARY, checksum):
            write_bytes(folder / VOCABULARY, content)
        return cls(folder, identity)

    @classmethod
    def open(cls, folder: str | Path) -> TargetCache:
        """Open a finished cache; every shard's checksum is verified, unless the shard did not change since it last was.

        Of several processes on a machine the first verifies, the others look that every shard is there.

        Raises:
            UsageError: No cache is there, another version wrote it, its identity is not what `create` wrote, or shards
                are missing or damaged (named).
        """
        folder = Path(folder)
        cache = cls(folder, identity_of(folder))
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        if problems := cache.problems(check="known" if first else "presence"):
            raise damaged_shards_error(folder, problems)
        return cache

    def vocabulary(self) -> Vocabulary:
        """The texts of the teacher's tokens.

        Raises:
            UsageError: They were not asked for when the cache was made, or their file is missing or damaged.
        """
        checksum, path = self.identity.get("vocabulary_sha256"), self.folder / VOCABULARY
        if checksum is None or not _holds(path, checksum):
            raise UsageError(
                f"--teacher_cache {self.folder}",
                got="no vocabulary of the teacher" if checksum is None else f"{VOCABULARY} is missing or damaged",
                expected="the texts of the teacher's tokens, which this method aligns",
                fix="make it again with the method in --methods"
                if checksum is None
                else "run the same `crosskd cache` command again with --repair",
            )
        return parse_vocabulary(path.read_bytes())

    @property
    def shard_count(self) -> int:
        """Shards of the finished cache."""
        return -(-self.identity["examples"] // self.identity["shard_size"])

    def __len__(self) -> int:
        return int(self.identity["examples"])

    def __getitem__(self, index: int) -> dict[str, Any]:
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

    def problems(self, part: tuple[int, int] = (1, 1), check: Check = "read") -> dict[int, str]:
        """Shards that are missing, unfinished or damaged, and which of these.

        Args:
            part: ``(i, n)``: look at those of process i of n only, counted from 1; shard s is written by s mod n + 1.
            check: How closely; see `shard_problem`.
        """
        own = range(part[0] - 1, self.shard_count, part[1])
        found = {index: shard_problem(shard_path(self.folder, index), check) for index in own}
        return {index: problem for index, problem in found.items() if problem is not None}

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
            repair: Write damaged shards again too, instead of refusing to go on.

        Raises:
            UsageError: A damaged shard, without ``repair``.
        """
        damaged = {index: problem for index, problem in problems.items() if problem == "damaged"}
        if damaged and not repair:
            raise damaged_shards_error(self.folder, damaged)
        for index in problems:
            write_shard(shard_path(self.folder, index), capture(self.examples_of(index)))

    def remove_leftovers(self) -> None:
        """Delete what killed writers left behind; only where no other process writes to the folder."""
        for left in self.folder.glob(".*.part"):
            left.unlink()

    def examples_of(self, shard: int) -> range:
        """The examples whose targets a shard holds."""
        size = self.identity["shard_size"]
        return range(shard * size, min((shard + 1) * size, len(self)))


def _holds(path: Path, checksum: str | None) -> bool:
    return path.is_file() and file_sha256(path) == checksum
