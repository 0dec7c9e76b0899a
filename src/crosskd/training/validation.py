"""What a trainer reports of examples that it does not train on: cross-entropy a token, and scores of answers."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel

from crosskd.errors import UsageError, did_you_mean
from crosskd.evaluation.generation import generate_answers
from crosskd.evaluation.scoring import Scoring
from crosskd.losses.base import IGNORED_LABEL
from crosskd.models.limits import longest_prompt
from crosskd.text.sides import Side
from crosskd.text.tasks import load_task
from crosskd.training.config import TEXT_METRICS, DistillationConfig


class TokenMean:
    """Cross-entropy summed over all answer tokens of an evaluation, divided once at its end.

    A mean of the batches' means would depend on the batch size, since batches hold different numbers of tokens.
    """

    def __init__(self) -> None:
        self._loss = 0.0
        self._tokens = 0

    def add(self, loss: Tensor, labels: Tensor) -> Tensor:
        """Add a batch's summed loss; returns its mean over the batch's own answer tokens."""
        tokens = int((labels != IGNORED_LABEL).sum())
        self._loss += float(loss)
        self._tokens += tokens
        return loss.detach() / max(tokens, 1)

    def value(self) -> float:
        """The mean over the answer tokens of all processes; NaN where there were none."""
        pairs = gather_object([(self._loss, self._tokens)])
        loss, tokens = (sum(column) for column in zip(*pairs, strict=True))
        return loss / tokens if tokens else float("nan")


def without_repeats(labels: Tensor, accelerator: Accelerator) -> Tensor:
    """Labels (B, T) of a batch without the rows that only fill it up: ignored where processes share the last batch.

    Every process gets batches of equal size; where the examples do not suffice, the last ones repeat the first.
    """
    left, state = accelerator.gradient_state.remainder, accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or left <= 0:
        return labels
    own = min(max(left - accelerator.process_index * labels.shape[0], 0), labels.shape[0])
    kept = torch.arange(labels.shape[0], device=labels.device) < own
    return labels.masked_fill(~kept[:, None], IGNORED_LABEL)


def check_best_metric(config: DistillationConfig, sets: Any, own_metrics: Any) -> None:
    """Refuse a ``metric_for_best_model`` that no evaluation gives, before hours of training.

    Args:
        config: The run's settings.
        sets: The evaluation examples: one set, or several by name.
        own_metrics: ``compute_metrics``; what it gives is not known beforehand, so that every name is accepted.

    Raises:
        UsageError: Names the metrics there are.
    """
    wanted = (config.metric_for_best_model or "").removeprefix("eval_")
    if not wanted or own_metrics is not None or sets is None:
        return
    names = ["loss", *(TEXT_METRICS if config.predict_with_generate else ())]
    known = [f"{part}_{name}" for part in sets for name in names] if isinstance(sets, dict) else names
    if wanted not in known:
        raise UsageError(
            "--metric_for_best_model", got=wanted, expected="a score of the evaluation", fix=did_you_mean(wanted, known)
        )


def answer_scores(
    model: PreTrainedModel, examples: Any, side: Side, config: DistillationConfig, accelerator: Accelerator
) -> dict[str, float]:
    """Let the student answer examples greedily, processes sharing the work, and score the answers.

    Args:
        model: The student, not wrapped.
        examples: A data set with ``context``, ``answers`` and so on, as text.
        side: How the student reads an example.
        config: The run's settings.
        accelerator: Of the trainer.

    Returns:
        ``f1``, ``exact_match`` and the scores of ROUGE, in [0, 1], as `crosskd.evaluation.evaluate` gives them.
    """
    limit = longest_prompt(model.config, side.builder.tokenizer, side.max_length, config.generation_max_new_tokens)
    own = range(accelerator.process_index, len(examples), accelerator.num_processes)
    prompts = [side.builder.build(examples[index], max_tokens=limit).ids for index in own]
    answers = generate_answers(
        model, side.builder.tokenizer, prompts,
        max_new_tokens=config.generation_max_new_tokens, batch_size=config.per_device_eval_batch_size,
    )  # fmt: skip
    gathered = dict(gather_object(list(zip(own, answers, strict=True))))
    scoring = Scoring.prepare(load_task(config.task), "best", "standard", "all", None, None)
    _, scores = scoring.apply(list(examples), [gathered[index] for index in range(len(examples))])
    return {name: scores[name] for name in TEXT_METRICS}
