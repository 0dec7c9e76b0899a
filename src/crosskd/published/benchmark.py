"""``benchmark.py``: a model answers a split, by the published command line, and its answers are scored."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crosskd.cli.console import progress, say_json, start_logging
from crosskd.cli.evaluate import on_accelerator
from crosskd.errors import UsageError
from crosskd.evaluation.bertscore import DEFAULT_MODEL, bert_score_settings
from crosskd.evaluation.evaluate import evaluate
from crosskd.evaluation.results import Evaluation
from crosskd.files import write_json, write_jsonl
from crosskd.models.load import LoadedModel, load_model
from crosskd.models.precision import fast_bfloat16
from crosskd.published.benchmark_data import read_examples
from crosskd.published.benchmark_flags import NO_EFFECT, BenchmarkFlags, read_benchmark_flags
from crosskd.published.benchmark_scores import published_scores
from crosskd.published.flags import help_text
from crosskd.published.script import run_script
from crosskd.text.prompts import PromptBuilder
from crosskd.text.tasks import Task, load_task

logger = logging.getLogger(__name__)

ABOUT = """Let a model answer the examples of a split, greedily, and score the answers. Writes SHOTSshots.json and, with
--save_predictions, predictions_SHOTSshots.json into output_path."""

Examples = list[dict[str, Any]]


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 for bad input, 130 when it was interrupted."""
    return run_script("benchmark.py", run, words)


def run(words: Sequence[str]) -> None:
    """Answer, score, write, and show the scores."""
    if any(word in ("-h", "--help") for word in words):
        sys.stdout.write(help_text("benchmark.py", ABOUT, BenchmarkFlags, NO_EFFECT))
        return
    start_logging("datasets", "transformers")
    flags = read_benchmark_flags(words)
    task = load_task(flags.task)
    encoder = (flags.bert_score_model or DEFAULT_MODEL) if flags.bert_score else None
    if encoder is not None:
        bert_score_settings(encoder, flags.bert_score_layer)  # what is missing is said before the model is loaded
    examples, titled = read_examples(flags, task)
    scores_file, predictions_file = output_files(flags, titled)
    loaded = load(flags)
    task = shown_task(task, loaded, flags, titled)
    examples = short_enough(examples, loaded, task, flags)
    with progress(f"answers of {Path(flags.model_id).name}", len(examples)) as advance:
        found = evaluate(
            loaded.model,
            examples,
            task,
            tokenizer=loaded.tokenizer,
            name=flags.model_id,
            number_few_shot=flags.number_few_shot,
            max_new_tokens=flags.max_new_tokens,
            batch_size=flags.batch_size,
            bert_score_model=encoder,
            bert_score_layer=flags.bert_score_layer,
            advance=advance,
        )
    if found.truncated_examples:
        logger.warning(
            "%d prompts lost the front of their context to fit the model; --context_length leaves such examples out",
            found.truncated_examples,
        )
    record = published_record(flags, titled, found)
    if predictions_file is not None:
        lines = [{"answers": each.answers, "prediction_text": each.prediction} for each in found.predictions]
        write_jsonl(predictions_file, lines)
    write_json(scores_file, record)
    say_json(record)


def output_files(flags: BenchmarkFlags, titled: bool) -> tuple[Path, Path | None]:
    """Where scores and, if they are wanted, predictions go.

    Raises:
        UsageError: One of them exists and ``--overwrite`` is not given, or the folder is a file.
    """
    names = (Path(flags.model_id).name, Path(flags.dataset_id).name, "titled" if titled else "untitled")
    folder = Path(flags.output_path) if flags.output_path else Path("benchmark_results").joinpath(*names)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_path {folder}", got="a file", expected="a folder")
    scores = folder / f"{flags.number_few_shot}shots.json"
    predictions = folder / f"predictions_{scores.name}" if flags.save_predictions else None
    for path in (scores, predictions):
        if path is not None and path.exists() and not flags.overwrite:
            raise UsageError(f"{path} exists", fix="give --overwrite to replace it, or another --output_path")
    return scores, predictions


def load(flags: BenchmarkFlags) -> LoadedModel:
    """The model, on the accelerator if there is one, with the tokenizer that was named.

    Raises:
        UsageError: It cannot be loaded, or is not what ``--seq2seq`` says.
    """
    fast = fast_bfloat16()
    if flags.bfloat and not fast:
        logger.info("--bfloat has no effect: this machine emulates bfloat16, several times slower than float32")
    loaded = load_model(
        flags.model_id,
        tokenizer=flags.model_tokenizer,
        encoder_decoder=True,
        dtype="bfloat16" if flags.bfloat and fast else "float32",
        trust_remote_code=flags.trust_remote_code,
        allow_pickle=flags.allow_pickle,
    )
    is_one = bool(loaded.model.config.is_encoder_decoder)
    if flags.seq2seq is not None and flags.seq2seq != is_one:
        kind = "an encoder-decoder model" if is_one else "a causal model"
        raise UsageError(f"--seq2seq {flags.seq2seq}", got=f"{flags.model_id}, {kind}", fix="leave the flag out")
    return on_accelerator(loaded)


def shown_task(task: Task, loaded: LoadedModel, flags: BenchmarkFlags, titled: bool) -> Task:
    """The task as its prompts show it: titles as ``titled`` says, the explanation as ``--context`` does.

    Chat models are always told what the task is. Others are told in the first lines of the prompt, or not at all.
    """
    if not titled:
        task = replace(task, shots=tuple(replace(shot, title="") for shot in task.shots))
    if getattr(loaded.tokenizer, "chat_template", None):
        return task
    if not flags.context:
        return replace(task, system="")
    if flags.number_few_shot or not task.system:
        return task
    told = task.system.replace("{", "{{").replace("}", "}}")
    return replace(task, request_format=f"{told}\n\n{task.request_format}")


def short_enough(examples: Examples, loaded: LoadedModel, task: Task, flags: BenchmarkFlags) -> Examples:
    """The examples whose prompt has at most ``--context_length`` tokens; the log says how many are left out.

    Raises:
        UsageError: None is left.
    """
    if flags.context_length is None:
        return examples
    ends = loaded.model.config.is_encoder_decoder
    builder = PromptBuilder(loaded.tokenizer, task, number_few_shot=flags.number_few_shot, append_eos=ends)
    kept = [example for example in examples if len(builder.build(example).ids) <= flags.context_length]
    if not kept:
        raise UsageError(f"--context_length {flags.context_length}", got="no prompt that is so short")
    if len(kept) < len(examples):
        logger.info(
            "%d of %d examples are left out: their prompt is longer than --context_length %d",
            len(examples) - len(kept), len(examples), flags.context_length,
        )  # fmt: skip
    return kept


def published_record(flags: BenchmarkFlags, titled: bool, found: Evaluation) -> dict[str, Any]:
    """What ``SHOTSshots.json`` holds."""
    answers = [each.prediction for each in found.predictions]
    return {
        "model": flags.model_id,
        "dataset": flags.dataset_id,
        "title": titled,
        "number_few_shot": flags.number_few_shot,
        "samples_number": len(answers),
        **published_scores(answers, [each.answers for each in found.predictions], found.scores),
    }
