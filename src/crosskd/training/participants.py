"""Who takes part in a run: the student, and a live teacher or the targets it left."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crosskd.errors import UsageError
from crosskd.losses.base import DistillationMethod
from crosskd.losses.targets import TargetRequest
from crosskd.models.limits import context_length
from crosskd.models.load import LoadedModel, load_model, load_tokenizer
from crosskd.models.quantization import quantization_of
from crosskd.teacher.cache import TargetCache
from crosskd.teacher.identity import (
    check_identity,
    data_sha256,
    model_fields,
    prompt_sha256,
    request_fields,
    tokenizer_sha256,
)
from crosskd.text.alignment import Vocabulary, read_vocabulary
from crosskd.text.prompts import PromptBuilder
from crosskd.text.sides import Side
from crosskd.text.tasks import load_task
from crosskd.training.config import DistillationConfig
from crosskd.training.named import check_distinct, no_teacher_error

logger = logging.getLogger(__name__)
ModelSource = str | Path | LoadedModel | PreTrainedModel


@dataclass(frozen=True)
class Participants:
    """The models of a run.

    Attributes:
        student: The model to train.
        teacher: A live teacher, or None.
        cache: What a teacher left, or None.
        teacher_name: What the teacher is called in records; None without one.
        sides: How the student, and a live teacher, read an example.
        teacher_fields: What is known of a teacher that was named beside a cache, as identity fields.
    """

    student: LoadedModel
    teacher: LoadedModel | None
    cache: TargetCache | None
    teacher_name: str | None
    sides: tuple[Side, ...]
    teacher_fields: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def teacher_vocabulary(self) -> Vocabulary:
        """The texts of the teacher's tokens: read of a live teacher's tokenizer, or kept by the cache."""
        if self.cache is not None:
            return self.cache.vocabulary()
        return read_vocabulary(self.sides[1].builder.tokenizer)


def gather_participants(
    config: DistillationConfig,
    method: DistillationMethod,
    student: ModelSource,
    teacher: ModelSource | None,
    cache: TargetCache | None,
    tokenizers: tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None] = (None, None),
) -> Participants:
    """Load what the method needs and nothing else: no teacher for SFT, none where its targets are cached.

    Args:
        config: The run's settings.
        method: Made from them.
        student: See `DistillationTrainer`.
        teacher: Likewise.
        cache: An open cache of teacher targets.
        tokenizers: Those of student and teacher, for models given as bare objects.

    Raises:
        UsageError: A teacher is missing, or is the same folder as the student.
    """
    check_distinct(student, teacher)
    loaded = _as_loaded(student, tokenizers[0], "student")
    sides = [_side("student", config, loaded.model, loaded.tokenizer)]
    if not method.needs_teacher:
        return Participants(loaded, None, None, None, tuple(sides))
    if cache is not None:
        named = _name_of(teacher) or str(cache.identity["teacher"])
        fields = {} if teacher is None else _fields_of(teacher, tokenizers[1])
        return Participants(loaded, None, cache, named, tuple(sides), fields)
    if teacher is None:
        raise no_teacher_error(config.method)
    live = _as_loaded(teacher, tokenizers[1], "teacher")
    if live.model.config.is_encoder_decoder:
        raise UsageError(
            f"teacher {live.name}", got="an encoder-decoder model", expected="a causal language model as teacher"
        )
    sides.append(_side("teacher", config, live.model, live.tokenizer))
    return Participants(loaded, live, None, live.name, tuple(sides))


def check_cache(
    config: DistillationConfig, participants: Participants, request: TargetRequest | None, examples: Dataset | None
) -> None:
    """Refuse a cache that was made for other examples, prompts or methods; see `crosskd.teacher.identity`."""
    cache = participants.cache
    if cache is None or request is None:
        return
    wanted = {
        "prompt_sha256": prompt_sha256(load_task(config.task), config.number_few_shot),
        "number_few_shot": config.number_few_shot,
        "teacher_prompt_style": config.teacher_prompt_style,
        "supervision": config.supervision,
        **request_fields(request),
        **participants.teacher_fields,
    }
    if config.teacher_max_length is not None:
        wanted["teacher_max_length"] = config.teacher_max_length
    if examples is not None:
        wanted["data_sha256"] = data_sha256(examples, config.supervision)
    check_identity(cache.identity, wanted, f"--teacher_cache {cache.folder}")


def check_teacher_flags(cache: str | Path, dtype: str, quantization: str) -> None:
    """Refuse a cache whose teacher had another number format than the flags say; their defaults say nothing.

    Args:
        cache: The folder.
        dtype: ``--teacher_dtype``; ``"auto"`` takes what the cache was made with.
        quantization: ``--teacher_quantization``; ``"none"`` likewise.
    """
    wanted: dict[str, Any] = {} if dtype == "auto" else {"teacher_dtype": f"torch.{dtype}"}
    wanted |= {} if quantization == "none" else {"teacher_quantization": quantization}
    if wanted:
        check_identity(TargetCache.open(cache).identity, wanted, f"--teacher_cache {cache}")


def _fields_of(teacher: ModelSource, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """What can be seen of a teacher that is named beside a cache, without loading its weights or running its code."""
    fields: dict[str, Any] = {}
    if isinstance(teacher, LoadedModel):
        tokenizer = teacher.tokenizer
        quantization = quantization_of(teacher.model)
        fields = {"teacher_dtype": str(teacher.model.dtype), "teacher_quantization": quantization}
    if (name := _name_of(teacher)) is not None:
        files = {field: value for field, value in model_fields(name).items() if value is not None}
        fields |= {"teacher": name, **files}
        if "teacher_weights_sha256" not in files:
            logger.warning("the weights of %s are not on this machine: the cache is compared with its name", name)
        tokenizer = tokenizer or _readable_tokenizer(name)
    return fields if tokenizer is None else {**fields, "tokenizer_sha256": tokenizer_sha256(tokenizer)}


def _readable_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    try:
        return load_tokenizer(name)
    except UsageError as error:
        logger.warning("the tokenizer of %s is not compared with the cache's: %s", name, error)
        return None


def _side(
    name: str, config: DistillationConfig, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase
) -> Side:
    is_student = name == "student"
    limit = config.max_length if is_student else config.teacher_max_length
    builder = PromptBuilder(
        tokenizer,
        load_task(config.task),
        number_few_shot=0 if is_student else config.number_few_shot,
        style=config.student_prompt_style if is_student else config.teacher_prompt_style,
        append_eos=model is not None and model.config.is_encoder_decoder,  # as their encoders were trained
    )
    bound = limit if model is None else context_length(model.config, tokenizer, limit)
    return Side(name, builder, append_eos=is_student, max_length=bound)


def _as_loaded(source: ModelSource, tokenizer: PreTrainedTokenizerBase | None, role: str) -> LoadedModel:
    if isinstance(source, LoadedModel):
        return source
    if isinstance(source, str | Path):
        # weights that are trained want float32; a teacher keeps the type in which it is stored
        if role == "student":
            return load_model(source, dtype="float32", encoder_decoder=True)
        return load_model(source)
    if tokenizer is None:
        raise UsageError(
            role,
            got="a model without its tokenizer",
            expected="what load_model returns, or a model together with its tokenizer",
            fix="pass processing_class=" if role == "student" else "pass teacher_processing_class=",
        )
    return LoadedModel(source, tokenizer, source.name_or_path or type(source).__name__)


def _name_of(source: ModelSource | None) -> str | None:
    """What the user called a model; None for one that came as a bare object, or not at all."""
    if isinstance(source, LoadedModel):
        return source.name
    return str(source) if isinstance(source, str | Path) else None
