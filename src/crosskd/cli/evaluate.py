"""``crosskd evaluate``: a model answers, and its answers are scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset

from crosskd import __version__
from crosskd.cli.console import output, progress, say, start_logging
from crosskd.cli.parsing import VerbParser
from crosskd.data.prepare import load_examples
from crosskd.evaluation.bertscore import check_bert_score
from crosskd.evaluation.evaluate import evaluate
from crosskd.evaluation.keeper import AnswerKeeper, check_same
from crosskd.evaluation.results import SCORES, Evaluation
from crosskd.evaluation.score_names import how_computed
from crosskd.files import check_output_folder, prepare_output_folder
from crosskd.models.card import add_scores, shown_name
from crosskd.models.limits import context_length, longest_prompt
from crosskd.models.load import LoadedModel, load_model, locate
from crosskd.models.quantization import quantization_of
from crosskd.report.tables import results_table
from crosskd.teacher.identity import data_sha256, prompt_sha256, tokenizer_sha256, weights_sha256
from crosskd.text.prompts import PromptBuilder
from crosskd.text.tasks import Task, load_task

DESCRIPTION = """Let a model answer the examples of a split, greedily, and score the answers: F1, exact match, ROUGE and
BERTScore if you name an encoder. Writes scores.json and predictions.jsonl, and adds the scores to the model card of a
student that was trained here."""


@dataclass
class EvaluateArguments:
    """Flags of ``crosskd evaluate``."""

    model: str = field(metadata={"help": "hub id, folder or GGUF file"})
    data: str = field(metadata={"help": "folder written by `crosskd prepare`, or sample:qed"})
    output: str = field(metadata={"help": "folder to write"})
    split: str = field(default="validation", metadata={"help": "split to answer"})
    task: str = field(default="qa", metadata={"help": "name of a task, or a YAML file with one of your own"})
    name: str | None = field(default=None, metadata={"help": "what tables call the model; default: its own name"})
    number_few_shot: int = field(default=0, metadata={"help": "examples in the prompt"})
    prompt_style: Literal["auto", "plain", "chat"] = field(
        default="auto", metadata={"help": "auto takes the chat template where there is one"}
    )
    batch_size: int = field(default=8, metadata={"help": "examples answered at once"})
    max_new_tokens: int = field(default=150, metadata={"help": "longest answer, in tokens"})
    max_length: int | None = field(
        default=None, metadata={"help": "longest prompt and answer, in tokens; default: the model's limit"}
    )
    rouge_aggregate: Literal["best", "mean"] = field(
        default="best", metadata={"help": "over the references of an example, for ROUGE; F1 and EM take the best"}
    )
    rouge_variant: Literal["standard", "plain"] = field(
        default="standard",
        metadata={"help": "ROUGE with stemmer and sentences, or without both as the paper's script scores"},
    )
    references: Literal["all", "first"] = field(
        default="all", metadata={"help": "score against all references of an example, or its first alone"}
    )
    bert_score_model: str | None = field(
        default=None, metadata={"help": "encoder for BERTScore: hub id such as roberta-large, or folder"}
    )
    bert_score_layer: int | None = field(
        default=None, metadata={"help": "its layer; default: the one that bert-score recommends for it"}
    )
    limit: int | None = field(default=None, metadata={"help": "answer the first so many examples only"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "number format of the weights; auto: as stored"}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run the code that the model brings"})
    allow_pickle: bool = field(default=False, metadata={"help": "read weights in pickle format, which can run code"})
    resume: bool = field(default=False, metadata={"help": "go on with an evaluation that was interrupted"})
    overwrite: bool = field(default=False, metadata={"help": "replace what the output folder holds"})


def parsers() -> list[VerbParser]:
    """What reads the command line."""
    return [VerbParser("evaluate", DESCRIPTION, [EvaluateArguments])]


def run(words: Sequence[str]) -> None:
    """Answer, score, write, and show the scores."""
    (arguments,) = parsers()[0].parse(words)
    start_logging("datasets", "transformers")
    task = load_task(arguments.task)
    task.number_of_shots(arguments.number_few_shot)
    examples = load_examples(arguments.data, arguments.split)
    if arguments.limit is not None:
        examples = examples.select(range(min(arguments.limit, len(examples))))
    check_output_folder(arguments.output, overwrite=arguments.overwrite, resume=arguments.resume)
    # evaluate() checks, too, but only once the model is loaded
    check_bert_score(arguments.bert_score_model, arguments.bert_score_layer)
    loaded = on_accelerator(
        load_model(
            arguments.model,
            dtype=arguments.dtype,
            trust_remote_code=arguments.trust_remote_code,
            allow_pickle=arguments.allow_pickle,
            encoder_decoder=True,
        )
    )
    limit = arguments.max_length or context_length(loaded.model.config, loaded.tokenizer)
    # evaluate() does so, too, but under a bar
    longest_prompt(loaded.model.config, loaded.tokenizer, limit, arguments.max_new_tokens)
    PromptBuilder(loaded.tokenizer, task, number_few_shot=arguments.number_few_shot, style=arguments.prompt_style)
    keeper = _keeper(arguments, task, examples, loaded)
    if arguments.resume:
        check_same(arguments.output, keeper.identity)
    if arguments.resume and (Path(arguments.output) / SCORES).is_file():
        keeper.close()
        say(f"{arguments.output} is whole already")
        output.print(results_table([Evaluation.load(arguments.output)]))
        return
    evaluation = _evaluate(arguments, task, examples, loaded, keeper)
    evaluation.save(arguments.output)
    keeper.close()
    _add_to_card(arguments, evaluation)
    output.print(results_table([evaluation]))


def _keeper(arguments: EvaluateArguments, task: Task, examples: Dataset, loaded: LoadedModel) -> AnswerKeeper:
    """Keeps answers with all that decides them and their scores, rounding (batch size, device) apart."""
    location = Path(locate(arguments.model))
    weights = weights_sha256(location) if location.is_dir() else None
    named = ("number_few_shot", "prompt_style", "max_new_tokens", "rouge_aggregate", "rouge_variant", "references")
    identity = {
        "model": None if weights else arguments.model,  # the same weights may lie somewhere else
        "model_revision": getattr(loaded.model.config, "_commit_hash", None),
        "weights_sha256": weights,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "tokenizer_sha256": tokenizer_sha256(loaded.tokenizer),
        "task": task.name,
        "prompt_sha256": prompt_sha256(task, arguments.number_few_shot),
        "split": arguments.split,
        "examples": len(examples),
        "data_sha256": data_sha256(examples, "labels"),
        "references_sha256": hashlib.sha256(json.dumps(list(examples["answers"])).encode()).hexdigest(),
        "max_length": arguments.max_length or context_length(loaded.model.config, loaded.tokenizer),
        **{name: getattr(arguments, name) for name in (*named, "bert_score_model", "bert_score_layer")},
        "crosskd_version": __version__,
    }
    prepare = partial(
        prepare_output_folder, arguments.output, overwrite=arguments.overwrite, resume=arguments.resume
    )  # fmt: skip
    return AnswerKeeper(arguments.output, identity, prepare)


def _evaluate(
    arguments: EvaluateArguments, task: Task, examples: Dataset, loaded: LoadedModel, keeper: AnswerKeeper
) -> Evaluation:
    name = arguments.name or Path(arguments.model).stem
    with progress(f"answers of {name}", len(examples)) as advance:
        return evaluate(
            loaded.model,
            examples,
            task,
            tokenizer=loaded.tokenizer,
            name=name,
            number_few_shot=arguments.number_few_shot,
            prompt_style=arguments.prompt_style,
            max_new_tokens=arguments.max_new_tokens,
            batch_size=arguments.batch_size,
            max_length=keeper.identity["max_length"],
            rouge_aggregate=arguments.rouge_aggregate,
            rouge_variant=arguments.rouge_variant,
            references=arguments.references,
            bert_score_model=arguments.bert_score_model,
            bert_score_layer=arguments.bert_score_layer,
            advance=advance,
            keeper=keeper,
        )


def _add_to_card(arguments: EvaluateArguments, evaluation: Evaluation) -> None:
    scored = f"{evaluation.task}, {evaluation.examples} examples of {shown_name(arguments.data)} ({arguments.split})"
    how = how_computed([evaluation]).rstrip(".")
    if arguments.bert_score_model:
        how = how.replace(arguments.bert_score_model, shown_name(arguments.bert_score_model))
    name = f"{scored}, {arguments.number_few_shot} shots" + (f" ({how})" if how else "")
    add_scores(Path(arguments.model), name, evaluation.scores)


def on_accelerator(loaded: LoadedModel) -> LoadedModel:
    """Move a model to the accelerator, if there is one."""
    if torch.cuda.is_available() and quantization_of(loaded.model) == "none":  # else it is there already
        loaded.model.to("cuda")  # pyright: ignore[reportArgumentType]
    return loaded
