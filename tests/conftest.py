"""What all tests share: the helpers' folder, one thread, no network, folders of tiny models and data.

Tests run in random order. Each begins with the same random numbers and leaves the process as it found it; so does the
making of what lives longer than one test (fixtures of a module or of the session).
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads sum in another order
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported; tests of a GPU are run with 0
os.environ["CROSSKD_CACHE"] = tempfile.mkdtemp(prefix="crosskd-tests-")  # never the user's
sys.path.insert(0, str(Path(__file__).parent))
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell ignores Ctrl-C for what it starts in the background; tests send it, and their children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

import json
from typing import Any

import hypothesis
import pytest
import torch

from helpers_process import begin, restored

# the same examples in every run and on every machine, however slow it is; nothing is kept between runs
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("same")
torch.set_num_threads(1)


class LastingFixtures:
    """A plugin of its own: pytest does not ask the conftest of a folder about fixtures of the session."""

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        """What is made once for many tests is the same whichever of them comes first, and changes nothing else."""
        if fixturedef.scope == "function":
            return (yield)
        with restored():
            begin()
            return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """The order is random; random numbers are not: pytest-randomly would seed them by the order's seed."""
    config.option.randomly_reset_seed = False
    config.pluginmanager.register(LastingFixtures())


def pytest_unconfigure() -> None:
    """Remove the cache that the tests shared."""
    shutil.rmtree(os.environ["CROSSKD_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def process_as_found() -> Iterator[None]:
    """Random numbers start over, and what a test changes in the process is undone behind it."""
    with restored():
        begin()
        yield


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers_models import save_student

    return save_student(tmp_path_factory.mktemp("models") / "student")


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers_models import save_teacher

    return save_teacher(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training and four validation examples, prepared."""
    from crosskd.cli.main import main
    from helpers_models import examples

    folder = tmp_path_factory.mktemp("data")
    raw = folder / "raw"
    raw.mkdir()
    rows = [{**row, "answers": row["answers"]} for row in examples(16)]
    for split, part in (("train", rows[:12]), ("validation", rows[12:])):
        (raw / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    assert main(["prepare", "--data", str(raw), "--output", str(folder / "prepared")]) == 0
    return folder / "prepared"
