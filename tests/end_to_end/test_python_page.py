"""The code of docs/python.md runs from its first block to its last, on tiny models and a data file of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from crosskd.evaluation.results import Evaluation
from helpers_models import examples

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
ROWS = 16


def code_of_the_page(replacements: dict[str, str]) -> str:
    """All Python blocks of the page, joined; each replacement must be found there."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    for old, new in replacements.items():
        assert old in code, f"the page no longer says {old}"
        code = code.replace(old, new)
    return code


def test_the_whole_way_runs(
    student_folder: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {("passage" if name == "context" else name): value for name, value in row.items()} for row in examples(ROWS)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # only what tiny models on a CPU need is changed: names, shots that do not fit, steps, lengths of answers
    code = code_of_the_page({
        "HuggingFaceTB/SmolLM2-135M-Instruct": str(student_folder),
        "Qwen/Qwen2.5-0.5B-Instruct": str(teacher_folder),
        'TASK, SHOTS = "qa", 5': 'TASK, SHOTS = "qa", 0',
        "num_train_epochs=1": "max_steps=2",
        "name=name)": "name=name, max_new_tokens=4)",
    })  # fmt: skip
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "python.md", "exec"), names)

    assert len(names["train"]) + len(names["validation"]) == ROWS
    assert len(names["cache"]) == len(names["train"])
    assert names["cache"].problems() == {}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "student").config.model_type == "llama"
    logged = [json.loads(line) for line in (tmp_path / "work" / "student" / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["step"] == 2
    table = (PAGE.parent / "training.md").read_text(encoding="utf-8")
    assert [name for line in logged for name in line if f"`{name}`" not in table] == []
    found = Evaluation.load(tmp_path / "work" / "scores" / "multilevel_ot")
    assert (found.name, found.examples) == ("multilevel_ot", len(names["validation"]))
    assert set(names["differences"]) == {"f1", "exact_match"}


def test_the_page_says_how_requests_are_joined() -> None:
    from crosskd.losses.registry import create_method

    assert 'create_method("multilevel_ot").request() | create_method("uld").request()' in PAGE.read_text()
    one, other = (create_method(name).request() for name in ("multilevel_ot", "uld"))
    assert one is not None
    assert other is not None
    joined = one | other
    assert joined | one == joined
    assert joined | other == joined
