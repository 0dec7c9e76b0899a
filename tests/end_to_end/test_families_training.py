"""One training step for every family, as student and as teacher: the loss is that of single, unpadded sequences."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from crosskd import DistillationConfig, DistillationTrainer
from helpers_families import CAUSAL, EXAMPLES, FAMILIES, TASK_FILE, loss_alone, reads_images, tiny, tokenized
from helpers_tolerances import loss_tolerance

# every family learns from another one, and every causal family teaches
PAIRS = [(student, CAUSAL[(index + 5) % len(CAUSAL)]) for index, student in enumerate(FAMILIES)]


def test_every_family_takes_part() -> None:
    assert {student for student, _ in PAIRS} == set(FAMILIES)
    assert {teacher for _, teacher in PAIRS} == set(CAUSAL)
    assert all(student != teacher for student, teacher in PAIRS)


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_a_step_has_the_loss_of_single_sequences_and_changes_the_student_alone(
    student: str, teacher: str, tmp_path: Path
) -> None:
    learner, master = tiny(student), tiny(teacher)
    config = DistillationConfig(
        output_dir=str(tmp_path), task=str(TASK_FILE), method="multilevel_ot", number_few_shot=1, max_steps=1,
        per_device_train_batch_size=len(EXAMPLES), learning_rate=1e-3, lr_scheduler_type="constant", logging_steps=1,
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, sinkhorn_temperature=1.5,
    )  # fmt: skip
    own = tokenized(student, append_eos=True, shots=0)
    others = tokenized(teacher, append_eos=False, shots=1)
    expected = loss_alone(
        learner.model, master.model, list(zip(own, others, strict=True)), config.create_method(),
        config.distillation_weight,
    )  # fmt: skip
    before = {
        side: {name: value.clone() for name, value in loaded.model.state_dict().items()}
        for side, loaded in (("student", learner), ("teacher", master))
    }
    trainer = DistillationTrainer(learner, master, config, EXAMPLES)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert logged["distillation"] > 0
    assert math.isfinite(logged["grad_norm"])
    assert logged["grad_norm"] > 0
    length = max(len(each.prompt_ids) + len(each.answer_ids) for each in (*own, *others))
    tokens = sum(len(each.answer_ids) for each in own)
    tolerance = loss_tolerance(learner.model, master.model, length=length, tokens=tokens)
    assert logged["loss"] == pytest.approx(expected, rel=tolerance)
    after = learner.model.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    changed = [name for name in after if not torch.equal(after[name], before["student"][name])]
    trained = [name for name, _ in learner.model.named_parameters() if not reads_images(name)]
    assert len(changed) >= len(trained) - 2  # a bias may have no effect: softmax does not see that of the keys
    for name, value in master.model.state_dict().items():
        assert torch.equal(value, before["teacher"][name])
