"""``resolved_config.yaml`` repeats its run: settings drawn at random, three steps, the same weights bit by bit."""

from __future__ import annotations

import json
import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainingArguments

from crosskd import DistillationConfig, DistillationTrainer, load_examples
from crosskd.cli.distill import DistillArguments, sources_of
from crosskd.cli.main import main
from crosskd.cli.parsing import VerbParser
from crosskd.recipes.grid import find_recipe, recipes
from crosskd.recipes.text import recipe_text
from crosskd.training.records import all_settings

CASES = 15
MANY = 120

# what is drawn for each flag; None leaves the flag out
CHOICES: dict[str, list[Any]] = {
    "learning_rate": [5e-5, 1e-3, 1e-6, 3.7e-4, 0.1 + 0.2],
    "logging_steps": [500, 1, 10, 2, 0.5],
    "logging_first_step": [None, True],
    "warmup_steps": [None, 1, 0.4],
    "optim": [None, "adamw_torch", "adafactor", "sgd", "rmsprop", "adagrad"],
    "adam_beta1": [None, 0.9, 0.5],
    "adam_beta2": [None, 0.99],
    "adam_epsilon": [None, 1e-6],
    "weight_decay": [None, 0.1, 0.0],
    "max_grad_norm": [None, 0.0, 0.5, 1.0],
    "seed": [None, 7, 42],
    "data_seed": [None, 3],
    "neftune_noise_alpha": [None, None, 5.0],
    "gradient_accumulation_steps": [None, 2],
    "per_device_train_batch_size": [1, 2, 3],
    "average_tokens_across_devices": [None, False],
    "dataloader_drop_last": [None, True],
    "train_sampling_strategy": [None, "group_by_length", "sequential"],
    "student_dtype": [None, None, "bfloat16"],
    "teacher_dtype": [None, "bfloat16", "float32"],
    "bf16": [None, None, True],
    "gradient_checkpointing": [None, True],
    "trust_remote_code": [None, True],
    "allow_pickle": [None, True],
    "max_length": [None, 90],
    "distillation_weight": [None, 0.15, 1.0, 0.0],
    "run_name": [None, "[/v1] {a} 'b' \"c\": #d é", "yes", "1e3", "null", "{}", '{"a":1}', "--dash", " "],
    "include_for_metrics": [None, ["loss", "inputs"]],
    "accelerator_config": [None, {"even_batches": False}],
    "on_nonfinite": [None, "skip"],
    "ddp_timeout": [None, 99],
    "save_total_limit": [None, 1, 2],
}
SCHEDULES: list[tuple[str, dict[str, Any] | None]] = [
    ("linear", None),
    ("constant_with_warmup", None),
    ("inverse_sqrt", None),
    ("cosine_with_min_lr", {"min_lr": 1e-7}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_with_restarts", {"num_cycles": 2}),
    ("polynomial", {"power": 2.0, "lr_end": 1e-9}),
]
METHODS: list[dict[str, Any]] = [
    {"method": "sft"},
    {"method": "uld", "top_entries": 0},
    {"method": "uld", "top_entries": 200},
    {"method": "mined", "edit_distance_cutoff": 1.0},
    {"method": "multilevel_ot", "top_k": 10, "sinkhorn_iterations": 3, "sinkhorn_epsilon": 0.5},
    {"method": "multilevel_ot", "top_k": 50, "matching": "greedy", "plan_gradient": "envelope", "chunk_size": 7},
    {"method": "multilevel_ot", "method_settings": {"top_k": 7, "sequential_log_weight": 0.0}},
    {"method": "multilevel_ot", "formulation": "authors", "absolute_difference_weight": 0.5},
]
TRAINED: list[dict[str, Any]] = [
    {},
    {},
    {"freeze_layers": 1},
    {"peft": "lora", "lora_rank": 3, "lora_alpha": 5, "lora_dropout": 0.1},
    {"peft": "lora", "lora_target_modules": ["q_proj", "v_proj"], "merge_adapter": True},
]
SAVED: list[dict[str, Any]] = [
    {"save_strategy": "no"},
    {"save_strategy": "steps", "save_steps": 1},
    {"save_strategy": "epoch"},
    {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 3, "eval_on_start": True},
    {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "f1", "generation_max_new_tokens": 3,
    },
    {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    },
]  # fmt: skip


def drawn(case: int) -> dict[str, Any]:
    """Settings of one run, the same for the same number."""
    draw = random.Random(1000 + case)
    settings = {name: draw.choice(values) for name, values in CHOICES.items() if draw.random() < 0.6}
    kind, options = draw.choice(SCHEDULES)
    settings |= {"lr_scheduler_type": kind, "lr_scheduler_kwargs": options, "number_few_shot": draw.choice([0, 1])}
    for groups in (METHODS, TRAINED, SAVED):
        settings |= draw.choice(groups)
    return {name: value for name, value in settings.items() if value is not None}


def words_of(settings: dict[str, Any]) -> list[str]:
    """The flags as they are typed."""
    words = []
    for name, value in settings.items():
        if isinstance(value, list):
            words += [f"--{name}", *value]
        else:
            words.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return words


def record(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "resolved_config.yaml").read_text(encoding="utf-8"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [file] = folder.glob("*.safetensors")
    return load_file(file)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The log without what the clock decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{n: v for n, v in line.items() if not n.endswith(("_runtime", "_second", "_time"))} for line in lines]


def repeats(first: Path, second: Path) -> None:
    """Repeat a run from its file, with another folder and nothing else, and compare everything."""
    assert main(["distill", "--config", str(first / "resolved_config.yaml"), "--output_dir", str(second)]) == 0
    one, two = record(first), record(second)
    assert one.pop("output_dir") == str(first)
    assert two.pop("output_dir") == str(second)
    assert one == two
    assert "use_cpu" not in one
    assert not {"dataloader_pin_memory", "local_rank", "_n_gpu", "hub_token"} & one.keys()
    before, after = weights(first), weights(second)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert metrics(first) == metrics(second)


def train_and_repeat(settings: dict[str, Any], student: Path, teacher: Path, data: Path, folder: Path) -> None:
    first, second = folder / "first {run} é's #1", folder / "second"
    words = ["distill", "--student", str(student), "--data", str(data), "--output_dir", str(first), "--max_steps", "3"]
    words += [] if settings["method"] == "sft" else ["--teacher", str(teacher)]
    assert main([*words, *words_of(settings)]) == 0, settings
    defaults = {**DistillationConfig.default_settings(), "student_dtype": "float32", "teacher_dtype": "auto"}
    written = record(first)
    for name, value in settings.items():
        if value != defaults.get(name):
            assert written[name] == value, name
    repeats(first, second)


@pytest.mark.parametrize("case", range(CASES))
def test_a_run_is_repeated_by_what_it_wrote_down(
    case: int, student_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    train_and_repeat(drawn(case), student_folder, teacher_folder, data_folder, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("case", range(CASES, CASES + MANY))
def test_many_runs_are_repeated_by_what_they_wrote_down(
    case: int, student_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    train_and_repeat(drawn(case), student_folder, teacher_folder, data_folder, tmp_path)


def test_the_draws_reach_every_choice() -> None:
    """In the many cases together; the few must at least hold those that went wrong before."""
    every = [drawn(case) for case in range(CASES + MANY)]
    for name, values in CHOICES.items():
        for value in values:
            assert any(settings.get(name) == value for settings in every), (name, value)
    few = every[:CASES]
    assert any(settings.get("learning_rate") == 5e-5 for settings in few)
    assert any(settings.get("logging_steps") == 500 for settings in few)
    for name in ("lr_scheduler_kwargs", "student_dtype", "teacher_dtype", "data_seed", "save_total_limit", "peft"):
        assert any(name in settings for settings in few), name


def configuration(file: Path) -> tuple[DistillArguments, DistillationConfig]:
    parsed: Any = VerbParser("distill", "", [DistillArguments, DistillationConfig]).parse(["--config", str(file)])
    return parsed


def test_the_settings_of_every_recipe_survive_their_file(tmp_path: Path) -> None:
    known = recipes()
    assert any("lr_scheduler_kwargs" in recipe.flags for recipe in known.values())
    file, defaults = tmp_path / "settings.yaml", DistillationConfig.default_settings()
    for name, recipe in known.items():
        if "same_run_as" in recipe.about:
            continue
        file.write_text(recipe_text(recipe), encoding="utf-8")
        arguments, config = configuration(file)
        first = all_settings(config, sources_of(arguments))
        file.write_text(yaml.safe_dump(first), encoding="utf-8")
        arguments, config = configuration(file)
        assert all_settings(config, sources_of(arguments)) == first, name
        assert {key: first.get(key, defaults.get(key)) for key in recipe.flags} == recipe.flags, name


def recipe_run(name: str, folder: Path) -> None:
    """Three steps of a recipe, with tiny models of its families, and again."""
    recipe = find_recipe(name)
    assert main(["prepare", "--data", "sample:qed", "--limit", "6", "--output", str(folder / "data")]) == 0
    (folder / "recipe.yaml").write_text(recipe_text(recipe), encoding="utf-8")
    words = ["distill", "--config", str(folder / "recipe.yaml"), "--data", str(folder / "data"), "--max_steps", "3"]
    words += ["--model_override", "tiny", "--supervision", "labels", "--task", "qa", "--output_dir"]
    assert main([*words, str(folder / "first")]) == 0
    assert "lr_scheduler_kwargs" in record(folder / "first")
    repeats(folder / "first", folder / "second")


def test_the_run_of_a_recipe_is_repeated(tmp_path: Path) -> None:
    recipe_run("table1/opt-350m/qed/multilevel_ot", tmp_path)


ONE_OF_EACH_SETTING = sorted({
    (recipe.student, recipe.setting): name
    for name, recipe in recipes().items()
    if recipe.data == "qed" and recipe.flags["method"] != "seqkd"  # which needs a teacher's answers in the data
}.values())  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("name", ONE_OF_EACH_SETTING)
def test_runs_of_all_kinds_of_recipes_are_repeated(name: str, tmp_path: Path) -> None:
    recipe_run(name, tmp_path)


def test_what_was_changed_in_python_is_written_down(student_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    config = DistillationConfig(output_dir=str(tmp_path / "first"), method="sft", max_steps=3, disable_tqdm=True)
    config.learning_rate = 5e-5
    config.lr_scheduler_type = "cosine_with_min_lr"  # pyright: ignore[reportAttributeAccessIssue]
    config.lr_scheduler_kwargs = {"min_lr": 1e-7}
    config.per_device_train_batch_size = 2
    config.weight_decay = 0.3
    sources = {"student": str(student_folder), "data": str(data_folder)}
    examples = load_examples(data_folder, "train")
    made = DistillationTrainer(str(student_folder), None, config, examples, sources=sources)
    made.train()
    made.save_model()
    written = record(tmp_path / "first")
    changed = {"learning_rate": 5e-5, "lr_scheduler_type": "cosine_with_min_lr", "weight_decay": 0.3}
    assert changed.items() <= written.items()
    assert written["lr_scheduler_kwargs"] == {"min_lr": 1e-7}
    repeats(tmp_path / "first", tmp_path / "second")


def test_how_the_models_are_loaded_is_written_down(tmp_path: Path) -> None:
    flags = {
        "student_dtype": "bfloat16", "teacher_dtype": "float16", "teacher_quantization": "8bit",
        "trust_remote_code": True, "allow_pickle": True, "encoder_decoder": True, "model_override": "tiny",
    }  # fmt: skip
    arguments = DistillArguments("s", "d", teacher="t", resume=True, overwrite=True, **flags)
    written = all_settings(DistillationConfig(output_dir=str(tmp_path)), sources_of(arguments))
    assert {"student": "s", "data": "d", "teacher": "t", **flags}.items() <= written.items()
    assert not {"resume", "overwrite", "config"} & written.keys()
    # every flag, those to come too, is written where it differs from its default
    for item in fields(DistillArguments):
        if item.name not in ("student", "data", "resume", "overwrite"):
            other = DistillArguments("s", "d", **{item.name: "something"})
            assert sources_of(other)[item.name] == "something"


def test_nothing_of_the_machine_and_no_secret_is_written_down(
    student_folder: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_do_not_tell"
    words = ["distill", "--student", str(student_folder), "--data", str(data_folder), "--method", "sft", "--use_cpu"]
    words += ["--max_steps", "1", "--output_dir", str(tmp_path / "run"), "--hub_token", secret]
    monkeypatch.setattr("sys.argv", ["crosskd", *words, f"--hub_token={secret}"])
    assert main(words) == 0
    assert not {"use_cpu", "hub_token", "dataloader_pin_memory"} & record(tmp_path / "run").keys()
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or path.name == "training_args.bin" or secret.encode() not in path.read_bytes(), path


def test_defaults_of_transformers_are_written_where_ours_differ(tmp_path: Path) -> None:
    theirs = {item.name: item.default for item in fields(TrainingArguments)}
    ours = DistillationConfig.default_settings()
    assert theirs["logging_steps"] != ours["logging_steps"]
    named = {name: theirs[name] for name in ("learning_rate", "logging_steps")}
    config = DistillationConfig(output_dir=str(tmp_path), **named)
    assert named.items() <= all_settings(config, {}).items()
    # and where they are the same, since another version may have another default
    assert "learning_rate" in all_settings(DistillationConfig(output_dir=str(tmp_path)), {})
