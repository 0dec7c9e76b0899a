"""What all tests share: the helpers' folder, one thread, no network, folders of tiny models and data."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parent))

import json
import random

import numpy
import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test begins with the same random numbers, whatever ran before it (tests run in random order)."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from or written to the user's cache."""
    monkeypatch.setenv("CROSSKD_CACHE", str(tmp_path_factory.getbasetemp() / "crosskd-cache"))


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
