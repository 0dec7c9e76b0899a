"""Flags of ``finetuning.py``: those of the published code, and a few of ours at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from crosskd.errors import UsageError, did_you_mean
from crosskd.published.flags import flag, read_flags

_TEACHER = "distillation_config"
_LOGGING = "nothing is sent to Weights & Biases; metrics.jsonl in the output folder holds the log"
_KERNELS = "transformers chooses the fastest attention by itself"
_SHARDING = "models are not sharded; under torchrun every process holds both and reads its share of each batch"

NO_EFFECT = {
    "project_name": _LOGGING,
    "use_wandb": _LOGGING,
    "num_workers_dataloader": "the rows are in memory as tokens",
    "use_fast_kernels": _KERNELS,
    f"{_TEACHER}.use_fast_kernels": _KERNELS,
    "enable_fsdp": _SHARDING,
    "low_cpu_fsdp": _SHARDING,
    f"{_TEACHER}.enable_fsdp": _SHARDING,
    f"{_TEACHER}.low_cpu_fsdp": _SHARDING,
    **{
        f"{group}.{name}": _SHARDING
        for group in ("fsdp_config", _TEACHER)
        for name in ("sharding_strategy", "checkpoint_type", "fsdp_activation_checkpointing", "fsdp_cpu_offload")
    },
    "fsdp_config.pure_bf16": "the student trains in float32, as in the published runs",
    "fsdp_config.mixed_precision": "the student trains in float32, as in the published runs",
    "mixed_precision": "the student trains in float32, as in the published runs",
    f"{_TEACHER}.mixed_precision": f"--{_TEACHER}.pure_bf16 decides the teacher's number format",
    f"{_TEACHER}.use_fp16": f"--{_TEACHER}.pure_bf16 decides the teacher's number format",
    f"{_TEACHER}.optimizer": "a teacher is not trained",
    f"{_TEACHER}.use_peft": "a teacher is not trained",
    f"{_TEACHER}.freeze_layers": "a teacher is not trained",
    f"{_TEACHER}.num_freeze_layers": "a teacher is not trained",
    f"{_TEACHER}.cross_entropy_factor": "cross-entropy has weight 1, as in the published code, which ignored it too",
    "save_optimizer": "checkpoints hold the student alone",
}
"""Flags of the published code and its parent, llama-recipes, that change nothing here."""


@dataclass
class FinetuningFlags:
    """What the user asks of ``finetuning.py``; defaults are those of the published code."""

    model_name: str = flag(str, None, "student: hub id or folder", required=True)
    dataset_file: str = flag(
        str, None, "Python file with get_split, or a folder with load.py", name="dataset.file", also=("file",),
        required=True,
    )  # fmt: skip
    output_dir: str = flag(str, None, "folder to write the student into", required=True)
    lr: float = flag(float, 1e-6, "largest learning rate of the OneCycle schedule")
    num_epochs: int = flag(int, 5, "epochs")
    batch_size_training: int = flag(int, 4, "rows in a batch; the last incomplete one is dropped")
    val_batch_size: int = flag(int, 4, "rows in a batch of validation")
    save_step: int = flag(int, 100, "validate and save every so many steps of an epoch, and at its end")
    distillation: bool = flag(bool, False, "learn from a teacher; without it: cross-entropy on the labels alone")
    teacher: str | None = flag(str, None, "teacher: hub id or folder", name=f"{_TEACHER}.model_name")
    distil_factor: float | None = flag(
        float, None, "weight of the distillation terms [1.5; 0.15 with --formulation paper]",
        name=f"{_TEACHER}.distil_factor",
    )  # fmt: skip
    pure_bf16: bool | None = flag(
        bool, None, "teacher in bfloat16 [True where this machine is fast in it]", name=f"{_TEACHER}.pure_bf16"
    )
    f: int = flag(int, 1, "matching of the student's columns: 1 fast, 2 the published greedy")
    encoder_decoder: bool | None = flag(bool, None, "the student is an encoder-decoder model [detected]")

    weight_decay: float = flag(float, 0.1, "weight decay of AdamW, on all parameters")
    pct_start: float = flag(float, 0.1, "share of the steps in which the learning rate rises")
    div_factor: float = flag(float, 2.0, "the first learning rate is lr divided by this")
    final_div_factor: float = flag(float, 5.0, "the last learning rate is the first divided by this")
    gradient_accumulation_steps: int = flag(int, 1, "batches in a step of the optimizer")
    seed: int = flag(int, 42, "seed of the order of rows and of dropout")
    run_validation: bool | None = flag(bool, None, "validate, and keep the best student [True where there is a split]")
    save_all: bool = flag(bool, False, "save at every validation, not only at a new best")
    save_model: bool = flag(bool, True, "save on the way; the student at the end is always saved")
    context_length: int | None = flag(int, None, "drop rows that are longer for the student, in tokens")
    batching_strategy: str = flag(str, "padding", "only padding is offered")
    training_size: float = flag(
        float, 1.0, "dataset_config.training_size, for the loader file", also=("dataset.training_size",)
    )
    generated_by: str | None = flag(
        str, None, "dataset_config.generated_by, for the loader file [the teacher]", also=("dataset.generated_by",)
    )
    use_fp16: bool = flag(bool, False, "mixed precision in float16; CUDA only")
    gradient_checkpointing: bool = flag(bool, False, "save memory, take longer")
    use_peft: bool = flag(bool, False, "train a LoRA adapter")
    peft_method: str = flag(str, "lora", "only lora is offered")
    lora_r: int = flag(int, 8, "rank of the adapter", name="lora_config.r", also=("lora_r", "r"))
    lora_alpha: int = flag(int, 32, "its scale", name="lora_config.lora_alpha", also=("lora_alpha",))
    lora_dropout: float = flag(float, 0.05, "its dropout", name="lora_config.lora_dropout", also=("lora_dropout",))
    target_modules: str | None = flag(
        str, None, "layers it stands beside, as q_proj,v_proj [all linear ones]", name="lora_config.target_modules"
    )
    freeze_layers: bool = flag(bool, False, "leave the first layers as they are")
    num_freeze_layers: int = flag(int, 1, "how many")
    teacher_quantization: bool = flag(bool, False, "teacher in 8 bit", name=f"{_TEACHER}.quantization")
    quantization: bool = flag(bool, False, "only False is offered: a student trains in float32")
    student_temperature: float = flag(float, 1.0, "only 1 is offered", name=f"{_TEACHER}.student_temperature")
    teacher_temperature: float = flag(float, 1.0, "only 1 is offered", name=f"{_TEACHER}.teacher_temperature")
    teacher_encoder_decoder: bool = flag(bool, False, "teachers are causal", name=f"{_TEACHER}.encoder_decoder")

    formulation: str = flag(str, "authors", "ours: authors, what the published code computes, or paper, its equations")
    overwrite: bool = flag(bool, False, "ours: replace what output_dir holds")
    trust_remote_code: bool = flag(bool, False, "ours: run the code that a model brings")
    allow_pickle: bool = flag(bool, False, "ours: read weights in pickle format, which can run code")

    dataset: dict[str, Any] = field(default_factory=dict)
    """Further attributes of ``dataset_config``: every other ``--dataset.NAME VALUE``."""


def read_finetuning_flags(words: Sequence[str]) -> FinetuningFlags:
    """Read and check the command line of ``finetuning.py``.

    Raises:
        UsageError: See `crosskd.published.flags.read_flags`; or a value out of its range.
    """
    flags = read_flags(words, FinetuningFlags, NO_EFFECT, open_group="dataset")
    _check_numbers(flags)
    _check_choices(flags)
    if flags.distillation and not flags.teacher:
        raise UsageError(f"--{_TEACHER}.model_name is missing", expected="a teacher, since --distillation asks one")
    return flags


def _check_numbers(flags: FinetuningFlags) -> None:
    counts = ("num_epochs", "batch_size_training", "val_batch_size", "save_step", "gradient_accumulation_steps")
    for name in counts:
        if getattr(flags, name) < 1:
            raise UsageError(f"--{name}", got=getattr(flags, name), expected="an integer of at least 1")
    if flags.context_length is not None and flags.context_length < 2:
        raise UsageError("--context_length", got=flags.context_length, expected="at least 2 (prompt and answer)")
    if not 0 < flags.training_size <= 1:
        raise UsageError("--training_size", got=flags.training_size, expected="a share in (0, 1]")
    for name in ("lr", "div_factor", "final_div_factor"):
        if not getattr(flags, name) > 0:
            raise UsageError(f"--{name}", got=getattr(flags, name), expected="a positive number")
    if not flags.weight_decay >= 0:
        raise UsageError("--weight_decay", got=flags.weight_decay, expected="0 or more")
    if not 0 < flags.pct_start < 1:
        raise UsageError("--pct_start", got=flags.pct_start, expected="a share between 0 and 1")


def _check_choices(flags: FinetuningFlags) -> None:
    if flags.f not in (1, 2):
        raise UsageError("--f", got=flags.f, expected="1 (fast) or 2 (the published greedy)")
    if flags.formulation not in ("authors", "paper"):
        fix = did_you_mean(flags.formulation, ("authors", "paper"))
        raise UsageError("--formulation", got=flags.formulation, expected="authors or paper", fix=fix)
    for name, value in (("batching_strategy", "padding"), ("peft_method", "lora")):
        if getattr(flags, name) != value:
            raise UsageError(f"--{name}", got=getattr(flags, name), expected=value, fix="the others are not offered")
    for side in ("student", "teacher"):
        temperature = getattr(flags, f"{side}_temperature")
        if temperature != 1:
            raise UsageError(
                f"--{_TEACHER}.{side}_temperature", got=temperature, expected="1, as in the published runs"
            )
    if flags.teacher_encoder_decoder:
        raise UsageError(f"--{_TEACHER}.encoder_decoder", got=True, expected="a causal language model as teacher")
    if flags.quantization:
        raise UsageError("--quantization", got="a student in 8 bit", expected="one in float32, since it is trained")
