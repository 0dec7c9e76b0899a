"""Mixed precision: the logits of both models reach the losses in half precision, and nothing else changes by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from crosskd import DistillationConfig, DistillationTrainer, load_model
from crosskd.losses import StudentAnswers, create_method, targets_from_logits
from crosskd.training import trainer as trainer_module
from crosskd.training.half_precision import without_conversion
from crosskd.transport import softmax_statistics
from helpers_models import examples, tiny_model
from helpers_numbers import METHODS, step_numbers
from helpers_tolerances import rounding

VOCABULARY = 540
# two layers of about twelve operations round their results; a loss is the mean over about 20 tokens
ROUNDED = rounding(torch.bfloat16, 24) / 20**0.5


@pytest.fixture
def make(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> Callable[..., DistillationTrainer]:
    """Makes trainers of one step on four examples, with a live teacher where the method asks one."""

    def made(**settings: Any) -> DistillationTrainer:
        config = DistillationConfig(
            output_dir=str(tmp_path / "run"),
            **{
                "max_steps": 1, "logging_steps": 1, "learning_rate": 1e-3, "save_strategy": "no", "number_few_shot": 1,
                "per_device_train_batch_size": 4, "train_sampling_strategy": "sequential", "disable_tqdm": True,
                "bf16": True, "use_cpu": True, **settings,
            },
        )  # fmt: skip
        live = None if config.method == "sft" else load_model(teacher_folder)
        student = load_model(student_folder)
        return DistillationTrainer(student, live, config, examples(4), examples(6)[4:])

    return made


@pytest.fixture
def with_conversion(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Leaves models as accelerate prepares them."""
    return lambda: monkeypatch.setattr(trainer_module, "keep_logits_half", lambda _: None)


class Seen:
    """The dtypes of logits that reach the losses, by whose they are."""

    def __init__(self, trainer: DistillationTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dtypes: dict[str, set[torch.dtype]] = {}
        method, targets = trainer.method, trainer_module.targets_from_logits
        cross_entropy = trainer_module.answer_cross_entropy

        note = self.note

        class Watched:
            def __getattr__(self, name: str) -> Any:
                return getattr(method, name)

            def terms(self, student: StudentAnswers, *arguments: Any) -> dict[str, Tensor]:
                note("student", student.logits)
                return method.terms(student, *arguments)

        trainer.method = Watched()  # pyright: ignore[reportAttributeAccessIssue]
        for name, function, who in (
            ("targets_from_logits", targets, "teacher"),
            ("answer_cross_entropy", cross_entropy, "evaluated"),
        ):
            monkeypatch.setattr(trainer_module, name, self.watching(function, who))

    def watching(self, function: Callable[..., Any], who: str) -> Callable[..., Any]:
        def watched(logits: Tensor, *arguments: Any, **options: Any) -> Any:
            self.note(who, logits)
            return function(logits, *arguments, **options)

        return watched

    def note(self, who: str, logits: Tensor) -> None:
        self.dtypes.setdefault(who, set()).add(logits.dtype)


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_logits_of_both_models_are_half(
    settings: dict[str, Any], make: Callable[..., DistillationTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(**settings)
    seen = Seen(trainer, monkeypatch)
    trainer.train()
    trainer.evaluate()
    expected = {"student", "evaluated"} | ({"teacher"} if settings["method"] != "sft" else set())
    assert seen.dtypes == {who: {torch.bfloat16} for who in expected}


@pytest.mark.parametrize(
    "settings",
    [
        {"torch_compile": True, "torch_compile_backend": "eager"},
        {"gradient_checkpointing": True},
        {"peft": "lora", "lora_rank": 2},
        {"freeze_layers": 1},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_whatever_wraps_the_student(
    settings: dict[str, Any], make: Callable[..., DistillationTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(method="multilevel_ot", top_k=10, **settings)
    seen = Seen(trainer, monkeypatch)
    trainer.train()
    assert seen.dtypes == {"student": {torch.bfloat16}, "teacher": {torch.bfloat16}}
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 1


class Largest(TorchDispatchMode):
    """The most elements of a float32 tensor (a, b, V); weights have two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.by = ""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.ndim != 3:
                continue
            if value.shape[-1] == VOCABULARY and value.numel() > self.elements:
                self.elements, self.by = value.numel(), str(function)
        return result


def largest_of_a_step(trainer: DistillationTrainer) -> tuple[Largest, int]:
    """The largest float32 tensor of a step, and the elements of its logits."""
    trainer.args.max_steps = 1
    compute, sizes = trainer.compute_loss, list[int]()
    spy = Largest()

    def computed(model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(inputs["labels"].numel() * VOCABULARY)
        return compute(model, inputs, *arguments, **options)

    trainer.compute_loss = computed  # pyright: ignore[reportAttributeAccessIssue]
    with spy:
        trainer.train()
    return spy, min(sizes)


@pytest.mark.parametrize("name", ["sft", "uld", "mined", "multilevel_ot"])  # the authors' formulation needs a copy
def test_no_float32_array_of_all_logits_is_made(
    name: str, make: Callable[..., DistillationTrainer], monkeypatch: pytest.MonkeyPatch,
    with_conversion: Callable[[], None],
) -> None:  # fmt: skip
    monkeypatch.setattr(softmax_statistics, "_CPU_CHUNK_ELEMENTS", 2 * VOCABULARY)  # what is held at once: two tokens
    spy, logits = largest_of_a_step(make(**METHODS[name]))
    assert 0 < spy.elements <= 4 * VOCABULARY < logits / 2, spy.by  # and a sum of probabilities for each sequence
    with_conversion()
    spy, logits = largest_of_a_step(make(**METHODS[name]))
    assert spy.elements >= logits, "the spy does not see the copy that accelerate makes"


@pytest.mark.parametrize("name", ["sft", "mined", "multilevel_ot", "authors"])
def test_numbers_are_those_of_the_float32_copies(
    name: str, make: Callable[..., DistillationTrainer], with_conversion: Callable[[], None]
) -> None:
    """A copy of rounded numbers is no more precise; only their gradient is rounded sooner."""
    half, plain = step_numbers(make(**METHODS[name])), step_numbers(make(**METHODS[name], bf16=False))
    with_conversion()
    copied = step_numbers(make(**METHODS[name]))
    for term in ("loss", "cross_entropy", "distillation"):
        assert half["logged"][term] == pytest.approx(copied["logged"][term], rel=1e-6, abs=1e-6), term
        assert half["logged"][term] == pytest.approx(plain["logged"][term], rel=ROUNDED, abs=1e-6), term
    assert half["logged"]["loss"] != plain["logged"]["loss"]
    for parameter, gradient in copied["gradients"].items():
        difference = (half["gradients"][parameter] - gradient).norm()
        assert difference <= 4 * torch.finfo(torch.bfloat16).eps * gradient.norm(), parameter


def test_a_float32_run_is_the_same_to_the_last_bit(
    make: Callable[..., DistillationTrainer], with_conversion: Callable[[], None]
) -> None:
    ours = step_numbers(make(**METHODS["multilevel_ot"], bf16=False))
    with_conversion()
    plain = step_numbers(make(**METHODS["multilevel_ot"], bf16=False))
    assert ours["logged"] == plain["logged"]
    assert ours["gradients"].keys() == plain["gradients"].keys()
    assert all(torch.equal(ours["gradients"][name], value) for name, value in plain["gradients"].items())


def test_evaluation_and_answers_are_those_of_the_float32_copies(
    make: Callable[..., DistillationTrainer], with_conversion: Callable[[], None]
) -> None:
    settings = {"method": "sft", "predict_with_generate": True, "generation_max_new_tokens": 4, "max_steps": 2}
    trainer = make(**settings, eval_strategy="epoch")
    trainer.train()
    ours = trainer.evaluate()
    with_conversion()
    other = make(**settings, eval_strategy="epoch")
    other.train()
    plain = other.evaluate()
    for name in ("eval_loss", "eval_f1", "eval_rougeL"):
        assert ours[name] == pytest.approx(plain[name], rel=1e-3), name
    student: Any = trainer.accelerator.unwrap_model(trainer.model)
    assert torch.equal(student.generate(torch.arange(5, 9)[None], max_new_tokens=3, do_sample=False)[0, :4],
                       torch.arange(5, 9))  # fmt: skip


def test_a_resumed_run_in_bfloat16_equals_the_undisturbed_one(make: Callable[..., DistillationTrainer]) -> None:
    settings = {**METHODS["multilevel_ot"], "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    whole = make(**settings)
    whole.train()
    folder = Path(str(whole.args.output_dir)) / "checkpoint-1"
    resumed = make(**settings)
    resumed.train(str(folder))
    losses = [[line["loss"] for line in run.state.log_history if "loss" in line] for run in (whole, resumed)]
    assert losses[0] == losses[1]
    first, second = (run.participants.student.model.state_dict() for run in (whole, resumed))
    assert all(torch.equal(second[name], value) for name, value in first.items())


@pytest.mark.parametrize("wrap", ["plain", "ddp", "compiled", "compiled ddp"])
def test_the_conversion_comes_off_under_any_wrapper(
    wrap: str, make: Callable[..., DistillationTrainer], with_conversion: Callable[[], None], tmp_path: Path
) -> None:
    with_conversion()
    accelerator = make(method="sft").accelerator
    model: nn.Module = accelerator.prepare_model(tiny_model("llama", seed=3))
    ids = torch.arange(5, 15)[None]
    assert model(ids).logits.dtype == torch.float32
    expected = model(ids).logits
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model) if "ddp" in wrap else model
        wrapped = torch.compile(wrapped, backend="eager") if "compiled" in wrap else wrapped
        assert isinstance(wrapped, nn.Module)
        for _ in range(2):  # the second time there is nothing to do
            assert without_conversion(wrapped) is wrapped
            logits = wrapped(ids).logits
            assert logits.dtype == torch.bfloat16
            assert torch.equal(logits.float(), expected)
    finally:
        torch.distributed.destroy_process_group()


class Scaled(nn.Module):
    """A float16 output layer whose logits go into a method, as autocast makes them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(16, 60, bias=False)
        self.states = torch.randn(3, 6, 16)
        self.labels = torch.randint(0, 60, (3, 6))
        self.teacher = torch.randn(3, 5, 50)
        self.mask = torch.arange(5) < torch.tensor([5, 3, 2])[:, None]

    def loss(self, name: str, dtype: torch.dtype, enabled: bool) -> Tensor:
        method = create_method(name, **({} if name == "sft" else {"top_k": 8}))
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            logits = self.layer(self.states)
        assert logits.dtype == dtype
        request = method.request()
        targets = None if request is None else targets_from_logits(self.teacher.to(dtype), self.mask, request)
        terms = method.terms(StudentAnswers(logits, self.labels, torch.ones(3, 6, dtype=torch.bool)), targets)
        return (terms["cross_entropy"] + terms["distillation"]) / 18


@pytest.mark.parametrize("name", ["sft", "multilevel_ot"])
def test_float16_gradients_under_a_scaler(name: str) -> None:
    """What ``--fp16`` does on a GPU: a scaled loss has the float32 gradient, and one that overflows skips its step."""
    model = Scaled(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.loss(name, torch.float32, enabled=False).backward()
    weight = model.layer.weight
    assert weight.grad is not None
    plain = weight.grad.clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer.zero_grad()
    scaler.scale(model.loss(name, torch.float16, enabled=True)).backward()
    scaler.unscale_(optimizer)
    assert (weight.grad - plain).norm() <= 8 * torch.finfo(torch.float16).eps * plain.norm()
    before = weight.detach().clone()
    for scale, moves in ((2.0**30, False), (2.0**12, True)):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer.zero_grad()
        scaler.scale(model.loss(name, torch.float16, enabled=True)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(weight, before) is not moves
        assert (scaler.get_scale() < scale) is not moves
