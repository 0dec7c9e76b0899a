"""Sizes and steps that `gpu_losses.py` measures: logits that are there already, forward and backward of the loss."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from crosskd.losses import DistillationMethod, StudentAnswers, TeacherTargets, create_method, targets_from_logits
from crosskd.losses.mined import MinED

WEIGHT = 0.15
HIDDEN = 896
CE = "torch CE"
TORCH = ", torch kernels"

Leaves = list[Tensor]
Step = Callable[[], tuple[Tensor, Leaves]]
"""A step gives back the loss and the leaves that hold its gradients."""


@dataclass(frozen=True)
class Size:
    """What a case is made of; logits are ``scale`` times a normal sample, 3 being as peaked as a language model's."""

    name: str
    batch: int
    answer: int
    student: int
    teacher: int
    dtype: torch.dtype = torch.bfloat16
    scale: float = 3.0

    @property
    def text(self) -> str:
        shape = f"{self.batch} x {self.answer}, V {self.student:,} / {self.teacher:,}"
        flat = ", flat" if self.scale != 3 else ""
        return f"{shape}, {str(self.dtype).removeprefix('torch.')}{flat}"


SIZES = {
    size.name: size
    for size in (
        Size("8x20", 8, 20, 50_304, 32_000),
        Size("8x20_float32", 8, 20, 50_304, 32_000, dtype=torch.float32),
        Size("4x100", 4, 100, 50_304, 128_256),
        Size("4x1024", 4, 1024, 151_936, 128_256),
        Size("1x4096", 1, 4096, 128_256, 151_936),
        Size("8x20_flat", 8, 20, 50_304, 32_000, scale=1.0),
    )
}
LONG = ("4x1024", "1x4096")


def small(size: Size) -> Size:
    """The same case in a size that a CPU goes through at once."""
    return replace(size, batch=min(size.batch, 2), answer=min(size.answer, 7), student=300, teacher=200)


@contextmanager
def chosen_kernels(name: str | None) -> Iterator[None]:
    """``CROSSKD_KERNELS`` set to ``name`` meanwhile; None leaves it alone."""
    before = os.environ.get("CROSSKD_KERNELS")
    if name is not None:
        os.environ["CROSSKD_KERNELS"] = name
    try:
        yield
    finally:
        if name is not None:
            del os.environ["CROSSKD_KERNELS"]
            if before is not None:
                os.environ["CROSSKD_KERNELS"] = before


class Case:
    """Logits, labels and targets of one size on a device."""

    def __init__(self, size: Size, device: str) -> None:
        self.size, self.device = size, device
        generator = torch.Generator(device).manual_seed(0)
        shape = size.batch, size.answer

        def logits(vocabulary: int) -> Tensor:
            sample = torch.randn(*shape, vocabulary, generator=generator, device=device, dtype=size.dtype)
            return sample.mul_(size.scale)

        self.student, self.teacher = logits(size.student), logits(size.teacher)
        self.labels = torch.randint(size.student, shape, generator=generator, device=device)
        self.mask = torch.ones(shape, dtype=torch.bool, device=device)
        self.alignment = torch.arange(size.answer, device=device).expand(shape).contiguous()
        self.vocabulary_map = torch.randint(size.student, (size.teacher,), generator=generator, device=device)

    def method(self, name: str, **settings: object) -> DistillationMethod:
        method = create_method(name, **settings)
        return method.with_vocabulary_map(self.vocabulary_map) if isinstance(method, MinED) else method

    def targets(self, method: DistillationMethod) -> TeacherTargets | None:
        request = method.request()
        return None if request is None else targets_from_logits(self.teacher, self.mask, request)

    def cached(self, method: DistillationMethod) -> TeacherTargets | None:
        targets = self.targets(method)
        return None if targets is None else targets.to(dtype=torch.float16)

    def loss(self, method: DistillationMethod, logits: object, targets: TeacherTargets | None) -> Tensor:
        """Cross-entropy and weighted distillation, as a trainer adds them up."""
        answers = StudentAnswers(logits, self.labels, self.mask, self.alignment)  # pyright: ignore[reportArgumentType]
        terms = method.terms(answers, targets)
        total = terms["cross_entropy"]
        if method.needs_teacher:
            total = total + WEIGHT * terms["distillation"]
        return total / self.labels.numel()

    def cross_entropy(self) -> tuple[Tensor, Leaves]:
        """The baseline: torch's cross-entropy on the logits as they are."""
        logits = self.student.detach().requires_grad_()
        loss = F.cross_entropy(logits.flatten(0, 1), self.labels.flatten())
        loss.backward()
        return loss.detach(), [logits]

    def step(self, method: DistillationMethod, *, live: bool = False, kernels: str | None = None) -> Step:
        """Forward and backward from a fresh leaf; targets are made once, or in each step where they are ``live``."""
        with chosen_kernels(kernels):
            cached = None if live else self.cached(method)

        def run() -> tuple[Tensor, Leaves]:
            with chosen_kernels(kernels):
                logits = self.student.detach().requires_grad_()
                loss = self.loss(method, logits, self.targets(method) if live else cached)
                loss.backward()
            return loss.detach(), [logits]

        return run

    def capture(self, method: DistillationMethod) -> Step:
        """What a teacher adds to its forward: targets, without any gradient."""

        def run() -> tuple[Tensor, Leaves]:
            targets = self.cached(method)
            assert targets is not None
            return next(iter(targets.tensors().values())), []

        return run

    @cached_property
    def methods(self) -> dict[str, DistillationMethod]:
        matched = {
            f"{matching}, cached": self.method("multilevel_ot", matching=matching)
            for matching in ("fast", "greedy", "exact")
        }
        return {
            "sft": self.method("sft"),
            **matched,
            "fast without Sinkhorn, cached": self.method("multilevel_ot", sinkhorn_weight=0.0),
            "authors, live": self.method("multilevel_ot", formulation="authors"),
            "uld, cached": self.method("uld"),
            "mined, cached": self.method("mined"),
        }

    def steps(self, *, compare: bool) -> dict[str, Callable[[], Step]]:
        """Makers of the steps, by name; ``compare`` adds the torch code of the same methods beside the kernels.

        Of long answers only the two main methods are compared: the others take a second a step in torch.
        """
        made: dict[str, Callable[[], Step]] = {CE: lambda: self.cross_entropy}
        for name, method in self.methods.items():
            made[name] = lambda m=method, live="live" in name: self.step(m, live=live)
        made["targets of fast"] = lambda: self.capture(self.methods["fast, cached"])
        made["targets of uld"] = lambda: self.capture(self.methods["uld, cached"])
        if compare:
            compared = ("sft", "fast, cached") if self.size.name in LONG else tuple(self.methods)
            for name in compared:
                method = self.methods[name]
                made[name + TORCH] = lambda m=method, live="live" in name: self.step(m, live=live, kernels="torch")
        return made


class HiddenCase:
    """The same losses from hidden states (B, T, 896) and an output layer, whose logits are as peaked as those above."""

    def __init__(self, size: Size, device: str) -> None:
        self.case = case = Case(size, device)
        width = 16 if size.student < 1_000 else HIDDEN
        generator = torch.Generator(device).manual_seed(1)

        def sample(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device, dtype=size.dtype)

        self.hidden = sample(size.batch, size.answer, width)
        self.weight = sample(size.student, width).mul_(size.scale / width**0.5)
        case.student = torch.empty(0)  # not used here

    def steps(self) -> dict[str, Callable[[], Step]]:
        """Makers of steps: logits as a tensor (``dense``) or none at all (``fused``)."""
        fast, sft = self.case.methods["fast, cached"], self.case.methods["sft"]
        return {
            "dense torch CE": lambda: self.step(None, fused=False),
            "dense sft": lambda: self.step(sft, fused=False),
            "dense fast, cached": lambda: self.step(fast, fused=False),
            "fused sft": lambda: self.step(sft, fused=True),
            "fused fast, cached": lambda: self.step(fast, fused=True),
            "fused fast, cached, output layer frozen": lambda: self.step(fast, fused=True, frozen=True),
        }

    def step(self, method: DistillationMethod | None, *, fused: bool, frozen: bool = False) -> Step:
        """One forward and backward to the hidden states and, unless it is ``frozen``, to the weight."""
        targets = None if method is None else self.case.cached(method)
        labels = self.case.labels.flatten()

        def run() -> tuple[Tensor, Leaves]:
            hidden = self.hidden.detach().requires_grad_()
            weight = self.weight.detach().requires_grad_(not frozen)
            if method is None:
                loss = F.cross_entropy(F.linear(hidden, weight).flatten(0, 1), labels)
            else:
                loss = self.case.loss(method, _logits(hidden, weight, fused), targets)
            loss.backward()
            return loss.detach(), [hidden, weight]

        return run


def _logits(hidden: Tensor, weight: Tensor, fused: bool) -> object:
    if not fused:
        return F.linear(hidden, weight)
    from crosskd.transport.hidden_logits import HiddenLogits

    return HiddenLogits(hidden, weight, None)
