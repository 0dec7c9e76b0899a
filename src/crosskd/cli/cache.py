"""``crosskd cache``: the teacher runs once, and what the losses need of it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from crosskd.cli.cache_request import aligns, merged_request
from crosskd.cli.checks import parse_part
from crosskd.cli.console import progress, say, start_logging
from crosskd.cli.evaluate import on_accelerator
from crosskd.cli.parsing import VerbParser
from crosskd.data.prepare import load_examples
from crosskd.data.supervision import supervised_examples
from crosskd.files import check_output_folder, disk_errors, prepare_output_folder
from crosskd.models.load import load_model
from crosskd.models.quantization import Quantization
from crosskd.teacher.cache import TargetCache
from crosskd.teacher.run import TeacherRun
from crosskd.text.alignment import read_vocabulary
from crosskd.text.tasks import load_task

DESCRIPTION = """Run the teacher once over prompts and answers, and keep what the losses need: about 110 bytes an answer
token for MultiLevelOT. `crosskd distill --teacher_cache DIR` then trains without loading the teacher."""


@dataclass
class CacheArguments:
    """Flags of ``crosskd cache``."""

    teacher: str = field(metadata={"help": "hub id, folder or GGUF file"})
    data: str = field(metadata={"help": "folder written by `crosskd prepare`, or sample:qed"})
    output: str = field(metadata={"help": "folder to write"})
    methods: str = field(default="multilevel_ot", metadata={"help": "methods to serve: multilevel_ot,uld,mined"})
    task: str = field(default="qa", metadata={"help": "name of a task, or a YAML file with one of your own"})
    split: str = field(default="train", metadata={"help": "split to capture"})
    supervision: Literal["labels", "teacher"] = field(
        default="labels", metadata={"help": "whose answers: the data's labels, or the teacher's own"}
    )
    number_few_shot: int | None = field(
        default=None, metadata={"help": "examples in the prompt; default: 5, or as many as the task has"}
    )
    teacher_prompt_style: Literal["auto", "plain", "chat"] = field(
        default="auto", metadata={"help": "auto takes the chat template where there is one"}
    )
    teacher_max_length: int | None = field(
        default=None, metadata={"help": "longest prompt and answer, in tokens; default: the model's limit"}
    )
    top_k: int = field(default=50, metadata={"help": "columns kept for multilevel_ot"})
    top_entries: int = field(default=200, metadata={"help": "entries of each token kept for uld and mined"})
    sequential_log_temperature: float = field(default=1.0, metadata={"help": "as in `crosskd distill`"})
    sinkhorn_temperature: float = field(default=2.0, metadata={"help": "as in `crosskd distill`"})
    target_dtype: Literal["float16", "float32"] = field(
        default="float16", metadata={"help": "number format of the targets; float16 halves the cache"}
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "number format of the teacher's weights; auto: as stored"}
    )
    batch_size: int = field(default=8, metadata={"help": "examples a forward"})
    shard_size: int = field(default=512, metadata={"help": "examples a file; a restart loses one file at most"})
    shard: str = field(default="1/1", metadata={"help": "i/n: of n processes or hosts that share DIR this is number i"})
    quantization: Quantization = field(
        default="none", metadata={"help": "load the weights in 8 or 4 bit (extra bitsandbytes)"}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run the code that the model brings"})
    allow_pickle: bool = field(default=False, metadata={"help": "read weights in pickle format, which can run code"})
    resume: bool = field(default=False, metadata={"help": "go on with a cache that was interrupted"})
    repair: bool = field(default=False, metadata={"help": "write damaged files again; implies --resume"})
    overwrite: bool = field(default=False, metadata={"help": "replace what the output folder holds"})


def parsers() -> list[VerbParser]:
    """What reads the command line."""
    return [VerbParser("cache", DESCRIPTION, [CacheArguments])]


def run(words: Sequence[str]) -> None:
    """Capture the targets of every example that the cache does not hold yet."""
    (arguments,) = parsers()[0].parse(words)
    start_logging("datasets", "transformers")
    shots = load_task(arguments.task).number_of_shots(arguments.number_few_shot)
    part = parse_part(arguments.shard)
    examples = supervised_examples(load_examples(arguments.data, arguments.split), arguments.supervision)
    request = merged_request(arguments)
    goes_on = arguments.resume or arguments.repair or part[1] > 1
    check_output_folder(arguments.output, overwrite=arguments.overwrite, resume=goes_on)
    loaded = on_accelerator(
        load_model(
            arguments.teacher,
            dtype=arguments.dtype,
            trust_remote_code=arguments.trust_remote_code,
            allow_pickle=arguments.allow_pickle,
            quantization=arguments.quantization,
        )
    )
    teacher = TeacherRun(
        loaded,
        arguments.task,
        number_few_shot=shots,
        prompt_style=arguments.teacher_prompt_style,
        max_length=arguments.teacher_max_length,
        supervision=arguments.supervision,
    )
    teacher.check(examples)
    dtype = getattr(torch, arguments.target_dtype)
    identity = teacher.identity(examples, request, dtype, arguments.shard_size)
    with disk_errors(arguments.output, "make room, then give the same command with --resume: whole files are kept"):
        folder = prepare_output_folder(arguments.output, overwrite=arguments.overwrite, resume=goes_on)
        cache = TargetCache.create(folder, identity, read_vocabulary(loaded.tokenizer) if aligns(arguments) else None)
        problems = cache.problems(part)
        with progress("targets of the teacher", sum(len(cache.examples_of(i)) for i in problems)) as advance:
            cache.fill(
                lambda rows: teacher.targets(
                    examples.select(rows), request, dtype=dtype, batch_size=arguments.batch_size, advance=advance
                ),
                problems,
                repair=arguments.repair,
            )
        if part == (1, 1):
            cache.remove_leftovers()
    size = sum(path.stat().st_size for path in folder.iterdir())
    say(f"{len(problems)} files written to {folder}: {len(cache)} examples, {size / 1e6:.2f} MB in all")
