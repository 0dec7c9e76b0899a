"""MinED as Wan et al. published it, by settings alone: warped tokens, labels for those without a teacher, no bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crosskd.errors import UsageError
from crosskd.losses import create_method
from crosskd.losses.base import StudentAnswers
from crosskd.losses.mined import MinED, merge_entries
from crosskd.losses.targets import TargetRequest, targets_from_logits
from crosskd.text.alignment import align_by_warping, align_tokens, read_vocabulary, warp_tokens
from crosskd.training.aligner import for_tokenizers
from crosskd.training.config import DistillationConfig
from helpers_tokenizers import byte_level_tokenizer, sentencepiece_tokenizer

PUBLISHED: dict[str, Any] = {"top_entries": 10, "edit_distance_cutoff": 1.0, "alignment": "dtw", "remainder": "dropped"}


def terms(method: MinED, student: Tensor, teacher: Tensor, alignment: list[int], table: list[int]) -> dict[str, Tensor]:
    """One sequence whose labels are 0, 1, 2, ..."""
    method = method.with_vocabulary_map(torch.tensor(table))
    mask = torch.ones(1, len(student), dtype=torch.bool)
    targets = targets_from_logits(teacher[None], torch.ones(1, len(teacher), dtype=torch.bool), method.request())
    answers = StudentAnswers(
        student[None], torch.arange(len(student))[None], mask, torch.tensor([alignment], dtype=torch.long)
    )
    return method.terms(answers, targets)


def test_the_published_method_is_reached_by_settings_alone() -> None:
    method = create_method("mined", **PUBLISHED)
    assert method == MinED(10, 1.0, "dtw", "dropped")
    assert method.request() == TargetRequest(top_entries=10, entry_ids=True)
    made = DistillationConfig(output_dir="unused", method="mined", **PUBLISHED).create_method()
    assert made == method
    defaults = MinED()
    assert (defaults.alignment, defaults.remainder) == ("strict", "kept")


@pytest.mark.parametrize(("setting", "expected"), [("alignment", "strict or dtw"), ("remainder", "kept or dropped")])
def test_another_word_is_refused(setting: str, expected: str) -> None:
    with pytest.raises(UsageError, match=f"{setting}: got 'other'; expected {expected}"):
        create_method("mined", **{setting: "other"})
    with pytest.raises(UsageError, match=setting):
        DistillationConfig(output_dir="unused", method="mined", **{setting: "other"})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("remainder", ["kept", "dropped"])
def test_a_token_without_a_teacher_learns_its_label_under_warping_only(remainder: str) -> None:
    student, teacher = torch.randn(3, 6, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    table = [0, 1, 2, 3, 4]
    strict = terms(MinED(None, remainder=remainder), student, teacher, [-1, 1, -1], table)
    warped = terms(MinED(None, alignment="dtw", remainder=remainder), student, teacher, [-1, 1, -1], table)
    of_labels = -student.log_softmax(-1)[[0, 2], [0, 2]].sum()
    torch.testing.assert_close(warped["distillation"], strict["distillation"] + of_labels, rtol=0, atol=1e-10)
    assert warped["label_targets"] == 2
    assert "label_targets" not in strict


def test_a_teacher_token_none_of_whose_entries_has_a_match_leaves_the_label() -> None:
    student, teacher = torch.randn(1, 4, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    found = terms(MinED(None, alignment="dtw", remainder="dropped"), student, teacher, [0], [-1, -1, -1])
    torch.testing.assert_close(found["distillation"], -student.log_softmax(-1)[0, 0], rtol=0, atol=1e-10)
    torch.testing.assert_close(found["unmapped_mass"], torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-10)


def test_without_the_remainder_what_is_kept_is_renormalized_and_the_likeliest_stands_for_its_entry() -> None:
    student = torch.randn(1, 5, dtype=torch.float64)
    teacher = torch.tensor([[3.0, 2.0, 1.0, 0.5, 0.0]], dtype=torch.float64)
    found = terms(MinED(4, remainder="dropped"), student, teacher, [0], [2, 4, 2, -1, 0])
    # the four largest are teacher entries 0, 1, 2, 3: 2 repeats student entry 2 and 3 has none
    q = teacher[0, :2].softmax(-1)
    expected = (q * (q.log() - student.log_softmax(-1)[0, [2, 4]])).sum()
    torch.testing.assert_close(found["distillation"], expected, rtol=0, atol=1e-10)
    p = teacher[0].softmax(-1)
    torch.testing.assert_close(found["unmapped_mass"], p[3], rtol=0, atol=1e-10)
    torch.testing.assert_close(found["tail_mass"], p[4], rtol=0, atol=1e-10)


def test_merging_takes_the_sum_or_the_largest() -> None:
    probabilities, mapped = torch.tensor([[[0.5, 0.25, 0.125]]]), torch.tensor([[[7, 3, 7]]])
    for largest, expected in ((False, {3: 0.25, 7: 0.625}), (True, {3: 0.25, 7: 0.5})):
        mass, ids, keep = merge_entries(probabilities, mapped, largest=largest)
        assert dict(zip(ids[keep].tolist(), mass[keep].tolist(), strict=True)) == expected


@pytest.mark.parametrize("shapes", [(0, 3), (3, 0)])
def test_empty_answers_give_zero_or_labels_with_a_graph(shapes: tuple[int, int]) -> None:
    student = torch.randn(shapes[0], 6, requires_grad=True)
    method = MinED(None, alignment="dtw", remainder="dropped")
    found = terms(method, student, torch.randn(shapes[1], 5), [-1] * shapes[0], [0] * 5)
    assert found["label_targets"] == shapes[0]
    expected = -student.log_softmax(-1)[range(shapes[0]), range(shapes[0])].sum()
    torch.testing.assert_close(found["distillation"], expected)
    found["distillation"].backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_warping_pairs_a_token_with_several() -> None:
    # distances are not normalized: " Cop" is nearer to " the" (4) than to " Copenhagen" (7)
    assert warp_tokens([" the", " Cop", "enhagen"], [" the", " Copenhagen"]) == [range(1), range(1), range(1, 2)]
    assert warp_tokens([" the", " Copenhagen"], [" the", " Cop", "enhagen"]) == [range(2), range(2, 3)]
    assert warp_tokens([" Copen", "hagen"], [" Copenhagen"]) == [range(1), range(1)]
    # spaces cost nothing
    assert warp_tokens(["a", "b"], [" a", " b"]) == [range(1), range(1, 2)]
    assert warp_tokens([], ["a"]) == []
    assert warp_tokens(["a", "b"], []) == [range(0), range(0)]


def test_of_equal_paths_the_diagonal_is_taken_then_the_step_of_the_teacher() -> None:
    # all pairs cost 1: seen from the end, both sides move back while they can
    assert warp_tokens(["a", "b", "c"], ["x", "y"]) == [range(1), range(1), range(1, 2)]
    # all pairs cost nothing but the last row's first: from (1, 2) the diagonal and the teacher's step are equal
    assert warp_tokens(["a", "a"], ["a", "a", "a"]) == [range(2), range(2, 3)]


def test_a_prediction_follows_the_token_that_was_read() -> None:
    def aligned(student: list[str], teacher: list[str]) -> list[int]:
        return align_by_warping(student, teacher, lambda i, j: student[i] == teacher[j])

    # token 1 follows " the" on both sides; what follows a part of Copenhagen is the student's alone
    assert aligned([" the", " C", "openhagen", "."], [" the", " Copenhagen", "."]) == [0, 1, -1, -1]
    assert aligned(["x", " Copenhagen", ".", "y"], ["x", " Copenha", "gen", ".", "y"]) == [0, 1, -1, -1]
    assert aligned(["a", "b", "c"], ["a", "b", "c"]) == [0, 1, 2]
    assert aligned(["a"], ["xy"]) == [0]  # both have read the prompt
    assert aligned(["a"], ["x", "y"]) == [-1]  # "x" was warped onto the prompt: more than one partner
    assert aligned([], ["a"]) == []
    assert aligned(["a"], []) == [-1]


def test_a_trainer_aligns_by_its_methods_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    student, teacher = byte_level_tokenizer(), sentencepiece_tokenizer()
    text = " the river rises in the hills"
    pieces, ids = [], []
    for tokenizer in (student, teacher):
        ids.append(tokenizer(text, add_special_tokens=False).input_ids)
        pieces.append(read_vocabulary(tokenizer).texts(ids[-1]))
    strict, align = for_tokenizers(MinED(edit_distance_cutoff=1.0), student, read_vocabulary(teacher))
    assert align(*ids) == align_tokens(*pieces)
    warped, align = for_tokenizers(MinED(**PUBLISHED), student, read_vocabulary(teacher))
    assert strict.vocabulary_map is not None
    assert warped.vocabulary_map is not None
    assert warped.vocabulary_map.equal(strict.vocabulary_map)
    nearest = warped.vocabulary_map.tolist()
    student_pieces, teacher_pieces = pieces
    expected = align_by_warping(
        student_pieces,
        teacher_pieces,
        lambda i, j: student_pieces[i] == teacher_pieces[j] or nearest[ids[1][j]] == ids[0][i],
    )
    assert align(*ids) == expected
    assert sum(index >= 0 for index in expected) >= 2
