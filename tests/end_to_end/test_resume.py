"""A run that is interrupted and resumed ends as if nothing had happened, for every family and kind of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from crosskd import DistillationConfig, DistillationTrainer
from crosskd.errors import UsageError
from crosskd.models.adapters import with_lora
from crosskd.training.checkpoints import load_weights
from helpers_families import EXAMPLES, FAMILIES, TASK_FILE, save_tiny, tiny
from helpers_resume import KilledInStep, assert_ended_alike, assert_same, metrics_of, with_dropout

STEPS = 4


def trainer_of(family: str, folder: Path, **settings: Any) -> DistillationTrainer:
    """A student with dropout; 3 steps an epoch, so that the 4 steps span two; a line of the log spans the resume."""
    learner = tiny(family)
    with_dropout(learner.model)
    chosen: dict[str, Any] = {
        "task": str(TASK_FILE), "method": "sft", "max_steps": STEPS, "per_device_train_batch_size": 1,
        "learning_rate": 1e-2, "logging_steps": 3, "save_strategy": "steps", "save_steps": 2, "report_to": [],
        "disable_tqdm": True, "use_cpu": True, **settings,
    }  # fmt: skip
    evaluation = EXAMPLES[:2] if "eval_strategy" in settings else None
    return DistillationTrainer(
        learner, None, DistillationConfig(output_dir=str(folder), **chosen), EXAMPLES, evaluation
    )


def memory_of(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    assert trainer.model is not None
    return dict(trainer.model.state_dict())


def finish(trainer: DistillationTrainer, *, resume: bool = False) -> DistillationTrainer:
    trainer.train(resume_from_checkpoint=resume or None)
    trainer.save_model()
    trainer.save_state()
    return trainer


def whole_and_resumed(
    family: str, folder: Path, *, killed_in: int = STEPS, **settings: Any
) -> tuple[DistillationTrainer, DistillationTrainer]:
    """A run, and another that goes on from what a kill of the first had left; they must end alike."""
    first = trainer_of(family, folder / "whole", **settings)
    first.add_callback(KilledInStep(killed_in, folder / "resumed"))
    finish(first)
    begun = {path.name for path in (folder / "resumed").glob("checkpoint-*")}
    assert begun
    assert f"checkpoint-{STEPS}" not in begun
    second = finish(trainer_of(family, folder / "resumed", **settings), resume=True)
    assert_ended_alike(folder / "whole", folder / "resumed")
    assert_same(memory_of(first), memory_of(second), "memory")
    return first, second


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_ends_as_if_it_had_not_been_killed(family: str, tmp_path: Path) -> None:
    first, _ = whole_and_resumed(family, tmp_path)
    before, after = tiny(family).model.state_dict(), memory_of(first)
    read = [name for name in before if "vision" not in name and "projector" not in name]  # no example has an image
    assert sum(not torch.equal(before[name], after[name]) for name in read) > len(read) / 2


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("opt", {"peft": "lora", "lora_rank": 4, "lora_dropout": 0.1}),
        ("pythia", {"peft": "lora", "lora_rank": 4, "merge_adapter": True}),
        ("t5", {"peft": "lora", "lora_rank": 4}),
        ("pythia", {"freeze_layers": 1}),
        ("llama3", {"gradient_accumulation_steps": 2}),
        ("opt", {"per_device_train_batch_size": 2, "lr_scheduler_type": "cosine", "warmup_steps": 2}),
        ("opt", {"logging_strategy": "epoch", "save_steps": 3}),  # a checkpoint where an epoch ends
        ("opt", {"eval_strategy": "epoch", "save_steps": 3}),
        ("opt", {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_every_kind_of_training_ends_as_if_it_had_not_been_killed(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    first, _ = whole_and_resumed(family, tmp_path, **settings)
    if settings.get("peft"):
        assert hasattr(first.model, "peft_config")
        assert (tmp_path / "resumed" / "adapter_model.safetensors").is_file() is not settings.get(
            "merge_adapter", False
        )


@pytest.mark.parametrize(("family", "learning_rate"), [("pythia", 1e-2), ("opt", 3.0)])
@pytest.mark.parametrize("limit", [None, 1])
def test_the_best_model_is_that_of_the_undisturbed_run(
    family: str, learning_rate: float, limit: int | None, tmp_path: Path
) -> None:
    """With the high rate a run gets worse, so that its best checkpoint is older than the one gone on from."""
    settings: dict[str, Any] = {
        "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True,
        "learning_rate": learning_rate, "save_total_limit": limit, "lr_scheduler_type": "constant",
    }  # fmt: skip
    first = trainer_of(family, tmp_path / "whole", **settings)
    first.add_callback(KilledInStep(STEPS, tmp_path / "resumed"))
    finish(first)
    second = finish(trainer_of(family, tmp_path / "resumed", **settings), resume=True)
    assert_same(memory_of(first), memory_of(second), "memory")
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "resumed")
    losses = [line["eval_loss"] for line in metrics_of(tmp_path / "whole") if "eval_loss" in line]
    best = 1 + losses.index(min(losses))
    assert second.state.best_global_step == best
    assert Path(str(second.state.best_model_checkpoint)) == tmp_path / "resumed" / f"checkpoint-{best}"
    assert second.model is not None
    load_weights(second.model, tmp_path / "whole" / f"checkpoint-{best}")
    assert_same(memory_of(first), memory_of(second), "best")
    if learning_rate > 1:
        assert best < STEPS


def spoil(path: Path, how: str) -> str:
    """Take a weight out of a file, add one, or change the shape of one; its name."""
    weights = load_file(path)
    name = sorted(name for name, value in weights.items() if value.ndim == 2)[-1]
    if how == "missing":
        del weights[name]
    elif how == "unexpected":
        name = f"{name}.more"
        weights[name] = torch.zeros(2)
    else:
        weights[name] = weights[name][:-1].clone()
    save_file(weights, path, metadata={"format": "pt"})
    return name.removeprefix("transformer.")


@pytest.mark.parametrize("how", ["missing", "unexpected", "of another shape"])
@pytest.mark.parametrize("family", ["pythia", "opt", "bloom", "mt5"])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_checkpoint_must_hold_exactly_the_weights(how: str, family: str, adapted: bool, tmp_path: Path) -> None:
    model: nn.Module = tiny(family).model
    if adapted:
        model = with_lora(model, rank=2, alpha=4, dropout=0.0)  # pyright: ignore[reportArgumentType]
    model.save_pretrained(str(tmp_path))  # pyright: ignore[reportCallIssue]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_weights(model, tmp_path)
    name = spoil(tmp_path / ("adapter_model.safetensors" if adapted else "model.safetensors"), how)
    with pytest.raises(UsageError, match=rf"\d weights {how}: ") as refused:
        load_weights(model, tmp_path)
    assert any(part in str(refused.value) for part in (name, "lm_head.weight"))  # by its name in memory or in the file
    assert_same(before, dict(model.state_dict()), "a refused checkpoint changes nothing")


def test_the_best_model_is_loaded_strictly(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    trainer = finish(trainer_of("pythia", tmp_path / "run", **settings))
    best = Path(str(trainer.state.best_model_checkpoint))
    spoil(best / "model.safetensors", "missing")
    with pytest.raises(UsageError, match=f"{best.name}.*1 weights missing"):
        trainer._load_best_model()


def test_a_student_whose_output_layer_goes_by_two_names_is_loaded_whole(tmp_path: Path) -> None:
    """GPT-NeoX: ``embed_out`` in the file, ``lm_head`` in memory."""
    save_tiny("pythia", tmp_path)
    assert "embed_out.weight" in load_file(tmp_path / "model.safetensors")
    model = tiny("pythia").model
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load_weights(model, tmp_path)
    assert_same(expected, dict(model.state_dict()))
