"""Which number format this machine computes fast in."""

from __future__ import annotations

import torch


def fast_bfloat16() -> bool:
    """Whether bfloat16 arithmetic is faster than float32 here: a GPU that has it, or a CPU with AVX-512 BF16 or AMX.

    A CPU without them emulates bfloat16, several times slower than float32.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
