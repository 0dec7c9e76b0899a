"""SIGTERM and Ctrl-C: exit codes, one line that says how to go on, and handlers that are put back."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from crosskd.cli.main import RESUMABLE, VERBS, main, run_verb, terminated_by_signal
from crosskd.cli.steps import Step, run_step
from crosskd.errors import Terminated


def wait_for(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)  # Python hands a signal over between two instructions
    pytest.fail("the signal did not arrive")


def take_verb(monkeypatch: pytest.MonkeyPatch, verb: str, run: Callable[[list[str]], None]) -> None:
    """Put ``run`` in the place of a verb, whatever its flags are."""
    monkeypatch.setattr("crosskd.cli.early.check_early", lambda *_: None)
    module = types.ModuleType(f"crosskd.cli.{verb}")
    module.run = run  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(__import__("sys").modules, f"crosskd.cli.{verb}", module)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["distill"], "the same command with --resume goes on"),
        (["cache", "--overwrite"], "the same command with --resume instead of --overwrite goes on"),
        (["answer", "--resume"], "the same command goes on"),
        (["prepare"], "the same command starts from the beginning"),
    ],
)
def test_a_signal_gives_its_exit_code_and_says_how_to_go_on(
    number: int, code: int, words: list[str], advice: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    take_verb(monkeypatch, words[0], lambda _: wait_for(number))
    before = signal.getsignal(signal.SIGTERM)
    assert main(words) == code
    assert capsys.readouterr().err == f"crosskd {words[0]}: stopped; {advice}\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_saves_something_can_say_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(words: list[str]) -> None:
        try:
            wait_for(signal.SIGTERM)
        except KeyboardInterrupt as interrupt:
            raise type(interrupt)("saved checkpoint-3; --resume goes on from it") from interrupt

    take_verb(monkeypatch, "distill", run)
    assert main(["distill"]) == 143
    assert capsys.readouterr().err == "crosskd distill: saved checkpoint-3; --resume goes on from it\n"


def test_a_signal_in_a_step_ends_the_whole_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    take_verb(monkeypatch, "cache", lambda _: wait_for(signal.SIGTERM))
    with pytest.raises(Terminated), terminated_by_signal():
        run_step(Step("capture", ["cache"], None), resume=False)


def test_a_second_signal_finds_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminated_by_signal():
        with pytest.raises(Terminated):
            wait_for(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_thread_leaves_signals_alone() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def look() -> None:
        with terminated_by_signal():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert inside == [before]


@pytest.mark.parametrize("verb", list(VERBS))
def test_advice_names_resume_for_verbs_that_have_it(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_verb(verb, ["--help"])
    assert bool(re.search(r"^\s+--resume\b", capsys.readouterr().out, flags=re.MULTILINE)) == (verb in RESUMABLE)
