"""Training on a GPU: losses that never wait for it, and half-precision logits that are never copied to float32.

Run with ``TRITON_INTERPRET=0 pytest -m gpu tests/gpu``.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig

from crosskd import DistillationConfig, DistillationTrainer
from crosskd.models.load import LoadedModel
from crosskd.training import trainer as trainer_module
from helpers_gpu import GPU, counted_waits, no_waits
from helpers_models import SMALL
from helpers_steps import METHODS, Step
from helpers_tokenizers import byte_level_tokenizer

pytestmark = GPU

VOCABULARY = 60_000
BATCH, ANSWER = 4, 256
LOGITS = BATCH * ANSWER * VOCABULARY


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in METHODS if name != "exact"])
def test_a_loss_and_its_gradient_never_wait(name: str, dtype: torch.dtype) -> None:
    step = Step(name, dtype, "cuda", vocabulary=5_000)
    step.gradient(step.targets())  # kernels are compiled
    with no_waits():
        targets = step.targets()
        gradient = step.gradient(targets)
    assert gradient.dtype == dtype
    assert bool(gradient.isfinite().all() and gradient.any())


def test_exact_matching_waits_for_one_transfer_each_way() -> None:
    step = Step("exact", torch.bfloat16, "cuda", vocabulary=5_000)
    targets = step.targets()
    step.gradient(targets)
    with counted_waits() as found:
        step.gradient(targets)
    assert len(found) <= 2, found


@pytest.mark.parametrize("name", [name for name in METHODS if name != "exact"])
def test_gradients_are_those_of_the_torch_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: no number of it is close enough to another to be ranked otherwise."""
    found = []
    for kernels in ("triton", "torch"):
        monkeypatch.setenv("CROSSKD_KERNELS", kernels)
        step = Step(name, torch.float64, "cuda", vocabulary=5_000)
        found.append(step.gradient(step.targets()))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def loaded(seed: int) -> LoadedModel:
    """A small model with a vocabulary so large that its logits outweigh all else."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{**SMALL, "vocab_size": VOCABULARY}, num_key_value_heads=2, max_position_embeddings=ANSWER + 64
    )
    return LoadedModel(AutoModelForCausalLM.from_config(config), byte_level_tokenizer(), f"random-{seed}")


def tokens(rows: int) -> Dataset:
    generator, known = torch.Generator().manual_seed(0), len(byte_level_tokenizer())

    def draw(count: int) -> list[int]:
        return torch.randint(10, known, (count,), generator=generator).tolist()

    sides = ("student", "teacher")
    return Dataset.from_list(
        [
            {f"{side}_{part}_ids": draw(16 + row if part == "prompt" else ANSWER - row) for side in sides for part in
             ("prompt", "answer")}
            for row in range(rows)
        ]
    )  # fmt: skip


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., DistillationTrainer]:
    def made(**settings: Any) -> DistillationTrainer:
        config = DistillationConfig(
            output_dir=str(tmp_path / "run"),
            **{
                "max_steps": 3, "logging_steps": 1, "learning_rate": 1e-3, "save_strategy": "no", "disable_tqdm": True,
                "per_device_train_batch_size": BATCH, "train_sampling_strategy": "sequential", **settings,
            },
        )  # fmt: skip
        teacher = None if config.method == "sft" else loaded(2)
        return DistillationTrainer(loaded(1), teacher, config, tokens(2 * BATCH))

    return made


def trained(make: Callable[[], DistillationTrainer]) -> tuple[list[float], int]:
    """The losses of a run, and the most bytes that it held at once."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer = make()
    trainer.train()
    return losses(trainer), torch.cuda.max_memory_allocated() - before


def losses(trainer: DistillationTrainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["sft", "uld", "multilevel_ot"])
def test_a_step_in_half_precision_holds_no_float32_logits(
    method: str, precision: str, make: Callable[..., DistillationTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With accelerate's conversion there are a float32 copy and its float32 gradient, four times the half logits."""
    run = partial(make, method=method, **{precision: True})
    found, least = trained(run)
    monkeypatch.setattr(trainer_module, "keep_logits_half", lambda _: None)
    expected, most = trained(run)
    assert most - least > 2 * LOGITS, f"{least / 2**20:.0f} MiB; {most / 2**20:.0f} MiB with the conversion"
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("method", ["sft", "uld", "mined", "multilevel_ot"])
def test_a_step_of_the_trainer_never_waits_for_its_loss(
    method: str, make: Callable[..., DistillationTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the batch to the last gradient, but for what models wait for: transformers looks for padding in masks."""
    trainer = make(method=method, bf16=True)
    steps = {"loss": 0, "back": 0}
    compute, back, logits = trainer._loss_and_terms, trainer.accelerator.backward, trainer_module.targets_from_logits

    def watching(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            steps[name] = steps.get(name, 0) + 1
            if steps[name] == 1:  # kernels are compiled
                return function(*arguments, **options)
            with no_waits():
                return function(*arguments, **options)

        return run

    monkeypatch.setattr(trainer, "_loss_and_terms", watching("loss", compute))
    monkeypatch.setattr(trainer.accelerator, "backward", watching("back", back))
    monkeypatch.setattr(trainer_module, "targets_from_logits", watching("targets", logits))
    trainer.train()
    assert steps == {"loss": 3, "back": 3, **({} if method == "sft" else {"targets": 3})}


def test_batches_reach_the_gpu_without_a_wait(make: Callable[..., DistillationTrainer]) -> None:
    loader = make(method="multilevel_ot", bf16=True).get_train_dataloader()
    for _ in loader:  # page-locked memory is allocated
        pass
    with no_waits():
        batches = list(loader)
    assert all(batch["labels"].is_cuda and batch["teacher"]["labels"].is_cuda for batch in batches)


def test_float16_training_keeps_its_scaler(make: Callable[..., DistillationTrainer]) -> None:
    """The losses of a float32 run; and a step whose gradients overflow is skipped and lowers the scale."""
    plain, half = make(method="multilevel_ot"), make(method="multilevel_ot", fp16=True)
    for trainer in (plain, half):
        trainer.train()
    assert losses(half) == pytest.approx(losses(plain), rel=1e-2)
    assert half.accelerator.scaler is not None
    overflowing = make(method="multilevel_ot", fp16=True, max_steps=1)
    scaler = overflowing.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60)
    model = overflowing.participants.student.model
    before = {name: value.clone().cpu() for name, value in model.state_dict().items()}
    overflowing.train()
    assert all(torch.equal(model.state_dict()[name].cpu(), value) for name, value in before.items())
    assert scaler.get_scale() < 2.0**60
