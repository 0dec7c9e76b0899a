"""Mistakes in a command line that can be found before the verb imports transformers, which takes ten seconds.

Whoever uses the values checks them again: nothing relies on this. What only a loaded model can show is left to them.
"""

from __future__ import annotations

import itertools
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crosskd.cli.checks import check_apart, check_values, parse_part
from crosskd.cli.flags import known_flags
from crosskd.cli.parsing import FlagParser
from crosskd.data.prepared_folder import check_prepared_split
from crosskd.data.supervision import check_supervised
from crosskd.errors import UsageError
from crosskd.evaluation.bertscore import check_bert_score
from crosskd.files import check_output_folder
from crosskd.models.files import check_model_files, find_model
from crosskd.teacher.cache_identity import IDENTITY, identity_of, read_identity
from crosskd.teacher.decoding import Decoding
from crosskd.text.tasks import load_task
from crosskd.training.named import check_distinct, no_teacher_error
from crosskd.training.ranges import (
    check_distillation_ranges,
    check_training_ranges,
    read_mapping,
    refuse_what_cannot_work,
)
from crosskd.training.run_files import has_begun

if TYPE_CHECKING:
    from crosskd.losses.base import DistillationMethod


def check_early(verb: str, words: Sequence[str]) -> None:
    """Print the help of a verb, or find mistakes in its flags and in what they name, without importing it.

    Does nothing where the flags of the verb are not known, or ``--config`` names a pipe, which can be read only once.

    Raises:
        UsageError, SystemExit: As for `FlagParser.check`; or a value is out of its range, or a model, a folder or a
            task is not there, or not whole.
    """
    flags = known_flags(verb)
    paths = [Path(word.partition("=")[2]) for word in words if word.startswith("--config=")]
    paths += [Path(after) for word, after in itertools.pairwise(words) if word == "--config"]
    if flags is None or any(path.exists() and not path.is_file() and not path.is_dir() for path in paths):
        return
    values = FlagParser(flags).check(words)
    check_values(vars(values))
    for check in _CHECKS.get(verb, ()):
        check(values)


def _task(values: Namespace) -> None:
    load_task(values.task).number_of_shots(values.number_few_shot, tell=False)


def _decoding(values: Namespace) -> None:
    Decoding(values.max_new_tokens, values.temperature, values.top_p, values.seed)


def _output(values: Namespace) -> None:
    check_output_folder(values.output, overwrite=values.overwrite, resume=values.resume)


def _output_of_answers(values: Namespace) -> None:
    _output(values)
    check_apart(values.data, values.output)


def _output_of_many(values: Namespace) -> None:
    """Of a cache: others may be writing into it."""
    goes_on = values.resume or values.repair or parse_part(values.shard)[1] > 1
    folder = check_output_folder(values.output, overwrite=values.overwrite, resume=goes_on)
    if goes_on and (folder / IDENTITY).is_file():
        read_identity(folder, f"--output {folder}")


def _output_of_training(values: Namespace) -> None:
    """Of several processes the first looks after the folder; it may have begun to write."""
    if os.environ.get("RANK", "0") == "0":
        check_output_folder(values.output_dir or "", overwrite=values.overwrite, resume=values.resume)


def _settings(values: Namespace) -> None:
    check_training_ranges(values)
    check_distillation_ranges(values)
    refuse_what_cannot_work(values)


def _model(values: Namespace) -> None:
    check_model_files(values.model, allow_pickle=values.allow_pickle)


def _teacher(values: Namespace) -> None:
    check_model_files(values.teacher, allow_pickle=values.allow_pickle)


def _answering_teacher(values: Namespace) -> None:
    if values.backend == "transformers":  # vLLM reads files of its own kinds
        _teacher(values)


def _tokenizers(values: Namespace) -> None:
    for source in (values.teacher, values.student):
        check_model_files(source, weights=False)


def _data(values: Namespace) -> None:
    if not values.data.startswith("sample:"):
        columns = check_prepared_split(Path(values.data), values.split)
        check_supervised(columns, getattr(values, "supervision", "labels"))


def _run(values: Namespace) -> None:
    """Models and data of a training; one that goes on says by itself how they differ from those that it began with."""
    if values.resume and has_begun(Path(values.output_dir or "")):
        return
    check_distinct(values.student, values.teacher)
    tiny = values.model_override != "none"  # the models that are named are not loaded then
    if not tiny:
        check_model_files(values.student, allow_pickle=values.allow_pickle)
    supervision = "teacher" if values.method == "seqkd" else values.supervision
    _data(Namespace(data=values.data, split="train", supervision=supervision))
    if values.eval_strategy not in (None, "no"):
        _data(Namespace(data=values.data, split="validation"))
    if not _method(values).needs_teacher:
        return
    if values.teacher_cache is not None:
        identity_of(values.teacher_cache)
    elif values.teacher is None:
        raise no_teacher_error(values.method)
    elif not tiny:
        _teacher(values)


def _method(values: Namespace) -> DistillationMethod:
    from crosskd.losses.registry import configured_method  # torch

    settings = values.method_settings and read_mapping("method_settings", values.method_settings)
    return configured_method(Namespace(**{**vars(values), "method_settings": settings}))


def _request(values: Namespace) -> None:
    from crosskd.cli.cache_request import merged_request  # torch

    merged_request(values)


def _scorer(values: Namespace) -> None:
    if values.bert_score_model is None:
        check_bert_score(None, values.bert_score_layer)
        return
    try:
        find_model(values.bert_score_model)
    except UsageError as error:
        raise UsageError("--bert_score_model", got=str(error)) from error


_CHECKS = {
    "inspect": (_task, _tokenizers, _data),
    "answer": (_task, _decoding, _output_of_answers, _answering_teacher, _data),
    "cache": (_task, _output_of_many, _teacher, _data, _request),
    "distill": (_task, _settings, _output_of_training, _run),
    "evaluate": (_task, _output, _model, _scorer, _data),
}
