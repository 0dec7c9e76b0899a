"""A table: however a global batch is split, the loss, every logged term and every gradient stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers_numbers import METHODS, make_trainer, step_numbers

TOLERANCE = 1e-6  # of logged numbers: float32 sums of at most a dozen addends, 6e-8 each
WHOLE: dict[str, Any] = {"per_device_train_batch_size": 4}
SPLITS: dict[str, dict[str, Any]] = {
    "accumulation of 4": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "accumulation of 2": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "accumulation, own tokens": {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "average_tokens_across_devices": False,
    },
    "2 devices": {"per_device_train_batch_size": 2, "n_gpu": 2},
    "4 devices": {"per_device_train_batch_size": 1, "n_gpu": 4},
    "2 devices, own tokens": {
        "per_device_train_batch_size": 2, "n_gpu": 2, "average_tokens_across_devices": False,
    },
    "4 devices, own tokens": {
        "per_device_train_batch_size": 1, "n_gpu": 4, "average_tokens_across_devices": False,
    },
    "2 devices and accumulation": {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "n_gpu": 2,
    },
}  # fmt: skip
"""Splits of one global batch of four examples (two processes: tests/distributed)."""


@pytest.fixture(scope="module")
def measured(student_folder: Path, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Numbers of a step by method and split, each measured once."""
    known: dict[tuple[str, str], dict[str, Any]] = {}

    def numbers(method: str, name: str, split: dict[str, Any]) -> dict[str, Any]:
        if (method, name) not in known:
            settings = {**METHODS[method], **split}
            trainer = make_trainer(student_folder, teacher_folder, tmp_path_factory.mktemp("run"), **settings)
            known[method, name] = step_numbers(trainer)
        return known[method, name]

    return numbers


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["logged"].keys() == expected["logged"].keys()
    for name, value in expected["logged"].items():
        assert found["logged"][name] == pytest.approx(value, rel=TOLERANCE, abs=1e-9), name
    assert found["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "authors"])
def test_a_split_leaves_every_number_as_it_is(method: str, split: str, measured: Any) -> None:
    same(measured(method, split, SPLITS[split]), measured(method, "whole", WHOLE))


@pytest.mark.parametrize("split", [name for name in SPLITS if "accumulation" not in name])
def test_devices_leave_what_the_authors_code_computes_as_it_is(split: str, measured: Any) -> None:
    """It ranks the columns of a batch together: accumulation makes other batches, devices that are gathered do not."""
    same(measured("authors", split, SPLITS[split]), measured("authors", "whole", WHOLE))


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_the_sum_of_what_is_logged_beside_it(method: str, measured: Any) -> None:
    logged = measured(method, "whole", WHOLE)["logged"]
    assert logged["cross_entropy"] > 0
    assert (logged["distillation"] > 0) == (method != "sft")
    total = logged["cross_entropy"] + 0.15 * logged["distillation"]
    assert logged["loss"] == pytest.approx(total, rel=TOLERANCE)
    gradients = measured(method, "whole", WHOLE)["gradients"]
    norm = torch.sqrt(sum(((g**2).sum() for g in gradients.values()), torch.zeros(())))
    assert logged["grad_norm"] == pytest.approx(float(norm), rel=TOLERANCE)
