"""Every setting of a distillation run, with the paper's defaults."""

from __future__ import annotations

import copy
import enum
import json
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from crosskd.errors import UsageError
from crosskd.losses.base import DistillationMethod
from crosskd.losses.registry import METHODS, configured_method
from crosskd.text.tasks import load_task
from crosskd.training.ranges import (
    check_distillation_ranges,
    check_training_ranges,
    read_mapping,
    refuse_what_cannot_work,
)
from crosskd.training.schedules import check_reports, check_schedule

_PAPER = "arXiv 2412.14528"
_MAPPINGS = {"method_settings", *TrainingArguments._VALID_DICT_FIELDS}


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class DistillationConfig(TrainingArguments):
    """`transformers.TrainingArguments` plus what distillation needs; its defaults are the paper's (arXiv 2412.14528).

    Fields that `TrainingArguments` has too are given here because their default is ours: ``learning_rate`` 5e-5
    (docs/training.md says how it was chosen; the paper's 1e-6 stands in its recipes), ``logging_steps`` 10,
    ``remove_unused_columns`` off (columns are ours).

    Raises:
        UsageError: An unknown method, or a value outside of its range.
    """

    method: str = _setting("multilevel_ot", "distillation method: sft, seqkd, uld, mined or multilevel_ot")
    task: str = _setting("qa", "name of a task, or a YAML file with one of your own")
    supervision: Literal["labels", "teacher"] = _setting(
        "labels", "what the student learns to write: the data's labels, or the teacher's answers"
    )
    distillation_weight: float = _setting(0.15, f"alpha of Eq. 21, {_PAPER}: weight of the distillation terms")
    top_k: int = _setting(50, "k of Eq. 12: columns kept; 0 keeps all")
    matching: Literal["fast", "greedy", "exact"] = _setting("fast", "how the student's columns are matched (Eq. 11)")
    formulation: Literal["paper", "authors"] = _setting(
        "paper", "the paper's equations, or what the authors' published code computes"
    )
    absolute_difference_weight: float = _setting(1.0, "weight of the holistic absolute difference (Eq. 14)")
    sequential_log_weight: float = _setting(0.1, "beta of Eq. 21: weight of the sequential logarithmic term (Eq. 16)")
    sequential_log_temperature: float = _setting(1.0, "temperature of Eq. 16")
    sinkhorn_weight: float = _setting(0.1, "gamma of Eq. 21: weight of the Sinkhorn distance (Eq. 20)")
    sinkhorn_temperature: float = _setting(2.0, "temperature of Eq. 17")
    sinkhorn_epsilon: float = _setting(0.1, "lambda of Eq. 18: entropic regularization")
    sinkhorn_iterations: int = _setting(20, "N of Eq. 19: iterations")
    plan_gradient: Literal["unrolled", "envelope"] = _setting(
        "unrolled", "gradient through the Sinkhorn iterations, or with the plan held constant"
    )
    ranking: Literal["sequence", "token"] = _setting("sequence", "one order of columns a sequence, or one a token")
    sinkhorn_level: Literal["sequence", "token"] = _setting("sequence", "Sinkhorn between sequences, or tokens")
    chunk_size: int | None = _setting(None, "answer tokens whose probabilities exist at once; default: chosen by size")
    top_entries: int = _setting(200, "largest teacher entries of each token that ULD and MinED use; 0 uses all")
    edit_distance_cutoff: float = _setting(
        0.5, "MinED: vocabulary entries match below this normalized edit distance; 1.0 is the published rule"
    )
    alignment: Literal["strict", "dtw"] = _setting(
        "strict", "MinED: one token to one at most, or dynamic time warping as published (arXiv 2401.10491)"
    )
    remainder: Literal["kept", "dropped"] = _setting(
        "kept",
        "MinED: teacher probability without a student entry is one more outcome, or is dropped and the others are "
        "renormalized, as published",
    )
    method_settings: dict | str | None = field(
        default=None, metadata={"help": "further settings of a method of your own, as JSON"}
    )
    number_few_shot: int = _setting(
        None, "examples in the teacher's prompt; the student gets none; default: 5, or as many as the task has"
    )
    student_prompt_style: Literal["auto", "plain", "chat"] = _setting(
        "auto", "prompt of the student; auto takes the chat template where there is one"
    )
    teacher_prompt_style: Literal["auto", "plain", "chat"] = _setting("auto", "prompt of the teacher; likewise")
    max_length: int | None = _setting(None, "longest prompt and answer of the student, in tokens; default: its limit")
    teacher_max_length: int | None = _setting(None, "the same for the teacher")
    peft: Literal["none", "lora"] = _setting("none", "train the whole student, or low-rank matrices beside its layers")
    lora_rank: int = _setting(16, "LoRA: rank of the matrices")
    lora_alpha: int = _setting(32, "LoRA: they are scaled by lora_alpha / lora_rank")
    lora_dropout: float = _setting(0.0, "LoRA: dropout on their input")
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "LoRA: names of the layers; default: all linear ones but the output layer"}
    )
    merge_adapter: bool = _setting(False, "LoRA: save the whole student with the matrices merged, not the adapter")
    freeze_layers: int = _setting(0, "hold the first so many transformer blocks of the student constant")
    gradient_checkpointing: bool | None = _setting(False, "compute activations again in the backward pass: less memory")
    fused_output_layer: bool = _setting(
        False, "compute losses from hidden states, a few hundred tokens at a time: logits are never in memory together"
    )
    on_nonfinite: Literal["stop", "skip"] = _setting(
        "stop", "a step whose loss or gradients are NaN or infinite: stop the run, or drop the step (10 in a row stop)"
    )
    predict_with_generate: bool = _setting(
        False, "at each evaluation the student answers too: eval_f1, eval_exact_match, eval_rouge..."
    )
    generation_max_new_tokens: int = _setting(150, "longest answer at evaluation, in tokens")
    learning_rate: float = _setting(5e-5, f"initial learning rate ({_PAPER}, on large data: 1e-6)")
    logging_steps: float = _setting(10, "log every so many steps")
    logging_nan_inf_filter: bool = _setting(
        False, "leave this off: --on_nonfinite sees to such losses, and the filter waits for the GPU at every step"
    )
    remove_unused_columns: bool = _setting(False, "leave this off: the trainer brings its own columns")

    def __post_init__(self) -> None:
        asked = self.method in METHODS and METHODS[self.method].needs_teacher
        self.number_few_shot = load_task(self.task).number_of_shots(self.number_few_shot, tell=asked)
        self._given = _values(self)  # before anything is derived from it
        check_training_ranges(self)
        check_distillation_ranges(self)
        refuse_what_cannot_work(self)
        _refuse_split_sequences(self)
        _refuse_fused_with_whole_logits(self)
        if _is_text_metric(self.metric_for_best_model):
            self.predict_with_generate = True
        if self.method_settings is not None:
            self.method_settings = read_mapping("method_settings", self.method_settings)
        if self.method == "seqkd":
            self.supervision = "teacher"  # that is what SeqKD is
        if not torch.accelerator.is_available():
            self.use_cpu = True  # transformers refuses bf16 on a CPU that was not asked for
        if getattr(self, "activation_checkpointing", False) is None:
            self.activation_checkpointing = self.gradient_checkpointing  # its name in later releases of transformers
        self.create_method()  # an unknown name or value is said before a model is loaded
        super().__post_init__()
        check_reports(self)
        check_schedule(self)
        self._derived = _values(self)

    def chosen_settings(self) -> dict[str, Any]:
        """Every setting that was chosen: given at construction, or changed since; the others have our defaults.

        What transformers or this machine derived from them (the number of processes, ``use_cpu``) is not among them.
        """
        defaults = self.default_settings()
        now = _values(self)
        chosen = {name: self._given[name] if now[name] == self._derived[name] else now[name] for name in now}
        return {name: value for name, value in chosen.items() if value != defaults[name]}

    @classmethod
    def default_settings(cls) -> dict[str, Any]:
        """Our default of every setting that has one."""
        return {item.name: _default(item) for item in fields(cls)}

    def create_method(self) -> DistillationMethod:
        """The method, with those of this configuration's fields that it declares."""
        return configured_method(self)


TEXT_METRICS = ("f1", "exact_match", "rouge1", "rouge2", "rougeL", "rougeLsum")
"""What the student's answers are scored by during training, as `crosskd.evaluation` computes it."""


def _is_text_metric(name: str | None) -> bool:
    """Whether a ``metric_for_best_model`` (``eval_`` and the name of one of several sets may lead it) needs answers."""
    return name is not None and any(name == metric or name.endswith(f"_{metric}") for metric in TEXT_METRICS)


_SAID_OTHERWISE = {"debug": {None: ""}, "include_num_input_tokens_seen": {False: "no", True: "all"}}
"""Values of which argparse or `TrainingArguments` has two forms."""


def _values(config: DistillationConfig) -> dict[str, Any]:
    """What can be given at construction, as it is now; plain values, copied."""
    return {item.name: _canonical(item.name, getattr(config, item.name)) for item in fields(config) if item.init}


def _canonical(name: str, value: Any) -> Any:
    """A value in the one form that a file can hold."""
    if isinstance(value, str) and value.startswith("{") and name in _MAPPINGS:  # the command line gives them as JSON
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    plain = _plain(value)
    forms = _SAID_OTHERWISE.get(name, {})
    return forms.get(plain, plain) if isinstance(plain, bool | None) else plain


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return copy.deepcopy(value)


def _default(item: Any) -> Any:
    factory: Any = item.default_factory
    return _canonical(item.name, item.default if factory is MISSING else factory())


def _refuse_split_sequences(config: DistillationConfig) -> None:
    parallel = config.parallelism_config
    if parallel is not None and (parallel.cp_size > 1 or parallel.sp_size > 1):
        raise UsageError(
            "parallelism_config", got="context or sequence parallelism",
            expected="none of them: a sequence and its labels must be on one device",
        )  # fmt: skip


def _refuse_fused_with_whole_logits(config: DistillationConfig) -> None:
    """Refuse ``fused_output_layer`` beside what looks at all logits, or traces the forward that it changes."""
    if not config.fused_output_layer:
        return
    fix = "leave --fused_output_layer off"
    if config.method == "multilevel_ot" and config.formulation == "authors":
        raise UsageError(
            "--fused_output_layer", got="formulation 'authors', which divides all logits of a token by their deviation",
            expected="formulation 'paper'", fix=fix,
        )  # fmt: skip
    if config.torch_compile:
        raise UsageError("--fused_output_layer", got="torch_compile", expected="a student that runs as it is", fix=fix)
