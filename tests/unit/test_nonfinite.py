"""A step whose loss or gradients are not finite is not applied: the run stops and says why, or drops the step."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from crosskd import DistillationConfig, DistillationTrainer, load_model
from crosskd.cli.main import main
from crosskd.errors import TrainingFailed
from crosskd.training.nonfinite import MOST_IN_A_ROW, NonFiniteGuard, weights_not_finite
from helpers_models import examples
from helpers_numbers import poison

NAN = float("nan")


def trainer(student: Path, output: Path, teacher: Any = None, count: int = 8, **settings: Any) -> DistillationTrainer:
    config = DistillationConfig(
        output_dir=str(output),
        **{
            "method": "sft", "per_device_train_batch_size": 2, "max_steps": 3, "logging_steps": 1, "top_k": 10,
            "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 1, "number_few_shot": 1,
            "train_sampling_strategy": "sequential", "disable_tqdm": True, "lr_scheduler_type": "constant", **settings,
        },
    )  # fmt: skip
    return DistillationTrainer(str(student), teacher, config, examples(count))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class Watch(TrainerCallback):
    """Keeps weights, moments of Adam and learning rate as they are after every step; and spoils a gradient if asked."""

    def __init__(self, made: DistillationTrainer, spoiled: int | None = None) -> None:
        self.made, self.spoiled = made, spoiled
        self.weights = [weights(made.model)]
        self.moments: list[dict[int, torch.Tensor]] = []
        self.rates: list[float] = []
        made.callback_handler.callbacks.insert(0, self)  # before the guard looks

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if state.global_step == self.spoiled:
            parameter = next(self.made.model.parameters())
            assert parameter.grad is not None
            parameter.grad.view(-1)[0] = float("inf")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.weights.append(weights(self.made.model))
        found = enumerate(self.made.optimizer.state_dict()["state"].values())
        self.moments.append({number: value["exp_avg"].clone() for number, value in found})
        self.rates.append(self.made.lr_scheduler.get_last_lr()[0])


def strict_lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics, read as JSON proper, which has no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_a_loss_that_is_nan_stops_the_run_before_its_step(student_folder: Path, tmp_path: Path) -> None:
    made = trainer(student_folder, tmp_path)
    poison(made, {"q5"})  # the third step's
    watch = Watch(made)
    with pytest.raises(TrainingFailed) as failed:
        made.train()
    message = str(failed.value)
    assert "\n" not in message
    assert message.startswith("step 3: the loss is not finite: cross_entropy is nan; examples 'q4', 'q5'.")
    assert f"The last good checkpoint is {tmp_path / 'checkpoint-2'}." in message
    for hint in ("not applied", "--learning_rate", "--warmup_steps", "--bf16", "--on_nonfinite skip"):
        assert hint in message
    assert equal(weights(made.model), watch.weights[2])
    assert not equal(watch.weights[2], watch.weights[1])
    assert [line["step"] for line in strict_lines(tmp_path)] == [1, 2]


def test_one_gradient_that_is_infinite_stops_the_run(student_folder: Path, tmp_path: Path) -> None:
    made = trainer(student_folder, tmp_path, max_grad_norm=0.0, save_strategy="no")
    watch = Watch(made, spoiled=0)
    with pytest.raises(TrainingFailed, match=r"step 1: the gradient norm is not finite \(inf\).*'q0', 'q1'\."):
        made.train()
    assert equal(weights(made.model), watch.weights[0])


def test_a_teacher_of_nan_stops_the_run(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    teacher = load_model(teacher_folder)
    with torch.no_grad():
        next(teacher.model.parameters()).fill_(NAN)
    made = trainer(student_folder, tmp_path, teacher, method="multilevel_ot")
    with pytest.raises(TrainingFailed, match=r"step 1: .*distillation is nan.*There is no checkpoint yet\."):
        made.train()


def test_a_wild_learning_rate_ends_with_one_line_and_exit_code_1(
    student_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", "--student", str(student_folder), "--data", str(data_folder), "--method", "sft"]
    words += ["--learning_rate", "1e30", "--max_steps", "6", "--logging_steps", "1", "--output_dir", str(tmp_path)]
    assert main([*words, "--overwrite", "--disable_tqdm", "true"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("crosskd distill: step 2: the loss is not finite: cross_entropy is ")
    assert "--learning_rate" in line
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "trainer_state.json").exists()  # it is not finished
    assert all(line["loss"] for line in strict_lines(tmp_path))


@pytest.mark.parametrize("saving", ["steps", "no"])
def test_weights_that_a_step_made_infinite_are_never_saved(saving: str, student_folder: Path, tmp_path: Path) -> None:
    """Loss and gradients of that step were finite, and no later one would have looked."""
    made = trainer(student_folder, tmp_path, learning_rate=1e-3, save_strategy=saving, max_steps=2)

    class Explosion(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                with torch.no_grad():
                    dict(made.model.named_parameters())["model.norm.weight"].fill_(float("inf"))

    made.add_callback(Explosion())
    with pytest.raises(TrainingFailed, match=r"step 2 made weights that are not finite: model\.norm\.weight") as failed:
        made.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == (["checkpoint-1"] if saving == "steps" else [])
    assert ("checkpoint-1" in str(failed.value)) == (saving == "steps")


def test_frozen_weights_are_not_looked_at() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.fill_(NAN)
        model[1].bias.fill_(NAN)
    assert weights_not_finite(model) == ["0.weight", "1.bias"]
    model[0].requires_grad_(False)
    assert weights_not_finite(model) == ["1.bias"]
    assert weights_not_finite(model.requires_grad_(False)) == []


@pytest.mark.parametrize("spoiled", ["loss", "gradient"])
def test_skip_drops_the_step_and_nothing_else(
    spoiled: str, student_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("crosskd"), "propagate", True)
    made = trainer(student_folder, tmp_path, on_nonfinite="skip", weight_decay=0.1, lr_scheduler_type="linear")
    if spoiled == "loss":
        poison(made, {"q2"})
    watch = Watch(made, spoiled=1 if spoiled == "gradient" else None)
    result = made.train()
    assert equal(watch.weights[2], watch.weights[1])
    assert all(torch.equal(watch.moments[0][key], watch.moments[1][key]) for key in watch.moments[0])
    assert not equal(watch.weights[3], watch.weights[2])
    assert watch.rates == pytest.approx([1e-3 * 2 / 3, 1e-3 / 3, 0])  # the schedule goes on
    lines = strict_lines(tmp_path)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 3]  # nothing is told of the step that was not applied
    assert [line.get("skipped_steps") for line in steps] == [None, 1]
    for line in steps:
        assert line["loss"] == pytest.approx(line["cross_entropy"], rel=1e-6)
        assert line["loss"] > 1
    assert result.training_loss > 0
    assert lines[-1]["train_loss"] == pytest.approx(sum(line["loss"] for line in steps) / 2, rel=1e-6)
    assert "step 2: the " in caplog.text
    assert "The step is dropped" in caplog.text


def test_a_dropped_step_does_not_thin_the_mean_of_the_log(student_folder: Path, tmp_path: Path) -> None:
    every = trainer(student_folder, tmp_path / "every", on_nonfinite="skip", max_steps=4)
    poison(every, {"q2"})
    every.train()
    rare = trainer(student_folder, tmp_path / "rare", on_nonfinite="skip", max_steps=4, logging_steps=4)
    poison(rare, {"q2"})
    rare.train()
    losses = [line["loss"] for line in strict_lines(tmp_path / "every") if "loss" in line]
    assert len(losses) == 3
    [line] = [line for line in strict_lines(tmp_path / "rare") if "loss" in line]
    assert line["loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert line["cross_entropy"] == pytest.approx(line["loss"], rel=1e-6)
    assert line["skipped_steps"] == 1


def test_a_micro_batch_that_is_nan_drops_its_whole_step(student_folder: Path, tmp_path: Path) -> None:
    made = trainer(
        student_folder, tmp_path, on_nonfinite="skip", per_device_train_batch_size=1, gradient_accumulation_steps=2,
    )  # fmt: skip
    poison(made, {"q3"})
    watch = Watch(made)
    made.train()
    assert equal(watch.weights[2], watch.weights[1])
    assert not equal(watch.weights[3], watch.weights[2])
    assert made.terms.skipped == 1


def test_stop_names_only_the_examples_of_the_micro_batch(student_folder: Path, tmp_path: Path) -> None:
    made = trainer(student_folder, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    poison(made, {"q2"})
    with pytest.raises(TrainingFailed, match=r"step 1: .*; examples 'q2'\. The step"):
        made.train()


def test_ten_dropped_steps_in_a_row_stop_the_run(student_folder: Path, tmp_path: Path) -> None:
    made = trainer(
        student_folder, tmp_path, on_nonfinite="skip", max_steps=30, count=60, save_strategy="no", logging_steps=100,
    )  # fmt: skip
    good = {8, 9}  # step 5: nine bad ones, four and then ten, with a good one between
    poison(made, {f"q{i}" for i in range(60) if i not in good})
    with pytest.raises(TrainingFailed, match=rf"step {5 + MOST_IN_A_ROW}: .*{MOST_IN_A_ROW} steps in a row") as failed:
        made.train()
    assert "--on_nonfinite skip" not in str(failed.value)
    assert made.terms.skipped == 4 + MOST_IN_A_ROW - 1


def test_a_resumed_run_goes_on_counting(student_folder: Path, tmp_path: Path) -> None:
    whole = trainer(student_folder, tmp_path, on_nonfinite="skip")
    poison(whole, {"q0"})
    whole.train()
    again = trainer(student_folder, tmp_path, on_nonfinite="skip")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    lines = [line for line in strict_lines(tmp_path) if "loss" in line]
    assert [(line["step"], line["skipped_steps"]) for line in lines] == [(2, 1), (3, 1)]
    assert equal(weights(again.model), weights(whole.model))


def guard(scaler: object | None, calls: list[str]) -> NonFiniteGuard:
    accelerator: Any = SimpleNamespace(scaler=scaler, num_processes=1)
    return NonFiniteGuard(accelerator, lambda: calls.append("begin"), lambda: calls.append("forget"))


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_that_a_scaler_scales_belong_to_the_scaler(scaled: bool, tmp_path: Path) -> None:
    """It finds what overflowed, drops the step and lowers its scale; a loss that is NaN is still ours."""
    model = nn.Linear(2, 2)
    args = DistillationConfig(output_dir=str(tmp_path), method="sft")
    state, control, calls = TrainerState(), TrainerControl(), []
    watcher = guard(object() if scaled else None, calls)

    def step(loss: float, gradient: float) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        watcher.note({"cross_entropy": torch.tensor(loss)}, ["q0"])
        watcher.on_pre_optimizer_step(args, state, control, model=model)

    step(1.0, 1.0)
    if scaled:
        step(1.0, float("inf"))
    else:
        with pytest.raises(TrainingFailed, match="gradient norm"):
            step(1.0, float("inf"))
    with pytest.raises(TrainingFailed, match="cross_entropy is inf"):
        step(float("inf"), 1.0)
    args.on_nonfinite = "skip"
    step(NAN, 1.0)
    assert calls == ["forget"]
    assert all(parameter.grad is None for parameter in model.parameters())
