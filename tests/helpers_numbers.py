"""The numbers of one training step or one evaluation, in one process or as one of several that ``torchrun`` starts.

As a script it measures, in every process, what the JSON file that it is given asks for, and saves it beside that file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from crosskd import DistillationConfig, DistillationTrainer, load_model
from crosskd.errors import TrainingFailed
from helpers_fused import sharded_numbers
from helpers_models import examples

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "uld": {"method": "uld", "top_entries": 20},
    "mined": {"method": "mined", "top_entries": 20},
    "multilevel_ot": {"method": "multilevel_ot", "top_k": 10},
    "authors": {"method": "multilevel_ot", "top_k": 10, "formulation": "authors"},
}
LOGGED = ("loss", "grad_norm", "learning_rate")


def make_trainer(student: Path, teacher: Path | None, output: Path, **settings: Any) -> DistillationTrainer:
    """A trainer of float64 models on examples whose answers differ in length, in their order, without clipping."""
    devices = settings.pop("n_gpu", None)
    rows, evaluated = settings.pop("rows", 4), settings.pop("evaluated", 0)
    config = DistillationConfig(
        output_dir=str(output),
        **{
            "max_steps": 1, "logging_steps": 1, "learning_rate": 1e-3, "max_grad_norm": 0.0, "save_strategy": "no",
            "number_few_shot": 1, "train_sampling_strategy": "sequential", "disable_tqdm": True, **settings,
        },
    )  # fmt: skip
    if devices is not None:
        config._n_gpu = devices  # DataParallel hands everything through where there is no GPU
    loaded = load_model(student)
    loaded.model.double()
    live = load_model(teacher) if teacher is not None and config.method != "sft" else None
    if live is not None:
        live.model.double()
    held_out = examples(4 + evaluated)[4:] if evaluated else None
    return DistillationTrainer(loaded, live, config, examples(rows), held_out)


class _Gradients(TrainerCallback):
    """Keeps the gradients of the last step."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self._trainer = trainer
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        named = self._trainer.model.named_parameters()
        self.found = {name: p.grad.clone() for name, p in named if p.grad is not None}


def step_numbers(trainer: DistillationTrainer) -> dict[str, Any]:
    """What is logged of the first step, by name, and its gradients."""
    gradients = _Gradients(trainer)
    trainer.add_callback(gradients)
    trainer.train()
    line = next(line for line in trainer.state.log_history if "loss" in line)
    return {"logged": {name: value for name, value in line.items() if name != "epoch"}, "gradients": gradients.found}


def poison(trainer: DistillationTrainer, ids: set[str], term: str = "cross_entropy") -> None:
    """Make a term NaN in every batch that holds one of some examples."""
    compute, method = trainer.compute_loss, trainer.method

    class Poisoned:
        bad = False

        def __getattr__(self, name: str) -> Any:
            return getattr(method, name)

        def terms(self, *arguments: Any) -> dict[str, torch.Tensor]:
            terms = method.terms(*arguments)
            return {**terms, term: terms[term] * float("nan")} if self.bad else terms

    poisoned = Poisoned()

    def with_nan(model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        poisoned.bad = bool(ids.intersection(inputs["ids"]))
        return compute(model, inputs, *arguments, **options)

    trainer.method = poisoned  # pyright: ignore[reportAttributeAccessIssue]
    trainer.compute_loss = with_nan  # pyright: ignore[reportAttributeAccessIssue]


def measure(job: dict[str, Any], student: Path, teacher: Path, output: Path) -> dict[str, Any]:
    """One job: ``kind`` is ``step``, ``evaluate``, ``poisoned`` or ``sharded``; the rest are settings."""
    settings = dict(job)
    kind = settings.pop("kind")
    if kind == "sharded":
        return sharded_numbers(**settings)
    trainer = make_trainer(student, teacher, output, **settings)
    if kind == "step":
        return step_numbers(trainer)
    if kind == "evaluate":
        return {"metrics": trainer.evaluate(), "tokens": answer_tokens(trainer)}
    poison(trainer, {"q3"})
    try:
        trainer.train()
    except TrainingFailed as error:
        return {"error": str(error)}
    return {"error": None}


def answer_tokens(trainer: DistillationTrainer) -> list[int]:
    """Answer tokens of each batch of this process."""
    return [int((batch["labels"] != -100).sum()) for batch in trainer.get_eval_dataloader()]


def main(jobs: Path, student: Path, teacher: Path) -> None:
    """Measure all jobs of a file; every process saves its own numbers."""
    import warnings

    warnings.simplefilter("ignore")
    found = {}
    for name, job in json.loads(jobs.read_text()).items():
        found[name] = measure(job, student, teacher, jobs.parent / f"run-{name}")
    torch.save(found, jobs.parent / f"numbers-{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(*map(Path, sys.argv[1:]))
