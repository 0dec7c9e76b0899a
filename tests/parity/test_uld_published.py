"""ULD as published (Eq. 7, all entries) against sorting by hand, and what the default of 200 entries leaves out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crosskd.losses.base import StudentAnswers
from crosskd.losses.targets import TeacherTargets, targets_from_logits
from crosskd.losses.uld import ULD

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "uld.md"


def terms(method: ULD, student: Tensor, teacher: Tensor, cached: bool = False) -> dict[str, Tensor]:
    mask = torch.ones(teacher.shape[:2], dtype=torch.bool)
    targets = targets_from_logits(teacher, mask, method.request())
    if cached:
        targets = TeacherTargets.stack([TeacherTargets.from_dict(targets.example(0).to_dict())])
    labels = torch.full(student.shape[:2], -100)
    return method.terms(StudentAnswers(student, labels, torch.ones_like(labels, dtype=torch.bool)), targets)


@pytest.mark.parametrize(("v_s", "v_t"), [(7, 12), (12, 7), (300, 250), (250, 300)])
@pytest.mark.parametrize("top_entries", [0, None])
@pytest.mark.parametrize("cached", [False, True])
def test_all_entries_are_equation_7(v_s: int, v_t: int, top_entries: int | None, cached: bool) -> None:
    student, teacher = torch.randn(1, 5, v_s, dtype=torch.float64), torch.randn(1, 4, v_t, dtype=torch.float64)
    total = 0.0
    for s, t in zip(student[0].softmax(-1), teacher[0].softmax(-1), strict=False):
        left, right = (sorted(row.tolist(), reverse=True) for row in (s, t))
        size = max(v_s, v_t)
        pairs = zip(left + [0.0] * (size - v_s), right + [0.0] * (size - v_t), strict=True)
        total += sum(abs(one - other) for one, other in pairs)
    found = terms(ULD(top_entries), student, teacher, cached)
    assert found["distillation"].item() == pytest.approx(total, abs=1e-10)
    assert found["tail_mass"] == 0


def test_the_page_says_what_200_entries_leave_out() -> None:
    """Logits of normal numbers at the sizes of LLaMA 2 and Pythia; the wider they are, the surer the model."""
    rows = re.findall(
        r"^\| (\d) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) >= 3
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 20, 50_304, generator=generator, dtype=torch.float64)
    teacher = torch.randn(1, 20, 32_000, generator=generator, dtype=torch.float64)
    for row in rows:
        width = int(row[0])
        whole, some = (terms(ULD(entries), width * student, width * teacher) for entries in (0, 200))
        tail, missing = some["tail_mass"].item(), (whole["distillation"] - some["distillation"]).item()
        assert -1e-10 <= missing <= 2 * tail
        measured = [whole["distillation"].item(), some["distillation"].item(), tail, missing]
        for text, value in zip(row[1:], measured, strict=True):
            assert float(text) == pytest.approx(value / 20, abs=0.6 * 10 ** -len(text.split(".")[1]))
