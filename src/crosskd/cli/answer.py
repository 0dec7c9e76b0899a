"""``crosskd answer``: the teacher answers a data set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from crosskd.cli.checks import check_apart
from crosskd.cli.console import progress, say, start_logging
from crosskd.cli.evaluate import on_accelerator
from crosskd.cli.parsing import VerbParser
from crosskd.data.prepare import load_examples, load_splits
from crosskd.files import check_output_folder, disk_errors, prepare_output_folder
from crosskd.models.load import load_model
from crosskd.models.quantization import Quantization
from crosskd.teacher.answers import AnswerFolder, TeacherAnswers
from crosskd.teacher.backends import AnswerBackend, TransformersBackend, VllmBackend
from crosskd.teacher.decoding import Decoding
from crosskd.text.tasks import load_task

logger = logging.getLogger(__name__)

DESCRIPTION = """Let the teacher answer the examples of a split, and write a copy of the data with its answers in the
column teacher_answer. `crosskd distill --supervision teacher` then trains on them, also where there are no labels."""


@dataclass
class AnswerArguments:
    """Flags of ``crosskd answer``."""

    teacher: str = field(metadata={"help": "hub id, folder or GGUF file"})
    data: str = field(metadata={"help": "folder written by `crosskd prepare`, or sample:qed"})
    output: str = field(metadata={"help": "folder to write"})
    split: str = field(default="train", metadata={"help": "split to answer; the others are copied"})
    task: str = field(default="qa", metadata={"help": "name of a task, or a YAML file with one of your own"})
    number_few_shot: int | None = field(
        default=None, metadata={"help": "examples in the prompt; default: 5, or as many as the task has"}
    )
    prompt_style: Literal["auto", "plain", "chat"] = field(
        default="auto", metadata={"help": "auto takes the chat template where there is one"}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "longest prompt and answer, in tokens; default: the model's limit"}
    )
    max_new_tokens: int = field(default=150, metadata={"help": "longest answer, in tokens"})
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy; above 0 answers are sampled"})
    top_p: float = field(default=1.0, metadata={"help": "sample from the tokens that together reach this share"})
    seed: int = field(default=42, metadata={"help": "seed of sampled answers"})
    batch_size: int = field(default=8, metadata={"help": "examples answered at once (vLLM chooses for itself)"})
    shard_size: int = field(default=256, metadata={"help": "examples a file; a restart loses one file at most"})
    format: Literal["arrow", "jsonl"] = field(
        default="arrow", metadata={"help": "a data set that the other verbs read, or JSON Lines, a file a split"}
    )
    backend: Literal["transformers", "vllm"] = field(
        default="transformers", metadata={"help": "vllm needs the extra of that name"}
    )
    tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that share the model (vLLM)"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "number format of the weights; auto: as stored"}
    )
    quantization: Quantization = field(
        default="none", metadata={"help": "load the weights in 8 or 4 bit (extra bitsandbytes)"}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run the code that the model brings"})
    allow_pickle: bool = field(default=False, metadata={"help": "read weights in pickle format, which can run code"})
    resume: bool = field(default=False, metadata={"help": "go on after the last whole file of an interrupted run"})
    overwrite: bool = field(default=False, metadata={"help": "replace what the output folder holds"})


def parsers() -> list[VerbParser]:
    """What reads the command line."""
    return [VerbParser("answer", DESCRIPTION, [AnswerArguments])]


def run(words: Sequence[str]) -> None:
    """Answer what is not answered yet, and assemble the data set."""
    (arguments,) = parsers()[0].parse(words)
    start_logging("datasets", "transformers")
    shots = load_task(arguments.task).number_of_shots(arguments.number_few_shot)
    decoding = Decoding(arguments.max_new_tokens, arguments.temperature, arguments.top_p, arguments.seed)
    examples = load_examples(arguments.data, arguments.split)
    _check_folders(arguments)
    teacher = TeacherAnswers(
        _backend(arguments),
        arguments.task,
        decoding,
        number_few_shot=shots,
        prompt_style=arguments.prompt_style,
        max_length=arguments.max_length,
    )
    teacher.check(examples)
    identity = {**teacher.identity(examples, arguments.split, arguments.shard_size), "format": arguments.format}
    with disk_errors(arguments.output, "make room, then give the same command with --resume: whole files are kept"):
        folder = prepare_output_folder(arguments.output, overwrite=arguments.overwrite, resume=arguments.resume)
        answers = AnswerFolder.open(folder, identity)
        if answers.finished:
            say(f"{folder} is whole already")
            return
        _fill(answers, teacher, examples)
        summary = answers.assemble(load_splits(arguments.data), arguments.format, Path(arguments.data))
    _tell(summary, folder)


def _check_folders(arguments: AnswerArguments) -> None:
    """Refuse an output that would damage the data; they are read until the end."""
    check_output_folder(arguments.output, overwrite=arguments.overwrite, resume=arguments.resume)
    check_apart(arguments.data, arguments.output)


def _backend(arguments: AnswerArguments) -> AnswerBackend:
    options: dict[str, Any] = {
        "dtype": arguments.dtype,
        "trust_remote_code": arguments.trust_remote_code,
        "allow_pickle": arguments.allow_pickle,
    }
    if arguments.backend == "vllm":
        return VllmBackend(
            arguments.teacher,
            max_length=arguments.max_length,
            tensor_parallel_size=arguments.tensor_parallel_size,
            **options,
        )
    loaded = load_model(arguments.teacher, encoder_decoder=True, quantization=arguments.quantization, **options)
    return TransformersBackend(on_accelerator(loaded), arguments.batch_size)


def _fill(answers: AnswerFolder, teacher: TeacherAnswers, examples: Dataset) -> None:
    missing = answers.missing()
    with progress("answers of the teacher", sum(len(answers.examples_of(shard)) for shard in missing)) as advance:
        for shard in missing:
            answers.write(shard, teacher.answer(examples.select(answers.examples_of(shard)), advance))


def _tell(summary: dict[str, Any], folder: Path) -> None:
    if summary["truncated_examples"]:
        logger.warning(
            "%d of %d contexts lost their front to fit a prompt of %d tokens",
            summary["truncated_examples"], summary["examples"], summary["longest_prompt"],
        )  # fmt: skip
    empty = summary["empty_answers"]
    if empty:
        logger.warning("%d of %d answers are empty: training and caches leave them out", empty, summary["examples"])
    say(f"{summary['examples']} examples of {summary['split']} answered in {folder}")
