"""Caches: written in shards, resumed, shared, guarded by identity and checksums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crosskd.errors import UsageError
from crosskd.losses.targets import TargetRequest, TeacherTargets, targets_from_logits
from crosskd.teacher.cache import TargetCache
from crosskd.teacher.identity import request_fields
from crosskd.teacher.shards import shard_path

REQUEST = TargetRequest(top_k=4, temperatures=(2.0,), top_entries=3, entry_ids=True, answer_tokens=True)
IDENTITY = {"teacher": "t", "examples": 7, "shard_size": 3, "data_sha256": "abc", **request_fields(REQUEST)}


def targets_of(index: int) -> TeacherTargets:
    torch.manual_seed(index)
    logits = torch.randn(1, 2 + index % 3, 9)
    mask = torch.ones(logits.shape[:2], dtype=torch.bool)
    return targets_from_logits(logits, mask, REQUEST, torch.zeros(logits.shape[:2], dtype=torch.long))


def capture(rows: range) -> list[TeacherTargets]:
    return [targets_of(index) for index in rows]


def filled(folder: Path) -> TargetCache:
    cache = TargetCache.create(folder, IDENTITY)
    problems = cache.problems()
    assert problems == {0: "missing", 1: "missing", 2: "missing"}
    cache.fill(capture, problems)
    return cache


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    filled(tmp_path / "c")
    cache = TargetCache.open(tmp_path / "c")
    assert len(cache) == 7
    for index in (6, 0, 3):
        read, written = TeacherTargets.from_dict(cache[index]), targets_of(index)
        assert read.temperatures == written.temperatures
        assert read.vocabulary_size == 9
        assert read.tensors().keys() == written.tensors().keys()
        for name, value in written.tensors().items():
            torch.testing.assert_close(getattr(read, name), value, rtol=0, atol=0)


def test_only_missing_shards_are_written_and_bytes_repeat(tmp_path: Path) -> None:
    cache = filled(tmp_path / "c")
    before = shard_path(cache.folder, 1).read_bytes()
    shard_path(cache.folder, 1).unlink()
    asked: list[range] = []

    def counting(rows: range) -> list[TeacherTargets]:
        asked.append(rows)
        return capture(rows)

    again = TargetCache.create(tmp_path / "c", IDENTITY)
    again.fill(counting, again.problems())
    assert asked == [range(3, 6)]
    assert shard_path(cache.folder, 1).read_bytes() == before


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    cache = TargetCache.create(tmp_path / "c", IDENTITY)
    assert list(cache.problems((2, 2))) == [1]
    cache.fill(capture, cache.problems((2, 2)))
    with pytest.raises(
        UsageError, match=r"targets-00000\.safetensors is missing.*targets-00002\.safetensors is missing"
    ):
        TargetCache.open(tmp_path / "c")
    assert list(cache.problems((1, 2))) == [0, 2]
    cache.fill(capture, cache.problems((1, 2)))
    assert len(TargetCache.open(tmp_path / "c")) == 7


def test_a_damaged_shard_is_named_and_repaired(tmp_path: Path) -> None:
    cache = filled(tmp_path / "c")
    path = shard_path(cache.folder, 2)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UsageError, match=r"targets-00002\.safetensors is damaged"):
        TargetCache.open(tmp_path / "c")
    with pytest.raises(UsageError, match="damaged"):
        cache.fill(capture, cache.problems())
    cache.fill(capture, cache.problems(), repair=True)
    assert len(TargetCache.open(tmp_path / "c")) == 7


def test_another_identity_is_refused_by_field(tmp_path: Path) -> None:
    filled(tmp_path / "c")
    with pytest.raises(UsageError, match="data_sha256: there abc, here other"):
        TargetCache.create(tmp_path / "c", {**IDENTITY, "data_sha256": "other"})
    with pytest.raises(UsageError, match="request_top_k: there 4, here 5"):
        TargetCache.create(tmp_path / "c", {**IDENTITY, "request_top_k": 5})
    TargetCache.create(tmp_path / "c", {**IDENTITY, "request_top_k": 2})  # more than enough is kept
