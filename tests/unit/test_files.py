"""Files are whole or absent; folders with results are not lost by accident."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from crosskd.errors import UsageError
from crosskd.files import (
    check_output_folder,
    prepare_output_folder,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)


def test_what_is_written_is_read(tmp_path):
    value = {"name": "Zoë", "scores": [0.5, 1]}
    assert read_json(write_json(tmp_path / "a" / "b" / "value.json", value)) == value
    rows = [{"line": "one\ntwo"}, {"line": "three\u2028four"}]
    assert read_jsonl(write_jsonl(tmp_path / "rows.jsonl", rows)) == rows
    assert "Zoë" in (tmp_path / "a" / "b" / "value.json").read_text(encoding="utf-8")


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    path = write_text(tmp_path / "file.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new, but \ud800 cannot be encoded")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]  # noqa: PTH208


def test_files_are_as_readable_as_others(tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("")
    path = write_text(tmp_path / "file.txt", "")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not JSON: line 1"), (b"[1]", "holds a JSON list"), (b"\xff\xfe", "not a text file in UTF-8")],
)
def test_broken_json(tmp_path, content, message):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_json(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UsageError, match="is a folder"):
        read_jsonl(tmp_path)


def test_broken_lines_are_numbered(tmp_path):
    path = write_text(tmp_path / "rows.jsonl", '{"a": 1}\n\nnonsense\n{"a": 2}\n')
    with pytest.raises(UsageError, match="line 3"):
        read_jsonl(path)
    with pytest.raises(UsageError, match="line 3"):
        read_jsonl(path, unfinished=True)
    with pytest.raises(UsageError, match="line 1 is a list"):
        read_jsonl(write_text(path, "[1]\n"))


def test_only_an_unfinished_file_may_end_in_half_a_line(tmp_path):
    path = write_text(tmp_path / "rows.jsonl", '{"a": 1}\n{"a": ')
    assert read_jsonl(path, unfinished=True) == [{"a": 1}]
    with pytest.raises(UsageError, match="line 2"):
        read_jsonl(path)


@pytest.fixture
def used(tmp_path) -> Path:
    write_text(tmp_path / "used" / "inner" / "result.json", "{}")
    return tmp_path / "used"


def test_new_and_empty_folders_are_fine(tmp_path):
    assert prepare_output_folder(tmp_path / "new" / "folder").is_dir()
    assert prepare_output_folder(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"


def test_a_folder_that_is_not_empty_needs_a_flag(used):
    with pytest.raises(UsageError, match=r"is not empty.*--resume.*--overwrite"):
        prepare_output_folder(used)
    assert (used / "inner" / "result.json").exists()


def test_resume_keeps_and_overwrite_empties(used):
    assert prepare_output_folder(used, resume=True) == used
    assert (used / "inner" / "result.json").exists()
    assert prepare_output_folder(used, overwrite=True) == used
    assert list(used.iterdir()) == []


def test_overwrite_does_not_follow_links(used, tmp_path):
    precious = write_text(tmp_path / "elsewhere" / "data.jsonl", "{}")
    (used / "link").symlink_to(precious.parent, target_is_directory=True)
    prepare_output_folder(used, overwrite=True)
    assert precious.exists()


def test_check_touches_nothing(used, tmp_path):
    assert check_output_folder(used, overwrite=True) == used
    assert (used / "inner" / "result.json").exists()
    assert not check_output_folder(tmp_path / "absent").exists()
    with pytest.raises(UsageError, match="is not empty"):
        check_output_folder(used)


def test_contradicting_flags_and_files(used):
    with pytest.raises(UsageError, match="contradict"):
        prepare_output_folder(used, overwrite=True, resume=True)
    with pytest.raises(UsageError, match="is a file"):
        prepare_output_folder(used / "inner" / "result.json", overwrite=True)


@pytest.mark.parametrize("place", [".", "..", "home", "repository"])
def test_overwrite_refuses_folders_that_hold_more_than_results(tmp_path, monkeypatch, place):
    here = tmp_path / "parent" / "here"
    write_text(here / "thesis.tex", "")
    write_text(tmp_path / "home" / "file", "")
    write_text(tmp_path / "repository" / ".git" / "HEAD", "")
    monkeypatch.chdir(here)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    folder = Path(place) if place.startswith(".") else tmp_path / place
    with pytest.raises(UsageError, match="holds more than results"):
        prepare_output_folder(folder, overwrite=True)
    assert (here / "thesis.tex").exists()
