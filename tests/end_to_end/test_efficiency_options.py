"""LoRA, frozen layers, bfloat16 and gradient checkpointing, through the real command line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from crosskd import load_model
from crosskd.cli.main import main
from helpers_tolerances import assert_logits_close, loss_tolerance, rounding


def distill(student: Path, data: Path, output: Path, *words: str) -> int:
    return main(
        ["distill", "--student", str(student), "--data", str(data), "--output_dir", str(output), "--method", "sft",
         "--max_steps", "3", "--learning_rate", "1e-2", "--report_to", "none", "--save_strategy", "no", *words]
    )  # fmt: skip


def changed(student: Path, output: Path) -> set[str]:
    """Names of the weights that training changed."""
    before, after = load_file(student / "model.safetensors"), load_file(output / "model.safetensors")
    assert set(before) == set(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


def logits_of(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder).model(torch.arange(5, 25)[None]).logits


def plain_model(folder: Path) -> PreTrainedModel:
    return load_model(folder).model


def losses(output: Path) -> list[float]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_lora_saves_an_adapter_that_is_loaded_and_scored(
    student_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    assert distill(student_folder, data_folder, output, "--peft", "lora", "--lora_rank", "4") == 0
    assert (output / "adapter_model.safetensors").is_file()
    assert not (output / "model.safetensors").exists()
    assert "AutoPeftModelForCausalLM" in (output / "README.md").read_text()
    assert (logits_of(output) - logits_of(student_folder)).abs().max() > 1e-3
    scores = ["--output", str(tmp_path / "scores"), "--max_new_tokens", "4"]
    assert main(["evaluate", "--model", str(output), "--data", str(data_folder), *scores]) == 0
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["examples"] == 4


def test_a_merged_adapter_is_a_whole_model_with_the_same_logits(
    student_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    words = ["--peft", "lora", "--lora_rank", "4"]
    assert distill(student_folder, data_folder, tmp_path / "adapter", *words) == 0
    assert distill(student_folder, data_folder, tmp_path / "merged", *words, "--merge_adapter") == 0
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    changed_weights = changed(student_folder, tmp_path / "merged")
    assert changed_weights
    assert all("proj" in name for name in changed_weights)  # linear layers; not embeddings, norms or the output layer
    # merging sums a low-rank product into each weight: as many roundings as a layer has inputs, once more
    assert_logits_close(
        logits_of(tmp_path / "merged"), logits_of(tmp_path / "adapter"), plain_model(student_folder), 20
    )


def test_frozen_layers_stay(student_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    assert distill(student_folder, data_folder, tmp_path / "out", "--freeze_layers", "1") == 0
    names = changed(student_folder, tmp_path / "out")
    assert not any(".layers.0." in name for name in names)
    assert any(".layers.1." in name for name in names)
    assert any("embed_tokens" in name for name in names)


def test_checkpointing_changes_no_loss_and_bfloat16_little(
    student_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    words = ["--logging_steps", "1"]
    assert distill(student_folder, data_folder, tmp_path / "plain", *words) == 0
    assert distill(student_folder, data_folder, tmp_path / "less", *words, "--gradient_checkpointing") == 0
    tolerance = loss_tolerance(plain_model(student_folder), length=256, tokens=100)
    assert losses(tmp_path / "less") == pytest.approx(losses(tmp_path / "plain"), rel=tolerance)
    assert (
        distill(student_folder, data_folder, tmp_path / "lora", *words, "--gradient_checkpointing", "--peft", "lora")
        == 0
    )
    assert losses(tmp_path / "lora")[2] < losses(tmp_path / "lora")[0]  # gradients reach the adapter
    assert distill(student_folder, data_folder, tmp_path / "bf16", *words, "--bf16") == 0
    # two layers of about twelve operations round their results; a loss is the mean over about 50 tokens
    half = rounding(torch.bfloat16, 24) / 50**0.5
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "plain"), rel=half)
    assert losses(tmp_path / "bf16") != losses(tmp_path / "plain")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra bitsandbytes")
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_a_teacher_in_8_bit_live_and_cached(
    student_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    teacher = ["--teacher", str(teacher_folder)]
    common = ["--method", "uld", "--number_few_shot", "1", "--logging_steps", "1"]
    live, cached = tmp_path / "live", tmp_path / "cached"
    assert distill(student_folder, data_folder, live, *common, *teacher, "--teacher_quantization", "8bit") == 0
    targets = tmp_path / "targets"
    words = [
        "--data",
        str(data_folder),
        "--output",
        str(targets),
        "--number_few_shot",
        "1",
        "--target_dtype",
        "float32",
    ]
    assert main(["cache", *teacher, "--methods", "uld", "--quantization", "8bit", *words]) == 0
    assert json.loads((targets / "identity.json").read_text())["teacher_quantization"] == "8bit"
    assert distill(student_folder, data_folder, cached, *common, "--teacher_cache", str(targets)) == 0
    # LLM.int8 quantizes activations a batch at a time, and the two batch differently
    assert losses(cached) == pytest.approx(losses(live), rel=1e-2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--freeze_layers", "2"], "less than the 2 layers"),
        (["--freeze_layers", "-1"], "0 or more"),
        (["--peft", "lora", "--freeze_layers", "1"], "LoRA"),
        (["--merge_adapter"], "--peft lora"),
        (["--peft", "lora", "--lora_rank", "0"], "1 or more"),
        (["--peft", "lora", "--lora_target_modules", "no_such_layer"], "no_such_layer"),
        (["--peft", "lorra"], "lorra"),
        (["--encoder_decoder"], "encoder-decoder"),
    ],
)
def test_mistakes_are_told_in_one_line(
    student_folder: Path, data_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str],
    message: str,
) -> None:  # fmt: skip
    assert distill(student_folder, data_folder, tmp_path / "out", *words) == 2
    last = capfd.readouterr().err.strip().split("\n")[-1]
    assert last.startswith("crosskd distill: error: ")
    assert message in last
    assert not (tmp_path / "out").exists()
