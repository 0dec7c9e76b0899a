"""The one place that starts kernels.

Triton works out again at each call which of its compiled variants serves the arguments; on an H100 machine that took 40
to 70 microseconds for kernels of 15 to 48 arguments. Here the variant is remembered by what distinguishes variants,
which takes about 20.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
_VARIANTS: dict[tuple[Hashable, ...], Callable[[tuple[int, ...], int, tuple[Any, ...]], None]] = {}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Start ``kernel`` with one program for each point of ``grid``, on the device of its first tensor.

    Nothing is started where the grid is empty.

    Args:
        kernel: A function decorated with ``triton.jit``, whose compile-time parameters come last.
        grid: Up to three sizes.
        arguments: Tensors (one at least), numbers and None.
        constants: The compile-time parameters, ``num_warps`` and ``num_stages``.
    """
    if 0 in grid:
        return
    first = arguments[0]
    if not first.is_cuda:
        kernel[grid](*arguments, **constants)
        return
    device = first.get_device()
    with nullcontext() if device == torch.cuda.current_device() else torch.cuda.device(device):
        key = _distinction(kernel, device, arguments, constants)
        start = _VARIANTS.get(key)
        if start is None:
            compiled = kernel[grid](*arguments, **constants)
            _VARIANTS[key] = _starter(compiled, [constants[name] for name in kernel.arg_names[len(arguments) :]])
        else:
            start((*grid, 1, 1), torch._C._cuda_getCurrentRawStream(device), arguments)


def repeated(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> Callable[[int], None]:
    """What launches ``kernel`` again and again with one more argument, a number that Triton does not specialize on.

    The variant is looked up once, for the first number.
    """
    start: Callable[[tuple[int, ...], int, tuple[Any, ...]], None] | None = None
    first = arguments[0]

    def again(number: int) -> None:
        nonlocal start
        if start is None:
            launch(kernel, grid, *arguments, number, **constants)
            if first.is_cuda and first.get_device() == torch.cuda.current_device():
                start = _VARIANTS.get(_distinction(kernel, first.get_device(), (*arguments, number), constants))
        else:
            start((*grid, 1, 1), torch._C._cuda_getCurrentRawStream(first.get_device()), (*arguments, number))

    return again


def _starter(compiled: Any, constants: list[Any]) -> Callable[[tuple[int, ...], int, tuple[Any, ...]], None]:
    """What starts a compiled variant, as ``compiled[grid](*arguments)`` does, without its look-ups."""
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata

    def start(grid: tuple[int, ...], stream: int, arguments: tuple[Any, ...]) -> None:
        run(grid[0], grid[1], grid[2], stream, function, metadata, None, None, None, *arguments, *constants)

    return start


def _distinction(
    kernel: Any, device: int, arguments: tuple[Any, ...], constants: dict[str, Any]
) -> tuple[Hashable, ...]:
    """What Triton compiles for: dtype and alignment of tensors, size and divisibility of numbers, and constants."""
    key: list[Hashable] = [id(kernel), device]
    for argument in arguments:
        if argument is None:
            key.append(None)
        elif isinstance(argument, int):
            key.append(argument if argument == 1 else (argument & 15 == 0) + 2 * (-(2**31) <= argument < 2**31) + 2)
        elif isinstance(argument, Tensor):
            key.append(argument.dtype)
            key.append(argument.data_ptr() & 15 == 0)
        else:
            key.append(argument.__class__)
    key.extend(constants.values())
    return tuple(key)


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least ``number``."""
    return 1 << max(0, number - 1).bit_length()


def ceiling_division(number: int, by: int) -> int:
    """``number / by``, rounded up."""
    return -(-number // by)
