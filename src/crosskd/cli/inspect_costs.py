"""What distillation will cost, from configurations and token counts: no weights are read."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig

from crosskd.errors import UsageError, first_line
from crosskd.losses.registry import METHODS, create_method
from crosskd.losses.targets import TargetRequest, targets_from_logits
from crosskd.models.load import check_language_model, locate
from crosskd.text.compare_tokenizers import TokenizerComparison, TokenizerUse

FORMULA = (
    "seconds = operations a token x (tokens x parameters of the layers + answer tokens x vocabulary x hidden size) / "
    "measured speed; operations a token and parameter: 2 forward, 6 forward and backward"
)
_TOKENS, _SECONDS = 512, 0.3  # of the measurement of speed
_COLUMNS = 1024  # more than any method keeps by default


@dataclass(frozen=True)
class ModelFacts:
    """A model's size, from its configuration.

    Attributes:
        architecture: Name of its class.
        parameters: All of them.
        layer_parameters: Without embeddings and output head.
        head_parameters: Of the output head, which may be the embeddings themselves.
        layers: Number of layers.
        hidden_size: Width of a hidden state.
        intermediate_size: Width within a layer.
        output_entries: Logits of a token, padding included.
        dtype: Number format of the stored weights.
    """

    architecture: str
    parameters: int
    layer_parameters: int
    head_parameters: int
    layers: int
    hidden_size: int
    intermediate_size: int
    output_entries: int
    dtype: str


def read_config(source: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a causal language model by hub id, folder or GGUF file.

    Raises:
        UsageError: There is none, or it is another kind of model.
    """
    location = locate(source)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    check_language_model(source, location, options)
    return AutoConfig.from_pretrained(location, **options)


def model_facts(source: str, config: PreTrainedConfig, *, trust_remote_code: bool = False) -> ModelFacts:
    """Count parameters on a model without weights (torch's meta device)."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, ImportError) as error:
        raise UsageError(f"model {source!r}", got=first_line(error)) from error
    text = config.get_text_config(decoder=True)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    embeddings: torch.Tensor = model.get_input_embeddings().weight  # pyright: ignore[reportAssignmentType]
    output = model.get_output_embeddings()
    head: torch.Tensor = embeddings if output is None else output.weight  # pyright: ignore[reportAssignmentType]
    return ModelFacts(
        architecture=type(model).__name__,
        parameters=parameters,
        layer_parameters=parameters - embeddings.numel() - (0 if head is embeddings else head.numel()),
        head_parameters=head.numel(),
        layers=int(text.num_hidden_layers),
        hidden_size=int(text.hidden_size),
        intermediate_size=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        output_entries=head.shape[0],
        dtype=str(config.dtype or torch.float32).removeprefix("torch."),
    )


@dataclass(frozen=True)
class CacheSize:
    """Size of a cache of teacher targets in float16.

    Attributes:
        method: The method that it serves.
        bytes_per_token: For each answer token of the teacher.
        bytes_per_example: Beside those, for each example.
        total_bytes: For the whole split.
    """

    method: str
    bytes_per_token: int
    bytes_per_example: int
    total_bytes: int


def cache_sizes(comparison: TokenizerComparison, examples: int) -> list[CacheSize]:
    """Expected cache size of each method that asks the teacher, at its default settings, for ``examples`` examples."""
    sizes = []
    for name in METHODS:
        request = create_method(name).request()
        if request is None:
            continue
        two, one = (_target_bytes(request, tokens) for tokens in (2, 1))
        token, example = two - one, 2 * one - two
        mean = comparison.teacher.answer_tokens.mean
        sizes.append(CacheSize(name, token, example, round(examples * (mean * token + example))))
    return sizes


def _target_bytes(request: TargetRequest, tokens: int) -> int:
    shape = (1, tokens)
    logits = torch.zeros(*shape, _COLUMNS)
    targets = targets_from_logits(logits, torch.ones(shape).bool(), request, torch.zeros(shape).long())
    return sum(value.nbytes for value in targets.to(dtype=torch.float16).tensors().values())


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds that a pass over the split takes, at best: matrix products alone, at the speed measured here.

    Attributes:
        device: Where it was measured.
        student_operations_per_second: Multiplications and additions, float32, in products of the student's width.
        teacher_operations_per_second: Likewise of the teacher's.
        student_epoch_seconds: One epoch of training with cached targets.
        teacher_pass_seconds: The teacher once over the answers, its shared prompt computed once.
        formula: How the seconds follow.
    """

    device: str
    student_operations_per_second: float
    teacher_operations_per_second: float
    student_epoch_seconds: float
    teacher_pass_seconds: float
    formula: str = FORMULA


def estimate_time(
    comparison: TokenizerComparison, teacher: ModelFacts, student: ModelFacts, examples: int
) -> TimeEstimate:
    """Estimate what an epoch of ``examples`` takes; see `FORMULA`. Measures for 0.6 seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    speeds = [measured_speed(facts, device) for facts in (student, teacher)]
    training = 6 * examples * _multiplications(student, comparison.student, reused_tokens=0)
    reused = comparison.teacher.shared_prompt_tokens
    asking = 2 * examples * _multiplications(teacher, comparison.teacher, reused_tokens=reused)
    return TimeEstimate(device, speeds[0], speeds[1], training / speeds[0], asking / speeds[1])


def measured_speed(facts: ModelFacts, device: str) -> float:
    """Operations a second of a float32 matrix product as in the model's layers, over 0.3 seconds."""
    states = torch.rand(_TOKENS, facts.hidden_size, device=device)
    weight = torch.rand(facts.intermediate_size, facts.hidden_size, device=device)
    fastest, deadline = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < deadline or fastest == float("inf"):
        started = time.perf_counter()
        linear(states, weight)
        if device == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * _TOKENS * weight.numel() / fastest


def _multiplications(facts: ModelFacts, use: TokenizerUse, reused_tokens: int) -> float:
    """Multiplications of a forward pass over an example; logits of answer tokens only."""
    tokens = use.sequence_tokens.mean - reused_tokens
    return tokens * facts.layer_parameters + use.answer_tokens.mean * facts.head_parameters
