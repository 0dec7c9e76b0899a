"""LoRA adapters, through peft: added to a student, and merged into the model that they were trained on.

peft takes seconds to import, so it is imported where it is used.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from crosskd.errors import UsageError, first_line

if TYPE_CHECKING:
    from peft import PeftModel


def with_lora(
    model: PreTrainedModel, *, rank: int, alpha: int, dropout: float, target_modules: Sequence[str] | None = None
) -> PeftModel:
    """Freeze a model and put trainable low-rank matrices beside its linear layers (LoRA, Hu et al. 2021).

    Args:
        model: The student; causal or encoder-decoder.
        rank: Rank of the matrices, at least 1.
        alpha: They are scaled by ``alpha / rank``.
        dropout: In [0, 1), on their input.
        target_modules: Names of the layers; None takes all linear layers but the output layer.

    Raises:
        UsageError: A setting out of range, or layers of such names do not exist.
    """
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model

    settings = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(target_modules) if target_modules else "all-linear",
    )
    try:
        with _without_deprecations():
            adapted = get_peft_model(model, settings)
    except ValueError as error:
        raise UsageError("LoRA", got=first_line(error), fix="name layers of the student") from error
    assert isinstance(adapted, PeftModel)
    return adapted


def apply_adapter(base: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """The base model with an adapter merged into its weights."""
    from peft import PeftModel

    with _without_deprecations():
        adapted = PeftModel.from_pretrained(base, str(folder))
    return adapted.merge_and_unload()  # pyright: ignore[reportCallIssue]


def merged_copy(model: nn.Module) -> Any:
    """A copy of an adapted model with its adapter merged; the model itself can be trained on."""
    return copy.deepcopy(model).merge_and_unload()  # pyright: ignore[reportCallIssue]


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Without what transformers says to peft about names that peft will have to change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield
