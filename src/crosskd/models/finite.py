"""Weights of which one is NaN or infinite make nothing but nonsense: they are found before they are used."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crosskd.errors import UsageError

# Types that reductions take; quantized weights are integers, and eight-bit floats are stored beside their scales.
_CHECKED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_finite(model: nn.Module, name: object) -> None:
    """Refuse a model with parameters that are not finite.

    One pass over the weights, where they are, without a copy of them: about the time of reading them from memory.
    Parameters that are integers (8 and 4 bit) or not loaded (on the device ``meta``) are not looked at.

    Args:
        model: Any model.
        name: What the user called it.

    Raises:
        UsageError: Names the first such parameter and how many of its numbers are not finite.
    """
    for parameter_name, parameter in model.named_parameters():
        if not _is_finite(parameter.detach()):
            wrong = int((~parameter.detach().isfinite()).sum())
            raise UsageError(
                f"model {str(name)!r}",
                got=f"weights that are NaN or infinite: {wrong:,} of the {parameter.numel():,} numbers of "
                f"{parameter_name}",
                expected="finite numbers",
                fix="the run that made it failed or the file is damaged: take an earlier checkpoint, or get it again",
            )


def _is_finite(values: Tensor) -> bool:
    if values.dtype not in _CHECKED or values.is_meta or values.numel() == 0:
        return True
    smallest, largest = torch.aminmax(values)  # NaN if one is NaN
    return bool(torch.isfinite(smallest) & torch.isfinite(largest))
