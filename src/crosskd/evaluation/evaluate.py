"""A model answers the examples of a task, and the answers are scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crosskd.errors import UsageError
from crosskd.evaluation.generation import generate_answers
from crosskd.evaluation.keeper import AnswerKeeper
from crosskd.evaluation.metrics import Aggregate, References, RougeVariant
from crosskd.evaluation.results import Evaluation, Prediction
from crosskd.evaluation.scoring import Scoring, score
from crosskd.models.limits import check_token_ids, embedding_rows, longest_prompt
from crosskd.text.prompts import Prompt, PromptBuilder, PromptStyle
from crosskd.text.tasks import Task, load_task

__all__ = ["Evaluation", "Prediction", "evaluate", "score"]


def evaluate(
    model: PreTrainedModel,
    examples: Iterable[Mapping[str, Any]] | Dataset,
    task: Task | str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    name: str | None = None,
    number_few_shot: int = 0,
    prompt_style: PromptStyle = "auto",
    max_new_tokens: int = 150,
    batch_size: int = 8,
    max_length: int | None = None,
    rouge_aggregate: Aggregate = "best",
    rouge_variant: RougeVariant = "standard",
    references: References = "all",
    bert_score_model: str | None = None,
    bert_score_layer: int | None = None,
    advance: Callable[[int], None] | None = None,
    keeper: AnswerKeeper | None = None,
) -> Evaluation:
    """Let ``model`` answer ``examples`` greedily and score the answers against all their references.

    Args:
        model: The language model, causal or encoder-decoder, on the device where it will run.
        examples: Mappings with ``id``, ``context``, ``answers`` and, depending on the task, ``question`` and
            ``title``.
        task: A task, the name of one, or a YAML file.
        tokenizer: The model's tokenizer.
        name: What tables call the model; None takes the model's own name.
        number_few_shot: Shots of the task put before each example.
        prompt_style: ``"plain"`` text, the tokenizer's ``"chat"`` template, or ``"auto"``: chat where there is one.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Examples answered at once.
        max_length: Longest prompt and answer together, in tokens (encoder-decoder models: longest prompt); None takes
            the model's limit. Longer contexts lose their front, and `Evaluation.truncated_examples` counts them.
        rouge_aggregate: Over the references of an example, ROUGE takes the ``"best"`` or the ``"mean"``; F1 and exact
            match always take the best.
        rouge_variant: ROUGE with Porter stemmer and sentence by sentence (``"standard"``), or with words as they stand
            and each text as one sentence (``"plain"``), as the published script of arXiv 2412.14528 scores.
        references: Score against ``"all"`` references of an example, or against its ``"first"`` alone, which is then
            the only one that the predictions record.
        bert_score_model: Encoder for BERTScore (a hub id or folder); None leaves BERTScore out.
        bert_score_layer: Its layer; None takes the one that ``bert-score`` recommends.
        advance: Called with the number of examples answered since the last call (progress bars).
        keeper: Keeps answers as they come, and has those of an evaluation that was broken off.

    Returns:
        Scores, predictions and the settings they were made with.

    Raises:
        UsageError: No examples, an example without answers, a prompt that does not fit even without context, or an
            encoder that BERTScore cannot use, or a token without an embedding; all before anything is generated.

    Example:
        >>> evaluate(model, examples, "qa", tokenizer=tokenizer).scores["f1"]  # doctest: +SKIP
        0.6179
    """
    task = load_task(task) if isinstance(task, str) else task
    rows: list[Any] = list(examples)
    _check_examples(rows)
    limit = longest_prompt(model.config, tokenizer, max_length, max_new_tokens)
    ends = model.config.is_encoder_decoder  # as their encoders were trained
    builder = PromptBuilder(tokenizer, task, number_few_shot=number_few_shot, style=prompt_style, append_eos=ends)
    prompts = [builder.build(row, max_tokens=limit) for row in rows]
    ids = (
        (f"example {row.get('id', index)!r}", prompt.ids)
        for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
    )
    check_token_ids(ids, embedding_rows(model), model.name_or_path or type(model).__name__)
    scoring = Scoring.prepare(task, rouge_aggregate, rouge_variant, references, bert_score_model, bert_score_layer)
    kept: dict[str, Any] = {} if keeper is None else {"known": keeper.open(), "keep": keeper.keep}
    started = time.perf_counter()
    answers = generate_answers(
        model, tokenizer, [prompt.ids for prompt in prompts],
        max_new_tokens=max_new_tokens, batch_size=batch_size, shared_prefix=builder.shared_prefix_ids, advance=advance,
        **kept,
    )  # fmt: skip
    seconds = time.perf_counter() - started + (keeper.seconds_before if keeper else 0)
    predictions, scores = scoring.apply(rows, answers)
    limits = {"max_new_tokens": max_new_tokens, "longest_prompt": limit, "batch_size": batch_size}
    settings = {**_model_facts(model), "prompt_style": prompt_style, **limits, **scoring.settings, **_counts(prompts)}
    settings |= {"made_from": dict(keeper.identity)} if keeper else {}
    return Evaluation(
        name=name or settings["model"] or type(model).__name__,
        task=task.name,
        scores=scores,
        predictions=predictions,
        examples=len(rows),
        seconds=seconds,
        number_few_shot=number_few_shot,
        truncated_examples=sum(prompt.context_tokens_dropped > 0 for prompt in prompts),
        settings=settings,
    )


def _check_examples(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        raise UsageError("there are no examples to evaluate")
    for index, row in enumerate(rows):
        if not row.get("answers"):
            raise UsageError(f"example {row.get('id', index)!r} has no answers", expected="at least one reference")


def _model_facts(model: PreTrainedModel) -> dict[str, Any]:
    return {
        "model": getattr(model.config, "name_or_path", ""),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }


def _counts(prompts: Sequence[Prompt]) -> dict[str, Any]:
    return {
        "context_tokens_dropped": sum(prompt.context_tokens_dropped for prompt in prompts),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
