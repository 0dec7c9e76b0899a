"""`cache`, `answer` and `recipes run`: killed at any moment and resumed until they are done, not a byte differs."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers_kills import KilledRun, contents, run_and_kill

pytestmark = pytest.mark.faults

KILLS = 20
Words = Callable[[Path], list[str]]
FULL = {errno.ENOSPC: "no space left on device", errno.EACCES: "permission denied", errno.EROFS: "read-only file"}


@pytest.fixture(params=["cache", "answer"])
def words(request: pytest.FixtureRequest, teacher_folder: Path, data_folder: Path) -> Words:
    """The command line of a verb, for an output folder: six files, one after the other."""
    own = {
        "cache": ["--top_k", "10", "--methods", "multilevel_ot,uld,mined", "--batch_size", "1"],
        "answer": ["--max_new_tokens", "4", "--batch_size", "2", "--temperature", "0.8"],
    }[request.param]
    common = ["--teacher", str(teacher_folder), "--data", str(data_folder), "--number_few_shot", "1"]
    return lambda output: [request.param, *common, *own, "--shard_size", "2", "--output", str(output)]


def random_kill(words: list[str], whole: KilledRun, output: Path, chance: random.Random) -> KilledRun:
    """Kill a run at a moment of an undisturbed one: before a change on disk, or by the clock."""
    if chance.random() < 0.5:
        return run_and_kill(words, at_event=chance.randint(1, whole.events), watched=output)
    return run_and_kill(words, after_seconds=chance.uniform(0, whole.seconds), watched=output)


def test_killed_runs_end_like_undisturbed_ones(words: Words, tmp_path: Path) -> None:
    chance = random.Random(7)
    whole = run_and_kill(words(tmp_path / "whole"), watched=tmp_path / "whole")
    assert whole.status == 0, whole.output
    expected = contents(tmp_path / "whole")
    kills, tries, output = 0, 0, tmp_path / "killed"
    while kills < KILLS:
        tries += 1
        assert tries <= 4 * KILLS, f"{kills} kills in {tries} tries hit an unfinished run"
        shutil.rmtree(output, ignore_errors=True)
        run = random_kill(words(output), whole, output, chance)
        for _ in range(2):  # a resumed run is killed too, sometimes
            if run.killed:
                kills += 1
                run = random_kill([*words(output), "--resume"], whole, output, chance)
        kills += run.killed
        if run.killed:
            run = run_and_kill([*words(output), "--resume"])
        assert run.status == 0, run.output
        assert contents(output) == expected


@pytest.mark.parametrize("number", FULL, ids=[errno.errorcode[number] for number in FULL])
def test_a_disk_that_fails_is_one_line_and_what_was_whole_is_kept(number: int, words: Words, tmp_path: Path) -> None:
    chance = random.Random(number)
    whole = run_and_kill(words(tmp_path / "whole"), watched=tmp_path / "whole")
    expected, output = contents(tmp_path / "whole"), tmp_path / "failed"
    for at_event in sorted(chance.sample(range(1, whole.events + 1), 6)):
        shutil.rmtree(output, ignore_errors=True)
        run = run_and_kill(words(output), at_event=at_event, fail=number, watched=output)
        assert_one_line(run, FULL[number])
        kept = {name: data for name, data in contents(output).items() if name.endswith((".safetensors", "0.jsonl"))}
        run = run_and_kill([*words(output), "--resume"])
        assert run.status == 0, run.output
        assert contents(output) == expected
        assert all(expected.get(name, data) == data for name, data in kept.items())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB, where this process may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_is_full(words: Words, small_disk: Path, tmp_path: Path) -> None:
    assert run_and_kill(words(tmp_path / "whole")).status == 0
    output = small_disk / "out"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(40_000))
    run = run_and_kill(words(output))
    assert_one_line(run, FULL[errno.ENOSPC])
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert run_and_kill([*words(output), "--resume"]).status == 0
    assert contents(output) == contents(tmp_path / "whole")


def assert_one_line(run: KilledRun, expected: str) -> None:
    assert run.status == 2, run.output
    assert "Traceback" not in run.output
    last = run.output.strip().splitlines()[-1]
    assert last.startswith(("crosskd cache: error: ", "crosskd answer: error: ")), run.output
    assert expected in last
    assert "--resume" in last


def results(folder: Path) -> dict[str, bytes]:
    """What a recipe is run for: data, answers, weights and scores; records of times and machines differ, and what a
    killed writer left stays beside them under a hidden name.
    """
    wanted = (".arrow", "model.safetensors", "predictions.jsonl", "teacher_answer.jsonl")
    return {
        name: data
        for name, data in contents(folder).items()
        if name.endswith(wanted) and "checkpoint" not in name and not name.startswith(".")
    }


def test_a_killed_recipe_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    words = ["recipes", "run", "table1/opt-350m/qed/seqkd", "--data", "sample:qed", "--model_override", "tiny"]
    words += ["--limit", "4", "--max_steps", "2", "--max_new_tokens", "4", "--output"]
    chance, output = random.Random(3), tmp_path / "killed"
    run_and_kill([*words, str(tmp_path / "first")])  # the stand-ins are made
    whole = run_and_kill([*words, str(tmp_path / "whole")], watched=tmp_path / "whole")
    assert whole.status == 0, whole.output
    expected = results(tmp_path / "whole")
    assert len(expected) >= 4, sorted(contents(tmp_path / "whole"))
    kills, tries = 0, 0
    while kills < KILLS:
        tries += 1
        assert tries <= 4 * KILLS, f"{kills} kills in {tries} tries hit an unfinished run"
        shutil.rmtree(output, ignore_errors=True)
        run = random_kill([*words, str(output)], whole, output, chance)
        while run.killed:
            kills += 1
            run = random_kill([*words, str(output), "--resume"], whole, output, chance)
        assert run.status == 0, run.output
        assert results(output) == expected
