"""Targets of a teacher for a list of tokenized answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from crosskd.errors import UsageError
from crosskd.losses.targets import TargetRequest, TeacherTargets, targets_from_logits
from crosskd.models.answer_logits import forward_arguments
from crosskd.models.attention_masks import no_empty_rows
from crosskd.teacher.prefix import SharedPrefix, reusable_prefix

logger = logging.getLogger(__name__)


class Answered(Protocol):
    """A prompt with its answer, in the teacher's tokens (`crosskd.text.answer_spans.TokenizedExample`)."""

    @property
    def prompt_ids(self) -> list[int]: ...  # noqa: D102

    @property
    def answer_ids(self) -> list[int]: ...  # noqa: D102


@dataclass(frozen=True)
class AnswerForward:
    """What the teacher says about the answers of a batch.

    Attributes:
        logits: (B, T_t, V_t), predicting the answer tokens from column 0 on.
        mask: (B, T_t) bool, true on answer tokens.
        token_ids: (B, T_t) int64, the answer tokens; 0 beyond them.
    """

    logits: Float[Tensor, "B T V"]
    mask: Bool[Tensor, "B T"]
    token_ids: Int[Tensor, "B T"]


def capture_targets(
    model: nn.Module,
    examples: Sequence[Answered],
    request: TargetRequest,
    *,
    batch_size: int = 8,
    shared_prefix: Sequence[int] = (),
    dtype: torch.dtype | None = None,
    advance: Callable[[int], None] | None = None,
    names: Sequence[str] | None = None,
) -> list[TeacherTargets]:
    """Run the teacher once over its prompts and answers.

    Batches hold sequences of similar length, right-padded: padding behind a causal sequence changes nothing in it, and
    the answer columns of such a batch lie close together, so that few other logits are computed. States of the shared
    beginning are computed once, after a check on the first batch that this gives what the plain way gives.

    Args:
        model: The teacher, in evaluation mode.
        examples: Prompts and answers in the teacher's tokens.
        request: What the methods need.
        batch_size: Sequences per forward.
        shared_prefix: Tokens that every prompt begins with (``PromptBuilder.shared_prefix_ids``).
        dtype: Floating type of the stored targets; None keeps float32.
        advance: Called with the number of examples finished, after each batch.
        names: What a message calls each example; None counts them from 0.

    Returns:
        Targets of each example (B = 1, on the CPU), in the order of ``examples``.

    Raises:
        UsageError: Targets that are NaN or infinite; names the example.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt_ids) + len(examples[i].answer_ids))
    prefix = _checked_prefix(model, examples, shared_prefix)
    captured: dict[int, TeacherTargets] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        answers = forward_answers(model, [examples[i] for i in rows], prefix)
        targets = targets_from_logits(answers.logits, answers.mask, request, answers.token_ids).to("cpu", dtype)
        for position, row in enumerate(rows):
            captured[row] = targets.example(position)
            _check_finite(captured[row], names[row] if names is not None else str(row))
        if advance is not None:
            advance(len(rows))
    return [captured[i] for i in range(len(examples))]


def _check_finite(targets: TeacherTargets, name: str) -> None:
    wrong = [field for field, value in targets.tensors().items() if not bool(value.isfinite().all())]
    if wrong:
        raise UsageError(
            f"teacher targets of example {name!r}",
            got=f"{', '.join(wrong)} that are NaN or infinite",
            expected="finite numbers",
            fix="load the teacher in float32 or bfloat16 (--dtype), or take another one",
        )


@torch.no_grad()
def forward_answers(
    model: nn.Module, examples: Sequence[Answered], prefix: SharedPrefix | None = None
) -> AnswerForward:
    """One forward over right-padded sequences; see `capture_targets`."""
    skip = len(prefix) if prefix is not None else 0
    device = next(model.parameters()).device
    starts = torch.tensor([len(example.prompt_ids) - skip for example in examples])
    lengths = torch.tensor([len(example.answer_ids) for example in examples])
    rows = [torch.tensor([*e.prompt_ids[skip:], *e.answer_ids[:-1]], dtype=torch.long) for e in examples]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    present = torch.arange(ids.shape[1]) < (starts + lengths - 1)[:, None]
    ids = torch.where(present, ids, ids[:, :1])  # padding that cannot matter, see `crosskd.data.collate`
    first = int(starts.min()) - 1  # the earliest column that predicts an answer token
    logits = _causal_logits(model, ids.to(device), present.to(device), ids.shape[1] - first, prefix)
    token = torch.arange(int(lengths.max()))
    mask = token < lengths[:, None]
    columns = (starts[:, None] - 1 - first + token).clamp_max(logits.shape[1] - 1)
    answers = [torch.tensor(example.answer_ids, dtype=torch.long) for example in examples]
    return AnswerForward(
        logits[torch.arange(len(examples))[:, None], columns],
        mask.to(device),
        nn.utils.rnn.pad_sequence(answers, batch_first=True).to(device),
    )


def _causal_logits(
    model: nn.Module, ids: Tensor, present: Tensor, keep: int, prefix: SharedPrefix | None
) -> Float[Tensor, "B keep V"]:
    """Logits of the last ``keep`` columns, behind the prefix if there is one."""
    accepted = forward_arguments(model)
    batch, length = ids.shape
    skip = len(prefix) if prefix is not None else 0
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": prefix is not None}
    inputs["attention_mask"] = torch.cat([present.new_ones(batch, skip), present], dim=1).long()
    if "position_ids" in accepted:
        inputs["position_ids"] = (skip + torch.arange(length, device=ids.device)).expand(batch, -1)
    if prefix is not None:
        inputs["past_key_values"] = prefix.states(batch)
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = keep
    with no_empty_rows():
        return model(**inputs).logits[:, -keep:]


def _checked_prefix(model: nn.Module, examples: Sequence[Answered], shared: Sequence[int]) -> SharedPrefix | None:
    """States of the reusable beginning, or None: too short to pay, or not exact for this model (said in the log)."""
    ids = reusable_prefix([example.prompt_ids for example in examples], shared)
    if not ids or "past_key_values" not in forward_arguments(model):
        return None
    longest = max(examples, key=lambda example: len(example.prompt_ids))
    try:
        prefix = SharedPrefix(model, ids)
        error = _prefix_error(model, longest, prefix)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as failure:
        logger.warning(
            "%s cannot reuse a prompt prefix (%s): whole prompts are computed", type(model).__name__, failure
        )
        return None
    tolerance = 1e-3 if next(model.parameters()).dtype in (torch.float32, torch.float64) else 0.25
    if not error <= tolerance:  # NaN is no agreement
        logger.warning(
            "reusing the prompt prefix changes log-probabilities of %s by %.2g: whole prompts are computed",
            type(model).__name__,
            error,
        )
        return None
    return prefix


def _prefix_error(model: nn.Module, example: Answered, prefix: SharedPrefix) -> float:
    """Largest difference that the prefix makes to a probable log-probability of one example."""
    plain, reused = (forward_answers(model, [example], p).logits.float().log_softmax(-1) for p in (None, prefix))
    differences = (plain - reused)[plain > -12].abs()
    return float(differences.max()) if differences.numel() else 0.0  # a teacher that says NaN is refused by its targets
