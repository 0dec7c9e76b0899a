"""Flags of what may stand after ``crosskd recipes``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ListArguments:
    """Flags of ``crosskd recipes list``."""

    table: int | None = field(default=None, metadata={"help": "table of the paper"})
    student: str | None = field(default=None, metadata={"help": "student, as in the names of recipes: opt-350m"})
    teacher: str | None = field(default=None, metadata={"help": "teacher, likewise: llama2"})
    dataset: str | None = field(default=None, metadata={"help": "data, likewise: qed"})
    json: bool = field(default=False, metadata={"help": "print JSON, for a script"})


@dataclass
class ShowArguments:
    """Flags of ``crosskd recipes show``."""

    name: str = field(metadata={"help": "name of a recipe"})


@dataclass
class CopyArguments:
    """Flags of ``crosskd recipes copy``."""

    name: str = field(metadata={"help": "name of a recipe"})
    output: str = field(metadata={"help": "file to write"})
    overwrite: bool = field(default=False, metadata={"help": "replace the file"})


@dataclass
class RunArguments:
    """Flags of ``crosskd recipes run``."""

    name: str = field(metadata={"help": "name of a recipe"})
    output: str = field(metadata={"help": "folder to write"})
    data: str | None = field(
        default=None, metadata={"help": "data for `crosskd prepare`; default: where the recipe looks"}
    )
    model_override: Literal["tiny"] | None = field(
        default=None,
        metadata={
            "help": "put tiny random models in place of the recipe's, to try it without downloads; "
            "16 examples a split, 2 steps and answers of 16 tokens, unless flags say otherwise"
        },
    )
    split: str | None = field(default=None, metadata={"help": "split to score; default: the recipe's"})
    limit: int | None = field(default=None, metadata={"help": "keep at most so many examples of each split"})
    max_steps: int | None = field(default=None, metadata={"help": "stop training after so many steps"})
    max_new_tokens: int | None = field(default=None, metadata={"help": "longest answer, in tokens [150]"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run the code that a model brings"})
    allow_pickle: bool = field(default=False, metadata={"help": "read weights in pickle format, which can run code"})
    resume: bool = field(default=False, metadata={"help": "go on with a run that was interrupted"})
    overwrite: bool = field(default=False, metadata={"help": "replace what the output folder holds"})
