"""Places that cannot be written, YAML that says something twice, and errors of libraries in one line."""

from __future__ import annotations

import json

import pytest
import yaml
from safetensors import SafetensorError

from crosskd.cli.checks import check_values
from crosskd.cli.failures import one_line
from crosskd.errors import UsageError
from crosskd.files import check_output_folder, check_writable, parse_yaml, read_json, read_jsonl


def test_what_can_be_written_is_left_as_it_is(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "file", tmp_path / "new", tmp_path / "a" / "b" / "c"):
        check_writable(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("path", ["/proc/x", "/proc/x/y", "/sys/x", "x" * 300, "a\0b"])
def test_what_cannot_be_written_is_said(path):
    with pytest.raises(UsageError, match="cannot be written"):
        check_writable(path)
    with pytest.raises(UsageError, match=r"output folder .* cannot be written"):
        check_output_folder(path)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"out cannot be written: .*file is a file"):
        check_writable(tmp_path / "file" / "out")


@pytest.mark.parametrize(
    "text",
    ["a: 1\na: 2\n", "a: {b: 1, b: 2}\n", "- {a: 1, 'a': 2}\n", "!!python/object/apply:os.system ['true']", "[" * 9999],
)
def test_yaml_that_says_something_twice_or_runs_something_is_refused(text):
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


def test_other_yaml_is_read_as_ever():
    text = "a: &x {b: 1}\nc: {<<: *x, d: [1, 2.5, yes, null, '7']}\n"
    assert parse_yaml(text) == yaml.safe_load(text) == {"a": {"b": 1}, "c": {"b": 1, "d": [1, 2.5, True, None, "7"]}}
    assert parse_yaml("base: &b {k: 1}\nown: {<<: *b, k: 2}")["own"] == {"k": 2}


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' + "9" * 10_000 + "}", "{", "[1]"])
def test_json_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    for read in (read_json, read_jsonl):
        with pytest.raises(UsageError, match=r"a\.json"):
            read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
        (OSError(18, "Invalid cross-device link", "/x", None, "/y"), "/x and /y: Invalid cross-device link"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("cannot find it\nand more"), "cannot find it"),
        (ImportError("No module named 'x'"), "No module named 'x'"),
        (RuntimeError("X requires wandb to be installed. Run"), "X requires wandb to be installed. Run"),
        (SafetensorError("HeaderTooLarge"), "SafetensorError: HeaderTooLarge"),
        (json.JSONDecodeError("Expecting value", "", 0), "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        (ZeroDivisionError("a bug"), None),
        (KeyError("a bug"), None),
        (RecursionError("a bug"), None),
    ],
)
def test_what_a_user_can_do_something_about_is_one_line(error, line):
    assert one_line(error) == line


def test_flags_out_of_range_are_named():
    check_values({"limit": None, "batch_size": 7, "examples": 0, "seed": 0})
    with pytest.raises(UsageError, match="--limit: got 0; expected an integer of at least 1"):
        check_values({"batch_size": 7, "limit": 0})
    with pytest.raises(UsageError, match="--examples: got -1; expected an integer of at least 0"):
        check_values({"examples": -1})
    for seed in (-1, 2**32):
        with pytest.raises(UsageError, match="--seed"):
            check_values({"seed": seed})
    check_values({"a": 1.5, "b": None, "c": ["x"], "d": "y", "e": True})
    for value in (float("nan"), float("-inf"), "a\0", ["a", "\0"]):
        with pytest.raises(UsageError, match="--name"):
            check_values({"name": value})
