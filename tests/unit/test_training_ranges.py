"""Settings of training that cannot be: said when the configuration is made, from Python as from the command line."""

from __future__ import annotations

import pytest

from crosskd.errors import UsageError
from crosskd.training.config import DistillationConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate: got -1.0; expected 0 or more"),
        ({"learning_rate": float("nan")}, "learning_rate: got 'nan'; expected a finite number"),
        ({"distillation_weight": float("inf")}, "distillation_weight: got 'inf'"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"adam_beta2": 1.0}, "adam_beta2: got 1.0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"num_train_epochs": 0}, "num_train_epochs: got 0; expected more than 0"),
        ({"max_steps": 0}, "max_steps: got 0"),
        ({"max_steps": -7}, "max_steps: got -7"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"seed": 2**32}, "seed"),
        ({"data_seed": -1}, "data_seed"),
        ({"save_total_limit": 0}, "save_total_limit"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type cosine_with_min_lr: .*lr_scheduler_kwargs"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"steep": 1}}, "polynomial: .*steep"),
        ({"lr_scheduler_kwargs": "min_lr=1"}, "lr_scheduler_kwargs: got 'min_lr=1'; expected a JSON object"),
        ({"report_to": "wandbb"}, r"report_to: got 'wandbb'; .*did you mean 'wandb'\?"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        DistillationConfig(output_dir=str(tmp_path / "out"), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_steps": 5, "num_train_epochs": 0},
        {"learning_rate": 0.0},
        {"warmup_steps": 0.1, "lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-7}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr_rate": 0.1}'},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 3}},
        {"save_total_limit": None, "eval_steps": 0.5, "logging_steps": 0.1},
    ],
)
def test_settings_that_can_be_are_taken(tmp_path, settings):
    DistillationConfig(output_dir=str(tmp_path / "out"), **settings)
    assert not (tmp_path / "out").exists()
