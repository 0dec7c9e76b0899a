"""The six lines of the README run as they stand, on tiny models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

README = Path(__file__).parents[2] / "README.md"


def test_the_six_lines_run(
    student_folder: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    code = found[1].replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(student_folder))
    code = code.replace("Qwen/Qwen2.5-0.5B-Instruct", str(teacher_folder))
    # only what a tiny model on a CPU needs is changed: context sizes and the number of steps
    code = code.replace("learning_rate=3e-5", "learning_rate=3e-5, max_steps=1, max_length=400, number_few_shot=0")
    code = code.replace('load_examples("sample:qed", "train")', 'load_examples("sample:qed", "train").select(range(4))')
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").config.model_type == "llama"
