"""What is looked at before a verb begins must not refuse what the verb would take."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosskd.cli.early import check_early
from crosskd.errors import UsageError

NOWHERE = "/nowhere/at/all"


@pytest.fixture
def words(student_folder: Path, data_folder: Path, tmp_path: Path) -> list[str]:
    """A command line of ``distill`` that is whole."""
    places = {"student": student_folder, "data": data_folder, "output_dir": tmp_path / "run"}
    return [word for name, place in places.items() for word in (f"--{name}", str(place))]


def test_a_teacher_is_looked_for_only_where_one_is_asked(words: list[str], tmp_path: Path) -> None:
    words = [*words, "--teacher", "nobody/nothing", "--method"]
    check_early("distill", [*words, "sft"])
    with pytest.raises(UsageError, match="no copy from the hub"):
        check_early("distill", [*words, "uld"])
    check_early("distill", [*words, "uld", "--model_override", "tiny"])
    with pytest.raises(UsageError, match="no cache"):
        check_early("distill", [*words, "uld", "--teacher_cache", str(tmp_path)])


def test_a_run_that_goes_on_needs_no_models(words: list[str], tmp_path: Path) -> None:
    """A finished one is left as it is, wherever its student went since; another says what differs."""
    gone = [*words, "--method", "uld", "--student", NOWHERE, "--data", NOWHERE, "--resume"]
    with pytest.raises(UsageError, match="no such folder"):
        check_early("distill", gone)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "resolved_config.yaml").write_text("method: uld\n")
    check_early("distill", gone)


def test_only_the_first_of_several_processes_looks_at_the_output(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first may have begun to write when another comes to look."""
    words = [*words, "--method", "sft"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "resolved_config.yaml").write_text("method: sft\n")
    monkeypatch.setenv("RANK", "1")
    check_early("distill", words)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UsageError, match="is not empty"):
        check_early("distill", words)


def test_several_processes_may_fill_one_cache(teacher_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "targets-00000.safetensors").write_bytes(b"")
    places = {"teacher": teacher_folder, "data": data_folder, "output": tmp_path, "number_few_shot": 0}
    words = [word for name, place in places.items() for word in (f"--{name}", str(place))]
    check_early("cache", [*words, "--shard", "2/2"])
    with pytest.raises(UsageError, match="is not empty"):
        check_early("cache", words)


def test_only_a_split_that_is_read_must_be_there(words: list[str], data_folder: Path, tmp_path: Path) -> None:
    words = [*words, "--method", "sft"]
    shared = tmp_path / "no_validation"
    shared.mkdir()
    (shared / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (shared / "train").symlink_to(data_folder / "train")
    words += ["--data", str(shared)]
    check_early("distill", words)
    with pytest.raises(UsageError, match="has no split 'validation'"):
        check_early("distill", [*words, "--eval_strategy", "epoch"])
