"""Compile every kernel that a step of each method starts, for a GPU that need not be there.

Nothing is run; with ``--all`` there are more dtypes. Prints one line a variant: its name, and
what went wrong if something did.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
os.environ["CROSSKD_KERNELS"] = "triton"

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from crosskd.kernels import launch as kernels
from crosskd.losses import StudentAnswers, create_method, targets_from_logits

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")


seen: set[tuple[Any, ...]] = set()
failures: list[str] = []


def kind(argument: Any) -> str:
    if argument is None:
        return "constexpr"
    if isinstance(argument, Tensor):
        return POINTERS[argument.dtype]
    if isinstance(argument, float):
        return "fp32"
    return "i32" if abs(argument) < 2**31 else "i64"


def compile_instead(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """In the place of ``launch``."""
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    signature = {name: kind(value) for name, value in zip(kernel.arg_names[: len(arguments)], arguments, strict=True)}
    values = {name: None for name, value in zip(kernel.arg_names, arguments, strict=False) if value is None}
    values |= constants
    key = (kernel.__name__, *signature.items(), *sorted(values.items(), key=str))
    if key in seen:
        return
    seen.add(key)
    signature |= dict.fromkeys(constants, "constexpr")
    try:
        source = ASTSource(
            fn=kernel, signature=signature, constexprs={(kernel.arg_names.index(n),): v for n, v in values.items()}
        )
        compiled = triton.compile(source, target=TARGET, options=options)
        say(kernel.__name__, compiled.metadata.num_warps, "warps,", compiled.metadata.shared, "bytes shared")
    except Exception as error:
        failures.append(kernel.__name__)
        say(kernel.__name__, constants, type(error).__name__, str(error)[-700:])


def step(
    name: str, dtype: torch.dtype, tokens: tuple[int, int] = (20, 24), live: bool = False, **settings: Any
) -> None:
    """Forward and backward; what kernels should have written is whatever the memory held."""
    batch, student_vocabulary, teacher_vocabulary = 2, 9000, 6000
    logits = torch.zeros(batch, tokens[0], student_vocabulary, dtype=dtype, requires_grad=True)
    mask, teacher_mask = torch.ones(batch, tokens[0], dtype=torch.bool), torch.ones(batch, tokens[1], dtype=torch.bool)
    labels = torch.zeros(batch, tokens[0], dtype=torch.int64)
    method = create_method(name, **settings)
    request, targets, alignment = method.request(), None, None
    if request is not None:
        os.environ["CROSSKD_KERNELS"] = "triton" if live else "torch"
        targets = targets_from_logits(
            torch.zeros(batch, tokens[1], teacher_vocabulary, dtype=dtype), teacher_mask, request
        )
        targets = targets if live else targets.to(dtype=torch.float16)
        os.environ["CROSSKD_KERNELS"] = "triton"
    if name == "mined":
        method = method.with_vocabulary_map(torch.arange(teacher_vocabulary))  # pyright: ignore
        alignment = torch.zeros_like(labels)
    terms = method.terms(StudentAnswers(logits, labels, mask, alignment), targets)
    (terms["cross_entropy"] + terms["distillation"]).backward()


def main() -> None:
    # ids that no kernel has written must be ids all the same
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    empty, new_empty = torch.empty, Tensor.new_empty
    torch.empty = lambda *a, **k: empty(*a, **k).zero_()  # pyright: ignore
    Tensor.new_empty = lambda *a, **k: new_empty(*a, **k).zero_()  # pyright: ignore
    kernels.launch = compile_instead
    for name in ("sft", "uld", "mined"):
        step(name, torch.bfloat16)
    step("multilevel_ot", torch.bfloat16, live=True)
    step("multilevel_ot", torch.bfloat16, (200, 150), matching="greedy", sinkhorn_tolerance=0.1)
    step("multilevel_ot", torch.float32, sinkhorn_epsilon=0.01, matching="exact", sequential_log_temperature=1.5)
    if "--all" in sys.argv:
        for name in ("sft", "uld", "mined", "multilevel_ot"):
            step(name, torch.float32)
        step("multilevel_ot", torch.float16, (200, 150), sinkhorn_tolerance=0.1, plan_gradient="envelope")
        step("multilevel_ot", torch.float64)
    say(len(seen), "variants,", len(failures), "failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
