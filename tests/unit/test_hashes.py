"""Checksums that are kept: never out of date, computed once, and no worse than computed where they cannot be kept."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from crosskd import hashes
from crosskd.hashes import cache_directory, file_sha256, known_sha256


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that were read whole, while the checksums are kept in a folder of the test."""
    monkeypatch.setenv("CROSSKD_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(hashes, "_SETTLED", -1.0)  # the tests do not wait for their files to settle
    read: list[Path] = []

    def counting(path: Path) -> str:
        read.append(path)
        return file_sha256(path)

    monkeypatch.setattr(hashes, "file_sha256", counting)
    return read


def written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "weights"
    expected = written(path, b"abc" * 1_000_000)
    assert [known_sha256(path) for _ in range(3)] == [expected] * 3
    (tmp_path / "link").symlink_to(path)  # as snapshots of the hub link to their blobs
    assert known_sha256(tmp_path / "link") == expected
    assert reads == [path]


def test_whatever_changes_a_file_is_seen(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "weights"
    written(path, b"one")
    known_sha256(path)
    before = path.stat()
    assert known_sha256(path) != written(path, b"two")  # the kept one, then other bytes of the same size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # even with the time set back
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert known_sha256(path) == hashlib.sha256(b"two").hexdigest()
    other = tmp_path / "other"
    expected = written(other, b"six")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert known_sha256(path) == expected
    assert len(reads) == 3


def test_a_file_that_may_still_change_within_a_tick_is_not_kept(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "_SETTLED", 60.0)
    path = tmp_path / "fresh"
    written(path, b"one")
    known_sha256(path)
    known_sha256(path)
    assert len(reads) == 2
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    known_sha256(path)
    known_sha256(path)
    assert len(reads) == 3


@pytest.mark.parametrize("content", ["", "no JSON", "[]", "{}", '{"state": null, "sha256": "0"}'])
def test_a_damaged_record_is_computed_again(content: str, tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "weights"
    expected = written(path, b"one")
    known_sha256(path)
    (record,) = (cache_directory() / "checksums").iterdir()
    record.write_text(content)
    assert known_sha256(path) == expected
    assert len(reads) == 2
    known_sha256(path)
    assert len(reads) == 2


def test_a_cache_directory_that_cannot_be_written_costs_time_only(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CROSSKD_CACHE", str(tmp_path / "file"))
    path = tmp_path / "weights"
    expected = written(path, b"one")
    assert known_sha256(path) == known_sha256(path) == expected
    assert len(reads) == 2


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        known_sha256(tmp_path / "absent")
