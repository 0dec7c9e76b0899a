"""Kernels compile for an H100: the interpreter accepts what the compiler does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[3] / "src" / "crosskd" / "kernels"
CALLED_BY_KERNELS = {
    *("softmax_mixture", "write_mixture", "_teacher_at", "_upstream", "_negative_log_sum", "_log_of_sum"),
    *("_sortable", "_threshold", "_put_in_order", "_distances", "_probabilities"),
}


@pytest.mark.faults  # twenty seconds
def test_every_kernel_compiles(tmp_path: Path) -> None:
    """The program compiles what a step of each method starts."""
    program = Path(__file__).with_name("compile_kernels.py")
    settings = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    found = subprocess.run([sys.executable, program], capture_output=True, text=True, env=settings, check=False)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-2000:]
    compiled = {line.split()[0] for line in found.stdout.splitlines()[:-1]}
    written = {
        name for file in KERNELS.glob("*.py") for name in re.findall(r"@triton\.jit.*\ndef (\w+)", file.read_text())
    }
    assert written > CALLED_BY_KERNELS
    assert written - CALLED_BY_KERNELS == compiled
