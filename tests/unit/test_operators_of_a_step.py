"""The operators of a loss and its gradient: none depends on data, and they are few.

An operator whose size or course depends on data makes a GPU wait for the host, or the host for it. Each starts a kernel
or more, and for small batches starting them is most of the time. Both is seen on a CPU: by listing what is dispatched,
and by running the path of the Triton kernels on tensors without data, the kernels themselves left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from crosskd import DistillationConfig, DistillationTrainer, load_model
from crosskd.losses.levels import MatchedColumns, sinkhorn_of_tokens
from crosskd.losses.mined import MinED
from helpers_models import examples
from helpers_steps import METHODS, Step

# Operators that compute something, of a loss with its gradient and targets at hand: (path of torch, on the path of the
# kernels, kernels). Measured, and a tenth more; a number that grows is to be explained, not raised.
MOST: dict[str, tuple[int, int, int]] = {
    "sft": (36, 5, 3),
    "uld": (81, 46, 5),
    "mined": (162, 141, 3),
    "mined published": (180, 159, 3),
    "fast": (380, 3, 8),
    "greedy": (792, 7, 9),
    "exact": (514, 7, 8),
    "envelope": (241, 3, 8),
    "no truncation": (392, 341, 6),
    "ranking by token": (376, 82, 6),
    "sinkhorn by token": (328, 278, 6),
    "authors": (332, 128, 10),
    "authors greedy": (373, 174, 8),
}

# What these wait for on a CPU without kernels, where waiting is free.
ALLOWED = {
    "greedy": {"equal", "index", "_unique2"},
    "exact": {"equal", "index", "_unique2", "tolist", "numpy", "cpu", "lift_fresh"},
    "sinkhorn by token": {"index", "index_put"},
}

_BY_DATA = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal",
    "is_nonzero", "bincount", "lift_fresh",
}  # fmt: skip
_TO_HOST = {Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu}
_FREE = {"detach", "alias", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh"}


class Operators(TorchDispatchMode):
    """What is dispatched: operators that compute, counted, and those that wait for data, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.waits: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = function._schema.name.partition("::")
        if space != "prim" and not function.is_view and name not in _FREE:
            self.counts[name] += 1
        if name in _BY_DATA or (name.startswith("index") and _has_mask(args)):
            self.waits.add(name)  # `torch.tensor(list)` on a GPU, and an index that is a list, are `lift_fresh`
        return function(*args, **(kwargs or {}))


class HostReads(TorchFunctionMode):
    """Methods that give Python or numpy the numbers of a tensor; not all of them are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _TO_HOST:
            self.waits.add(func.__name__)
        return func(*args, **(kwargs or {}))


def _has_mask(arguments: Any) -> bool:
    """Whether an index operator got a mask."""
    indices = next((each for each in arguments[1:] if isinstance(each, list | tuple)), ())
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


@contextmanager
def watched() -> Iterator[tuple[Operators, HostReads]]:
    operators, reads = Operators(), HostReads()
    with reads, operators:
        yield operators, reads


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Chooses the path of the kernels and starts none; names of those that would have been started."""
    from crosskd.kernels import launch, matching

    started: list[str] = []

    def note(kernel: Any, *_: Any, **__: Any) -> None:
        started.append(kernel.fn.__name__)

    def on_host(columns: Any, *_: Any) -> Tensor:
        """`exact` solves its assignments on the host: one transfer there, one back."""
        near = matching.nearest_columns(columns)
        return near[:, 0]

    monkeypatch.setenv("CROSSKD_KERNELS", "triton")
    monkeypatch.setattr(launch, "launch", note)
    monkeypatch.setattr(matching, "match_exactly", on_host)
    return started


@pytest.mark.parametrize("name", METHODS)
def test_nothing_waits_for_data_in_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSKD_KERNELS", "torch")
    step = Step(name)
    with watched() as (operators, reads):
        targets = step.targets()
    assert operators.waits | reads.waits == set(), "targets of a live teacher"
    with watched() as (operators, reads):
        step.gradient(targets)
    assert operators.waits | reads.waits <= ALLOWED.get(name, set())
    total = operators.counts.total()
    assert total <= MOST[name][0], f"{total} operators: {operators.counts.most_common()}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_nothing_waits_for_data_around_the_kernels(name: str, dtype: torch.dtype, launches: list[str]) -> None:
    with FakeTensorMode():
        step = Step(name, dtype, whole=True)
        with watched() as (operators, reads):
            targets = step.targets()
        assert operators.waits | reads.waits == set(), "targets of a live teacher"
        launches.clear()
        with watched() as (operators, reads):
            gradient = step.gradient(targets)
    assert operators.waits | reads.waits == set()
    assert (gradient.shape, gradient.dtype) == (step.logits.shape, dtype)
    total = operators.counts.total()
    assert total <= MOST[name][1], f"{total} operators: {operators.counts.most_common()}"
    assert 0 < len(launches) <= MOST[name][2], f"{len(launches)} kernels: {launches}"


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: int(x.amax()),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put((x > 0,), torch.zeros(())),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x + 1),
        lambda x: x[[0, 1]],
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.tensor([1.0, 2.0]).to(x.device),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
    ],
)
def test_what_waits_is_seen(look: Callable[[Tensor], object]) -> None:
    with watched() as (operators, reads):
        look(torch.arange(5.0))
    assert operators.waits | reads.waits


@pytest.mark.parametrize(
    "look", [lambda x: x[..., 1:], lambda x: x[x.argsort()], lambda x: x.gather(0, x.argsort()), lambda x: x / 2.0]
)
def test_what_does_not_wait_is_let_through(look: Callable[[Tensor], object]) -> None:
    with watched() as (operators, reads):
        look(torch.arange(5.0))
    assert not operators.waits | reads.waits
    with FakeTensorMode():
        look(torch.arange(5.0))


def test_tensors_without_data_cannot_be_read() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        bool(torch.ones(()) > 0)


@pytest.mark.parametrize("plan_gradient", ["unrolled", "envelope"])
def test_transport_of_tokens_by_masks_is_that_by_choice(plan_gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    teacher = torch.rand(3, 6, 8, dtype=torch.float64)
    student = torch.rand(3, 5, 8, dtype=torch.float64).requires_grad_()
    masks = [torch.arange(n) < torch.tensor(lengths)[:, None] for n, lengths in ((6, [6, 2, 0]), (5, [3, 5, 4]))]
    columns = MatchedColumns(teacher, student, *masks)
    found = []
    for kernels in ("torch", "triton"):
        monkeypatch.setenv("CROSSKD_KERNELS", kernels)
        value = sinkhorn_of_tokens(columns, 0.1, 20, plan_gradient)
        found.append((value, *torch.autograd.grad(value, student)))
    for chosen, masked in zip(*found, strict=True):
        torch.testing.assert_close(masked, chosen, rtol=1e-12, atol=1e-15)
    assert found[0][0] > 0


def test_the_vocabulary_map_is_copied_once_a_device() -> None:
    step = Step("mined")
    assert isinstance(step.method, MinED)
    table = step.method.vocabulary_map
    assert table is not None
    copies: list[Any] = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            copies.extend([function] if (kwargs or {}).get("device") == torch.device("meta") else [])
            return function(*args, **(kwargs or {}))

    ids = torch.zeros(3, 7, 4, dtype=torch.int64, device="meta")
    with Copies():
        for _ in range(3):
            assert step.method._map(ids, 300).is_meta
    assert len(copies) == 1
    assert step.method.vocabulary_map is table
    again = step.method.with_vocabulary_map(torch.full_like(table, -1))
    assert bool((again._map(torch.zeros(1, 1, 1, dtype=torch.int64), 300) == -1).all())


@pytest.mark.parametrize("method", ["sft", "mined", "multilevel_ot"])
def test_a_step_of_the_trainer_waits_once(
    method: str, student_folder: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss, its targets and its log wait for nothing; the look at gradients before the optimizer waits once.

    What models wait for is theirs: transformers looks whether a mask has padding.
    """
    config = DistillationConfig(
        output_dir=str(tmp_path), method=method, max_steps=2, logging_steps=2, save_strategy="no", number_few_shot=1,
        disable_tqdm=True,
    )  # fmt: skip
    live = None if method == "sft" else load_model(teacher_folder)
    trainer = DistillationTrainer(load_model(student_folder), live, config, examples(4))
    found: dict[str, list[Any]] = {"loss": [], "look": []}

    def watching(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            with watched() as (operators, reads):
                result = function(*arguments, **options)
            found[name].append([*operators.waits, *reads.waits, operators.counts["_local_scalar_dense"]])
            return result

        return run

    def logits(model: nn.Module, batch: dict[str, Tensor], length: int) -> Tensor:
        return next(model.parameters()).sum() + torch.zeros(len(batch["input_ids"]), length, 540)

    monkeypatch.setattr("crosskd.training.trainer.answer_logits", logits)
    monkeypatch.setattr(trainer, "compute_loss", watching("loss", trainer.compute_loss))
    monkeypatch.setattr(trainer.guard, "on_pre_optimizer_step", watching("look", trainer.guard.on_pre_optimizer_step))
    trainer.train()
    assert found == {"loss": [[0]] * 2, "look": [["_local_scalar_dense", 1]] * 2}
