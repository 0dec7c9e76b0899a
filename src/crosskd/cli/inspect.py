"""``crosskd inspect``: what two tokenizers make of the data, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from transformers.configuration_utils import PreTrainedConfig

from crosskd.cli.console import say_json, start_logging
from crosskd.cli.inspect_costs import cache_sizes, estimate_time, model_facts, read_config
from crosskd.cli.inspect_tables import show
from crosskd.cli.parsing import VerbParser
from crosskd.data.oddities import multi_line_answers
from crosskd.data.prepare import load_examples
from crosskd.models.limits import context_length
from crosskd.models.load import load_tokenizer
from crosskd.text.compare_tokenizers import compare_tokenizers
from crosskd.text.prompts import PromptBuilder
from crosskd.text.sides import Side
from crosskd.text.tasks import load_task
from crosskd.text.tokenizer_warnings import Finding, find_trouble

DESCRIPTION = """Compare the tokenizers of a teacher and a student on your data, estimate what distillation will cost,
and warn of what is known to hurt. Reads tokenizers and configurations, never weights."""


@dataclass
class InspectArguments:
    """Flags of ``crosskd inspect``."""

    teacher: str = field(metadata={"help": "hub id, folder or GGUF file; the first word without a flag"})
    student: str = field(metadata={"help": "likewise; the second word without a flag"})
    data: str = field(
        default="sample:qed", metadata={"help": "folder written by `crosskd prepare`, or a sample such as sample:qed"}
    )
    split: str = field(default="train", metadata={"help": "split to look at"})
    limit: int = field(default=1000, metadata={"help": "look at the first so many examples"})
    task: str = field(default="qa", metadata={"help": "name of a task, or a YAML file with one of your own"})
    supervision: Literal["labels", "teacher"] = field(
        default="labels", metadata={"help": "whose answers: the data's labels, or the teacher's own"}
    )
    number_few_shot: int | None = field(
        default=None, metadata={"help": "examples in the teacher's prompt; default: 5, or as many as the task has"}
    )
    teacher_prompt_style: Literal["auto", "plain", "chat"] = field(
        default="auto", metadata={"help": "auto takes the chat template where there is one"}
    )
    student_prompt_style: Literal["auto", "plain", "chat"] = field(default="auto", metadata={"help": "likewise"})
    teacher_max_length: int | None = field(
        default=None, metadata={"help": "longest prompt and answer, in tokens; default: the model's limit"}
    )
    max_length: int | None = field(default=None, metadata={"help": "the same for the student"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run the code that a model brings"})
    json: bool = field(default=False, metadata={"help": "print JSON, for a script"})


def parsers() -> list[VerbParser]:
    """What reads the command line."""
    return [VerbParser("inspect", DESCRIPTION, [InspectArguments], positional=("teacher", "student"))]


def run(words: Sequence[str]) -> None:
    """Compare, estimate, warn, and print it all."""
    (arguments,) = parsers()[0].parse(words)
    start_logging("datasets", "transformers")
    findings = inspect(arguments)
    if arguments.json:
        say_json(findings)
    else:
        show(findings)


def inspect(arguments: InspectArguments) -> dict[str, Any]:
    """All findings, as numbers and texts: ``models``, ``data``, ``tokenizers``, ``cache``, ``time``, ``warnings``."""
    examples = load_examples(arguments.data, arguments.split)
    looked_at = examples.select(range(min(arguments.limit, len(examples)))).to_list()
    shots = load_task(arguments.task).number_of_shots(arguments.number_few_shot)
    names = {"teacher": arguments.teacher, "student": arguments.student}
    trust = arguments.trust_remote_code
    configs = {role: read_config(name, trust_remote_code=trust) for role, name in names.items()}
    teacher, student = (
        _side(role, names[role], configs[role], arguments, shots if role == "teacher" else 0) for role in names
    )
    comparison = compare_tokenizers(teacher, student, looked_at, supervision=arguments.supervision)
    facts = {role: model_facts(names[role], configs[role], trust_remote_code=trust) for role in names}
    outputs = {role: facts[role].output_entries for role in names}
    return {
        "models": {role: {"name": names[role], **asdict(facts[role])} for role in names},
        "data": {
            "source": arguments.data,
            "split": arguments.split,
            "task": arguments.task,
            "examples": len(examples),
            "number_few_shot": shots,
        },
        "tokenizers": comparison.to_dict(),
        "cache": [asdict(size) for size in cache_sizes(comparison, len(examples))],
        "time": asdict(estimate_time(comparison, facts["teacher"], facts["student"], len(examples))),
        "warnings": [asdict(found) for found in [*_of_data(looked_at), *find_trouble(comparison, outputs)]],
    }


def _of_data(examples: list[dict[str, Any]]) -> list[Finding]:
    """Warnings of the examples themselves."""
    lines = multi_line_answers(examples)
    return [Finding("answers_of_several_lines", f"{lines[:1].upper()}{lines[1:]}.")] if lines else []


def _side(role: str, name: str, config: PreTrainedConfig, arguments: InspectArguments, shots: int) -> Side:
    """How training would read an example on this side."""
    is_student = role == "student"
    tokenizer = load_tokenizer(name, trust_remote_code=arguments.trust_remote_code)
    builder = PromptBuilder(
        tokenizer,
        load_task(arguments.task),
        number_few_shot=shots,
        style=arguments.student_prompt_style if is_student else arguments.teacher_prompt_style,
    )
    wanted = arguments.max_length if is_student else arguments.teacher_max_length
    return Side(role, builder, append_eos=is_student, max_length=context_length(config, tokenizer, wanted))
