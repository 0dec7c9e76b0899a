"""The logits that predict the answer, and no others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from crosskd.models.attention_masks import no_empty_rows

_INPUTS = ("input_ids", "attention_mask", "position_ids", "decoder_input_ids")


def answer_logits(model: nn.Module, batch: Mapping[str, Any], answer_length: int) -> Float[Tensor, "B A V"]:
    """Ask a model for the logits of the last ``answer_length`` columns of a batch.

    Equivalent to:
        ``model(**batch).logits[:, -answer_length:]``

    The model's own top-level forward is called, so that the hooks of FSDP and DDP fire. Where the architecture takes
    ``logits_to_keep``, its output layer works on the answer columns alone; elsewhere the full logits are sliced.
    ``position_ids`` are passed where the forward takes them (prompts are left-padded) and dropped where it does not
    (Bloom counts positions from the mask). No attention row is empty, see `crosskd.models.attention_masks`.

    Args:
        model: A language model, causal or encoder-decoder, wrapped or not.
        batch: ``input_ids``, ``attention_mask`` and ``position_ids``, each (B, L), as `crosskd.data.collate` makes
            them: without the last answer token, so that the last ``answer_length`` columns predict the answer. For an
            encoder-decoder model ``decoder_input_ids`` (B, A) too, and no ``position_ids``.
        answer_length: A, the answer tokens of the longest answer (padding included).

    Returns:
        Logits (B, A, V) in the model's dtype.
    """
    accepted = forward_arguments(_unwrapped(model))
    inputs = {name: batch[name] for name in _INPUTS if name in batch}
    if "position_ids" not in accepted:
        inputs.pop("position_ids", None)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = answer_length
    with no_empty_rows():
        logits: Tensor = model(**inputs).logits
    return logits[:, -answer_length:]


def forward_arguments(model: nn.Module) -> frozenset[str]:
    """Names of the arguments that the forward of a model (not a wrapper) takes."""
    return _arguments_of(type(model))


@lru_cache(maxsize=64)
def _arguments_of(model_class: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(model_class.forward).parameters)


def _unwrapped(model: nn.Module) -> nn.Module:
    while True:
        if hasattr(model, "get_base_model"):  # peft
            model = model.get_base_model()  # pyright: ignore[reportCallIssue]
            continue
        inner = getattr(model, "module", getattr(model, "_orig_mod", None))  # DDP, DataParallel; torch.compile
        if not isinstance(inner, nn.Module):
            return model
        model = inner
