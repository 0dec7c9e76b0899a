"""Student and teacher of a published run: their models, and the tokens that the loader file makes for them."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

from datasets import Dataset

from crosskd.errors import UsageError
from crosskd.models.load import LoadedModel, load_model
from crosskd.models.precision import fast_bfloat16
from crosskd.published.finetuning_flags import FinetuningFlags
from crosskd.published.loader_file import LoaderFile
from crosskd.published.tokens import RowReader, tokenized_rows

logger = logging.getLogger(__name__)


def load_student(flags: FinetuningFlags) -> LoadedModel:
    """The student, in float32.

    Raises:
        UsageError: See `load_model`; or it is not what ``--encoder_decoder`` says.
    """
    loaded = load_model(
        flags.model_name,
        dtype="float32",
        encoder_decoder=True,
        trust_remote_code=flags.trust_remote_code,
        allow_pickle=flags.allow_pickle,
    )
    is_one = bool(loaded.model.config.is_encoder_decoder)
    if flags.encoder_decoder is not None and flags.encoder_decoder != is_one:
        kind = "an encoder-decoder model" if is_one else "a causal model"
        raise UsageError(
            f"--encoder_decoder {flags.encoder_decoder}", got=f"{flags.model_name}, {kind}", fix="leave the flag out"
        )
    return loaded


def load_teacher(flags: FinetuningFlags) -> LoadedModel:
    """The teacher, in bfloat16 where this machine computes fast in it and nothing else is asked."""
    wanted = flags.pure_bf16 is not False
    if wanted and not fast_bfloat16():
        logger.info("the teacher computes in float32: this machine emulates bfloat16, several times slower")
    return load_model(
        str(flags.teacher),
        dtype="bfloat16" if wanted and fast_bfloat16() else "float32",
        trust_remote_code=flags.trust_remote_code,
        allow_pickle=flags.allow_pickle,
        quantization="8bit" if flags.teacher_quantization else "none",
    )


def read_split(
    flags: FinetuningFlags, loader: LoaderFile, split: str, student: LoadedModel, teacher: LoadedModel | None
) -> Dataset:
    """Tokens of a split for the student and, where there is one, the teacher.

    Raises:
        UsageError: See `crosskd.published.loader_file` and `crosskd.published.tokens`.
    """

    def rows(loaded: LoadedModel) -> Any:
        return loader.split(split, loaded.tokenizer, dataset_config(flags, loaded, teacher))

    return tokenized_rows(
        RowReader("student", student),
        rows(student),
        RowReader("teacher", teacher) if teacher else None,
        rows(teacher) if teacher else None,
        split=split,
        longest=flags.context_length,
    )


def dataset_config(flags: FinetuningFlags, reader: LoadedModel, teacher: LoadedModel | None) -> SimpleNamespace:
    """What a loader file sees as ``dataset_config``: the published attributes, and those of ``--dataset.NAME``."""
    made_by = flags.generated_by or (teacher.tokenizer.name_or_path if teacher else None)
    attributes = {
        "file": flags.dataset_file,
        "training_size": flags.training_size,
        "encoder_decoder": bool(reader.model.config.is_encoder_decoder),
        "generated_by": made_by,
        "context_length": flags.context_length,
    }
    return SimpleNamespace(**{**attributes, **flags.dataset})


def read_validation(
    flags: FinetuningFlags, loader: LoaderFile, student: LoadedModel, teacher: LoadedModel | None
) -> Dataset | None:
    """Tokens of the validation split; None where there is none, or none is wanted."""
    if flags.run_validation is False:
        return None
    try:
        return read_split(flags, loader, "validation", student, teacher)
    except UsageError as error:
        if flags.run_validation:
            raise
        logger.warning("no validation, so the last student is kept: %s", error)
        return None
