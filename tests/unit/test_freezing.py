"""The first blocks of any architecture are held constant, and nothing else."""

from __future__ import annotations

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from crosskd.errors import UsageError
from crosskd.models.freezing import freeze_layers
from helpers_models import CONFIGS, tiny_model


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_the_first_block_of_each_family(family: str) -> None:
    model = tiny_model(family)
    count = freeze_layers(model, 1)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".0." in name}
    assert count == sum(parameter.numel() for name, parameter in model.named_parameters() if name in frozen) > 0


def test_encoder_and_decoder_each() -> None:
    config = T5Config(vocab_size=60, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=3, num_heads=2)
    model = T5ForConditionalGeneration(config)
    freeze_layers(model, 1)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".block.0." in name}
    assert {name.split(".")[0] for name in frozen} == {"encoder", "decoder"}


@pytest.mark.parametrize("count", [2, 7])
def test_something_must_be_left(count: int) -> None:
    with pytest.raises(UsageError, match="less than the 2 layers"):
        freeze_layers(tiny_model("llama"), count)
