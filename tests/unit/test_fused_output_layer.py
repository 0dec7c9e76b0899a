"""Students learn with ``--fused_output_layer`` what they learn without; those that it does not fit are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, PreTrainedConfig

from crosskd import DistillationConfig, DistillationTrainer
from crosskd.errors import UsageError
from crosskd.losses import hidden_gradient
from crosskd.losses.base import StudentAnswers
from crosskd.losses.cross_entropy import CrossEntropy
from crosskd.models.adapters import with_lora
from crosskd.models.answer_logits import answer_logits
from crosskd.models.output_layer import FusedOutputLayer
from crosskd.transport import hidden_logits
from crosskd.transport.hidden_logits import HiddenLogits
from helpers_families import FAMILIES, tiny
from helpers_models import SMALL, examples, tiny_model
from helpers_numbers import make_trainer, step_numbers

ANSWER = 4
LABELS = torch.tensor([[7, 8, 9, 10], [11, 12, -100, -100]])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows of logits at a time."""
    monkeypatch.setattr(hidden_logits, "_CPU_BYTES", 1)
    monkeypatch.setattr(hidden_logits, "_LEAST_ROWS", 3)


def batch_of(encoder_decoder: bool = False) -> dict[str, Tensor]:
    ids = torch.randint(5, 400, (2, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    if encoder_decoder:
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :ANSWER]}
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}


def compute(logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    terms = CrossEntropy().terms(StudentAnswers(logits, LABELS, LABELS != -100), None)
    return terms["cross_entropy"] / 6, terms


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gets_the_loss_and_the_gradients_of_its_logits(name: str) -> None:
    """Tied embeddings (the sum of both uses), layers that see all positions, encoders and decoders."""
    model: Any = tiny(name).model.double().train()
    batch = batch_of(FAMILIES[name].encoder_decoder)
    expected, terms = compute(answer_logits(model, batch, ANSWER))
    expected.backward()
    usual = gradients(model)
    model.zero_grad()
    loss, numbers = FusedOutputLayer(model).loss(model, batch, ANSWER, compute)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    assert numbers.keys() == terms.keys()
    assert not numbers["cross_entropy"].requires_grad
    loss.backward()
    ours = gradients(model)
    assert ours.keys() == usual.keys()
    for parameter, gradient in usual.items():
        torch.testing.assert_close(ours[parameter], gradient, rtol=1e-10, atol=1e-10, msg=parameter)
    assert "forward" not in vars(model.get_output_embeddings())


CHANGED: dict[str, PreTrainedConfig] = {
    "softcapping": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, final_logit_softcapping=30.0),
    "scale": CohereConfig(**SMALL, num_key_value_heads=2, logit_scale=0.0625),
    "scaling": GraniteConfig(**SMALL, num_key_value_heads=2, logits_scaling=8.0),
}


@pytest.mark.parametrize("name", CHANGED)
def test_logits_that_are_changed_behind_the_layer_are_refused(name: str) -> None:
    model = AutoModelForCausalLM.from_config(CHANGED[name])  # small weights: softcapping changes the last digits
    with pytest.raises(UsageError, match=r"changes behind its output layer.*leave the flag off"):
        FusedOutputLayer(model).loss(model, batch_of(), ANSWER, compute)


def test_the_same_families_without_the_change_are_not() -> None:
    settings = CHANGED["softcapping"].to_dict() | {"final_logit_softcapping": None}
    model = AutoModelForCausalLM.from_config(Gemma2Config(**settings))
    expected, _ = compute(answer_logits(model, batch_of(), ANSWER))
    loss, _ = FusedOutputLayer(model).loss(model, batch_of(), ANSWER, compute)
    torch.testing.assert_close(loss, expected)


def test_other_layers_are_refused() -> None:
    adapted = with_lora(tiny_model("llama"), rank=2, alpha=2, dropout=0.0, target_modules=["lm_head"])
    with pytest.raises(UsageError, match=r"output layer of type Linear'.*--lora_target_modules"):
        FusedOutputLayer(adapted)
    model: Any = tiny_model("llama")
    model.lm_head.forward = model.lm_head.forward
    with pytest.raises(UsageError, match="forward somebody replaced"):
        FusedOutputLayer(model)
    with pytest.raises(UsageError, match="output layer of type NoneType"):
        FusedOutputLayer(nn.Linear(2, 2))


def test_several_gpus_in_one_process_are_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(UsageError, match=r"DataParallel.*torchrun"):
        FusedOutputLayer(model).loss(nn.DataParallel(model), batch_of(), ANSWER, compute)


def test_a_model_that_uses_its_layer_twice_is_refused() -> None:
    model: Any = tiny_model("llama")
    layer = model.lm_head
    model.register_forward_pre_hook(lambda *_: (layer(torch.zeros(1, 1, 32)), None)[1])
    with pytest.raises(UsageError, match="calls its output layer 2 times"):
        FusedOutputLayer(model).loss(model, batch_of(), ANSWER, compute)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "multilevel_ot", "formulation": "authors"}, "formulation 'authors'"),
        ({"method": "sft", "torch_compile": True}, "torch_compile"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--fused_output_layer: got .*{message}.*leave --fused_output_layer off"):
        DistillationConfig(output_dir=str(tmp_path), fused_output_layer=True, **settings)


def test_outputs_that_a_wrapper_rounds_lose_nothing() -> None:
    """FSDP's mixed precision makes what leaves a model half."""
    model: Any = tiny_model("llama").double()
    expected, _ = compute(answer_logits(model, batch_of(), ANSWER))
    expected.backward()
    usual = gradients(model)
    model.zero_grad()

    def rounds(_model: nn.Module, _inputs: Any, output: Any) -> Any:
        output.logits = output.logits.bfloat16()
        return output

    model.register_forward_hook(rounds)
    loss, _ = FusedOutputLayer(model).loss(model, batch_of(), ANSWER, compute)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    loss.backward()
    for parameter, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, usual[parameter], rtol=1e-10, atol=1e-10)


class SeenLogits(TorchDispatchMode):
    """How often an operator gave as many numbers as the logits of the answers are."""

    def __init__(self, vocabulary: int, rows: int) -> None:
        super().__init__()
        self._vocabulary, self._rows = vocabulary, rows
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, Tensor) and not isinstance(result, HiddenLogits):
            *leading, last = result.shape or (0,)
            self.count += last == self._vocabulary and math.prod(leading) == self._rows
        return result


def test_no_step_makes_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first looks at one sequence, to see what the model does with its logits."""
    monkeypatch.setattr(hidden_gradient, "_CPU_ELEMENTS", 1)
    model = tiny_model("llama")
    fused = FusedOutputLayer(model)
    with SeenLogits(540, 2 * ANSWER) as seen:
        fused.loss(model, batch_of(), ANSWER, compute)[0].backward()
        fused.loss(model, batch_of(), ANSWER, compute)[0].backward()
    assert seen.count == 0
    with SeenLogits(540, 2 * ANSWER) as seen:
        compute(answer_logits(model, batch_of(), ANSWER))[0].backward()
    assert seen.count > 0


METHODS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "uld": {"method": "uld", "top_entries": 20, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "mined": {"method": "mined", "top_entries": 20},
    "multilevel_ot": {"method": "multilevel_ot", "top_k": 10, "matching": "greedy", "gradient_checkpointing": True},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_the_trainer_logs_and_learns_the_same(
    name: str, student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    usual, ours = (
        step_numbers(make_trainer(student_folder, teacher_folder, tmp_path / str(fused), **METHODS[name], **flag))
        for fused in (False, True)
        for flag in [{"fused_output_layer": fused}]
    )
    assert ours["logged"].keys() == usual["logged"].keys()
    for term, value in usual["logged"].items():
        assert ours["logged"][term] == pytest.approx(value, rel=1e-10, abs=1e-10), term
    assert ours["gradients"].keys() == usual["gradients"].keys()
    for parameter, gradient in usual["gradients"].items():
        torch.testing.assert_close(ours["gradients"][parameter], gradient, rtol=1e-10, atol=1e-10)


def trained(student: Path, folder: Path, **settings: Any) -> DistillationTrainer:
    config = DistillationConfig(
        output_dir=str(folder), method="sft", max_steps=5, logging_steps=1, learning_rate=1e-3, save_strategy="no",
        per_device_train_batch_size=2, disable_tqdm=True, **settings,
    )  # fmt: skip
    trainer = DistillationTrainer(str(student), None, config, examples(6), examples(8)[6:])
    trainer.train()
    return trainer


def losses(trainer: DistillationTrainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({}, 1e-5),
        # dropout: the look at the first sequence must draw no numbers from the stream of the steps
        ({"peft": "lora", "lora_target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.3}, 1e-5),
        ({"bf16": True}, 2e-2),  # eight bits, in every layer
    ],
    ids=["whole", "lora", "bf16"],
)
def test_five_steps_in_low_precision(
    settings: dict[str, Any], tolerance: float, student_folder: Path, tmp_path: Path
) -> None:
    usual, ours = (
        trained(student_folder, tmp_path / str(fused), fused_output_layer=fused, **settings) for fused in (False, True)
    )
    assert losses(ours) == pytest.approx(losses(usual), rel=tolerance)
    assert losses(ours)[-1] < losses(ours)[0]
    if "bf16" not in settings:
        for (name, weight), (_, other) in zip(
            ours.model.named_parameters(), usual.model.named_parameters(), strict=True
        ):
            torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4, msg=name)
    # what is not trained on comes with logits, as before
    assert ours.predict(examples(2)).predictions.shape[-1] == 540
    assert ours.evaluate()["eval_loss"] == pytest.approx(usual.evaluate()["eval_loss"], rel=tolerance)


@pytest.mark.parametrize(
    ("settings", "dtype"), [({}, torch.float32), ({"bf16": True}, torch.bfloat16)], ids=["float32", "bf16"]
)
def test_the_method_of_a_trainer_gets_hidden_states(
    settings: dict[str, Any], dtype: torch.dtype, student_folder: Path, tmp_path: Path
) -> None:
    """Under autocast of float32 weights in the dtype in which the layer itself would compute."""
    seen: list[Tensor] = []
    trainer = make_trainer(student_folder, None, tmp_path, method="sft", fused_output_layer=True, **settings)
    trainer.model.float()
    trainer.method = _watched(trainer.method, lambda student: seen.append(student.logits))
    trainer.train()
    [logits] = seen
    assert isinstance(logits, HiddenLogits)
    assert logits.dtype == dtype
    assert logits.weight.dtype == torch.float32


def _watched(method: Any, look: Callable[[StudentAnswers], object]) -> Any:
    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(method, name)

        def terms(self, student: StudentAnswers, targets: Any) -> dict[str, Tensor]:
            look(student)
            return method.terms(student, targets)

    return Watched()
