"""``crosskd distill``: train a student."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformers import TrainingArguments

from crosskd.cli.console import say, start_logging
from crosskd.cli.parsing import VerbParser
from crosskd.data.prepare import load_examples
from crosskd.errors import UsageError
from crosskd.files import check_output_folder, prepare_output_folder
from crosskd.losses.registry import METHODS
from crosskd.models.load import load_model
from crosskd.models.quantization import Quantization
from crosskd.models.tiny import tiny_stand_in
from crosskd.training.checkpoints import last_checkpoint, writing
from crosskd.training.config import DistillationConfig
from crosskd.training.named import check_distinct
from crosskd.training.participants import check_teacher_flags
from crosskd.training.resuming import check_settings
from crosskd.training.run_files import has_begun, is_finished
from crosskd.training.trainer import DistillationTrainer

logger = logging.getLogger(__name__)

DESCRIPTION = """Train a student on prepared examples: with a live teacher (--teacher), with what it left
(--teacher_cache), or alone (--method sft). Writes a checkpoint that transformers loads, its tokenizer, a model card,
metrics.jsonl, resolved_config.yaml (give it to --config to repeat the run) and provenance.json."""

EPILOG = "Every field of transformers.TrainingArguments is a flag too; --help_all shows them."

# the fields of TrainingArguments that most runs touch
_SHOWN = {
    "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "bf16", "use_cpu",
    "gradient_checkpointing", "logging_steps", "save_strategy", "save_steps", "save_total_limit", "eval_strategy",
    "eval_steps", "report_to",
}  # fmt: skip


_NOT_OF_THE_RUN = ("resume", "overwrite")


@dataclass
class DistillArguments:
    """Flags of ``crosskd distill`` beside those of `DistillationConfig`."""

    student: str = field(metadata={"help": "model to train: hub id, folder or GGUF file"})
    data: str = field(metadata={"help": "folder written by `crosskd prepare`, or sample:qed"})
    teacher: str | None = field(default=None, metadata={"help": "model to learn from: hub id, folder or GGUF file"})
    teacher_cache: str | None = field(
        default=None, metadata={"help": "folder written by `crosskd cache`; the teacher is then not loaded"}
    )
    student_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "number format of the trained weights"}
    )
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "number format of the teacher's weights; auto: as stored"}
    )
    teacher_quantization: Quantization = field(
        default="none", metadata={"help": "load the teacher's weights in 8 or 4 bit (extra bitsandbytes)"}
    )
    encoder_decoder: bool = field(
        default=False, metadata={"help": "insist on an encoder-decoder student (T5, mT5); they are detected anyway"}
    )
    model_override: Literal["none", "tiny"] = field(
        default="none", metadata={"help": "tiny: try the command with tiny random models of the same families"}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run the code that a model brings"})
    allow_pickle: bool = field(default=False, metadata={"help": "read weights in pickle format, which can run code"})
    resume: bool = field(default=False, metadata={"help": "go on from the last checkpoint in output_dir"})
    overwrite: bool = field(default=False, metadata={"help": "replace what output_dir holds"})


def parsers() -> list[VerbParser]:
    """What reads the command line."""
    inherited = {item.name for item in fields(TrainingArguments)}
    types = [DistillArguments, DistillationConfig]
    return [VerbParser("distill", DESCRIPTION, types, hidden=inherited - _SHOWN, epilog=EPILOG)]


def run(words: Sequence[str]) -> None:
    """Train, and save the student."""
    start_logging("datasets", "transformers")
    arguments, config = parsers()[0].parse(words)
    folder = Path(str(config.output_dir))
    first = config.process_index == 0  # of several processes one looks after the folder, before the others write
    if first:
        check_output_folder(folder, overwrite=arguments.overwrite, resume=arguments.resume)
    sources = sources_of(arguments)
    if arguments.resume and has_begun(folder):
        check_settings(folder, config, sources)
        if is_finished(folder):
            say(f"{folder} is finished already; it is left as it is")
            return
    trainer = build_trainer(arguments, config, sources)
    with config.main_process_first(desc="output folder"):
        if first:
            prepare_output_folder(folder, overwrite=arguments.overwrite, resume=arguments.resume)
    checkpoint = last_checkpoint(folder) if arguments.resume else None
    if arguments.resume:
        logger.info("going on from %s", checkpoint.name if checkpoint else "the start: there is no checkpoint yet")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    with writing(folder, "the student"):
        trainer.save_model()
        trainer.save_state()
    if first:
        say(f"student: {folder}")


def sources_of(arguments: DistillArguments) -> dict[str, Any]:
    """The flags that a file must hold to repeat the run, beside those of its configuration."""
    flags = [item for item in fields(DistillArguments) if item.name not in _NOT_OF_THE_RUN]
    return {item.name: getattr(arguments, item.name) for item in flags if getattr(arguments, item.name) != item.default}


def build_trainer(
    arguments: DistillArguments, config: DistillationConfig, sources: dict[str, Any]
) -> DistillationTrainer:
    """Load the models and examples that the flags name; ``sources`` is what the records call them."""
    load = partial(load_model, trust_remote_code=arguments.trust_remote_code, allow_pickle=arguments.allow_pickle)
    check_distinct(arguments.student, arguments.teacher)
    if arguments.teacher_cache is not None:
        check_teacher_flags(arguments.teacher_cache, arguments.teacher_dtype, arguments.teacher_quantization)
    if arguments.model_override == "tiny":
        _take_stand_ins(arguments)
    asks_teacher = METHODS[config.method].needs_teacher and arguments.teacher_cache is None
    teacher = arguments.teacher
    examples = load_examples(arguments.data, "train")
    evaluation = None if config.eval_strategy == "no" else load_examples(arguments.data, "validation")
    student = load(arguments.student, dtype=arguments.student_dtype, encoder_decoder=True)
    if arguments.encoder_decoder and not student.model.config.is_encoder_decoder:
        raise UsageError(
            "--encoder_decoder", got=f"a {type(student.model).__name__}", expected="an encoder-decoder model"
        )
    quantized: dict[str, Any] = {"dtype": arguments.teacher_dtype, "quantization": arguments.teacher_quantization}
    return DistillationTrainer(
        student,
        load(teacher, **quantized) if teacher and asks_teacher else teacher,
        config,
        examples,
        evaluation,
        teacher_cache=arguments.teacher_cache,
        sources=sources,
    )


def _take_stand_ins(arguments: DistillArguments) -> None:
    """Replace both models by tiny random ones of their families."""
    arguments.student = str(tiny_stand_in(arguments.student, "student"))
    if arguments.teacher is not None:
        arguments.teacher = str(tiny_stand_in(arguments.teacher, "teacher"))
