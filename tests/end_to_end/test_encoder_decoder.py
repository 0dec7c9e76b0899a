"""Encoder-decoder models answer and are scored; their prompts end as their encoders were trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from crosskd import load_model
from crosskd.cli.main import main
from crosskd.data.prepare import load_examples
from crosskd.text.prompts import PromptBuilder
from crosskd.text.tasks import load_task
from helpers_tokenizers import unigram_tokenizer


@pytest.fixture
def t5_folder(tmp_path: Path) -> Path:
    tokenizer = unigram_tokenizer()
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        decoder_start_token_id=tokenizer.pad_token_id or 0, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id or 0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    model.save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    return tmp_path / "t5"


def plain_answer(folder: Path, data: Path) -> str:
    """The first answer, token by token, from a prompt that ends with the end-of-sequence token."""
    loaded = load_model(folder, encoder_decoder=True)
    builder = PromptBuilder(loaded.tokenizer, load_task("qa"), append_eos=True)
    prompt = builder.build(load_examples(data, "validation")[0]).ids
    assert prompt[-1] == loaded.tokenizer.eos_token_id
    written = [loaded.model.config.decoder_start_token_id]
    for _ in range(6):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([written])).logits[
                0, -1
            ]
        written.append(int(logits.argmax()))
        if written[-1] == loaded.tokenizer.eos_token_id:
            break
    text = loaded.tokenizer.decode(written[1:], skip_special_tokens=True)
    return text.strip().split("\n")[0].strip()


def test_answer_and_evaluate(t5_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    common = ["--data", str(data_folder), "--max_new_tokens", "6", "--number_few_shot", "0"]
    scores, answers = tmp_path / "scores", tmp_path / "answers"
    assert main(["evaluate", "--model", str(t5_folder), "--output", str(scores), *common]) == 0
    words = ["answer", "--teacher", str(t5_folder), "--output", str(answers), "--split", "validation", *common]
    assert main(words) == 0
    predictions = [json.loads(line) for line in (scores / "predictions.jsonl").read_text().splitlines()]
    given = load_examples(answers, "validation")["teacher_answer"]
    assert [row["prediction"] for row in predictions] == list(given)
    assert given[0] == plain_answer(t5_folder, data_folder)
    assert given[0]


def test_only_causal_models_give_targets_and_are_trained(
    t5_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")
    for words in (
        ["cache", "--teacher", str(t5_folder), "--data", str(data_folder), "--output", output],
        ["distill", "--student", str(t5_folder), "--data", str(data_folder), "--output_dir", output, "--method", "sft"],
    ):
        assert main(words) == 2
        assert "T5ForConditionalGeneration" in capsys.readouterr().err
    assert not Path(output).exists()
