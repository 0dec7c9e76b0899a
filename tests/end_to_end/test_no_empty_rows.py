"""Every verb that runs a model does it without an empty attention row, on prompts of unequal lengths."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosskd.cli.main import main
from helpers_masks import MaskSpy, mask_spy

__all__ = ["mask_spy"]


def test_distill_and_its_evaluation(
    student_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path, mask_spy: MaskSpy
) -> None:
    words = [
        "distill", "--student", str(student_folder), "--teacher", str(teacher_folder), "--data", str(data_folder),
        "--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--eval_strategy", "steps", "--eval_steps", "1",
        "--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "4", "--save_strategy", "no",
        "--number_few_shot", "1",
    ]  # fmt: skip
    assert main(words) == 0
    mask_spy.check()


@pytest.mark.parametrize(
    ("verb", "shots"), [("cache", 1), ("answer", 0), ("answer", 1), ("evaluate", 0), ("evaluate", 1)]
)
def test_verbs_that_ask_a_model(
    verb: str, shots: int, teacher_folder: Path, data_folder: Path, tmp_path: Path, mask_spy: MaskSpy
) -> None:
    name = "--model" if verb == "evaluate" else "--teacher"
    words = [
        verb, name, str(teacher_folder), "--data", str(data_folder), "--output", str(tmp_path / "out"),
        "--split", "train", "--batch_size", "4", "--number_few_shot", str(shots),
    ]  # fmt: skip
    assert main([*words, *([] if verb == "cache" else ["--max_new_tokens", "3"])]) == 0
    mask_spy.check()
