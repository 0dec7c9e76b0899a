"""How far two right results may lie apart: tolerances that follow from the dtype and from how much is added up.

Rounding to a dtype changes a number by at most ``eps / 2`` of its size, evenly spread, so with a standard deviation of
``eps / sqrt(12)``. A sum of ``n`` numbers rounds ``n`` times, and sums that feed each other round one after another:
the variances add up to ``n eps^2 / 12``, with ``n`` the summands of all of them together. Two computations of the same
thing, one in another order (another processor's vector width, another batch, other padding), differ by the rounding of
both: a standard deviation of ``eps sqrt(n / 6)``, or 0.41 ``eps sqrt(n)``. `rounding` gives about five of these.

Errors are relative to the largest number that goes into a sum, not to what is left when numbers cancel. So tensors
are compared against their largest entry, and models in tests must not amplify: logits of a few units, attention that
does not decide for one token alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def rounding(dtype: torch.dtype, summands: int) -> float:
    """Relative difference that another order of summation explains.

    Args:
        dtype: Of the arithmetic.
        summands: Numbers added up on the way from inputs to result, in all sums that follow one another.
    """
    return 2 * torch.finfo(dtype).eps * math.sqrt(summands)


def summands(model: PreTrainedModel, length: int) -> int:
    """Numbers added up between tokens and logits: inputs of every linear layer, and the tokens attended to.

    Layers that stand beside each other (queries, keys, values) are counted as if they followed one another.

    Args:
        model: Any language model of `transformers`.
        length: Tokens of its longest sequence.
    """
    linear = sum(parameter.shape[-1] for parameter in model.parameters() if parameter.ndim > 1)
    config: Any = model.config
    layers = config.get_text_config(decoder=True).num_hidden_layers
    if config.is_encoder_decoder:
        layers += 2 * layers  # decoders attend to the answer and to the prompt
    return linear + layers * length


def loss_tolerance(*models: PreTrainedModel, length: int, tokens: int) -> float:
    """Relative difference that rounding makes in a loss in float32, of logits whose size is that of the loss.

    Args:
        models: Those that the loss looks at.
        length: Tokens of the longest sequence.
        tokens: Answer tokens that the loss adds up.
    """
    return rounding(torch.float32, tokens + sum(summands(model, length) for model in models))


def assert_logits_close(actual: Tensor, expected: Tensor, model: PreTrainedModel, length: int) -> None:
    """Fail where logits of one model differ by more than rounding does.

    Args:
        actual: Logits.
        expected: Logits of the same shape and dtype, computed in another order.
        model: The model.
        length: Tokens of its longest sequence.
    """
    bound = rounding(expected.dtype, summands(model, length)) * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, atol=bound, rtol=0)


def assert_gradients_close(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], summands: int) -> None:
    """Fail where gradients of one loss differ by more than rounding does; the largest of all is the measure.

    Args:
        actual: Gradients by parameter.
        expected: The same, computed in another order.
        summands: Of loss and backward pass.
    """
    assert actual.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        bound = rounding(gradient.dtype, summands) * largest
        torch.testing.assert_close(actual[name], gradient, atol=bound, rtol=0, msg=lambda text, name=name: name + text)


def decided(logits: Tensor, model: PreTrainedModel, length: int) -> int:
    """The largest logit's index; a lead that rounding could take is an error of the test's models.

    Args:
        logits: (V,).
        model: The model.
        length: Tokens of the sequence.
    """
    first, second = logits.topk(2).values.tolist()
    bound = rounding(logits.dtype, summands(model, length)) * float(logits.abs().max())
    assert first - second > 2 * bound, f"{first} leads by {first - second}: another processor may choose otherwise"
    return int(logits.argmax())
