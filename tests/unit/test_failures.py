"""What goes wrong outside of crosskd becomes one line; what goes wrong inside keeps its traceback."""

from __future__ import annotations

import pytest
import torch

from crosskd.cli.failures import exit_code_of
from crosskd.errors import first_line, list_differences


def test_a_full_gpu_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    assert exit_code_of("crosskd distill", work) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "CUDA out of memory. Tried to allocate 2.00 GiB. Take smaller batches" in line


def test_an_error_of_ours_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code_of("crosskd distill", lambda: print(1 / 0))  # noqa: T201


def test_differences_shorten_hashes_and_nothing_else() -> None:
    made = {"seed": 7, "data": "a" * 64, "path": "/" + "b" * 64}
    assert list_differences(made, {"seed": 8}, ["seed"]) == "seed: there 7, here 8"
    listed = list_differences(made, {}, ["data", "path"])
    assert listed == f"data: there {'a' * 12}…, here None; path: there /{'b' * 64}, here None"


def test_an_error_that_says_nothing_is_called_by_its_type() -> None:
    assert first_line(OSError("\n cut off \nand more")) == "cut off"
    assert first_line(OSError()) == "OSError"
