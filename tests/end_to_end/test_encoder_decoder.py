"""Encoder-decoder models answer, are scored and are trained; their prompts end as their encoders were trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from crosskd import load_model
from crosskd.cli.main import main
from crosskd.data.prepare import load_examples
from crosskd.losses.base import DistillationMethod, StudentAnswers
from crosskd.losses.registry import create_method
from crosskd.losses.targets import TeacherTargets
from crosskd.teacher.capture import capture_targets
from crosskd.text.answer_spans import tokenize_example
from crosskd.text.prompts import PromptBuilder
from crosskd.text.tasks import load_task
from helpers_tokenizers import unigram_tokenizer
from helpers_tolerances import decided, loss_tolerance


@pytest.fixture
def t5_folder(tmp_path: Path) -> Path:
    tokenizer = unigram_tokenizer()
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=tokenizer.pad_token_id or 0, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id or 0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # far from uniform; at 4 an error of one rounding grows five hundred times
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
        written.append(decided(logits, loaded.model, len(prompt) + len(written)))
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


def answers_alone(folder: Path, data: Path, method: str, teacher: Path | None) -> dict[str, float]:
    """Sums of each term over the training examples, from unpadded sequences one by one."""
    student = load_model(folder, dtype="float32", encoder_decoder=True)
    builder = PromptBuilder(student.tokenizer, load_task("qa"), append_eos=True)
    made = create_method(method)
    sums: dict[str, float] = {"tokens": 0.0}
    for example in load_examples(data, "train"):
        answer = example["answers"][0]
        labels = [*student.tokenizer(answer, add_special_tokens=False)["input_ids"], student.tokenizer.eos_token_id]
        decoder = [student.model.config.decoder_start_token_id, *labels[:-1]]
        with torch.no_grad():
            logits = student.model(
                input_ids=torch.tensor([builder.build(example).ids]), decoder_input_ids=torch.tensor([decoder])
            ).logits
        mask = torch.ones(1, len(labels), dtype=torch.bool)
        mask[:, -1] = False
        targets = teacher_targets(teacher, example, answer, made) if teacher else None
        terms = made.terms(StudentAnswers(logits, torch.tensor([labels]), mask, None), targets)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        sums["tokens"] += len(labels)
    return sums


def teacher_targets(folder: Path, example: dict, answer: str, method: DistillationMethod) -> TeacherTargets:
    loaded = load_model(folder)
    builder = PromptBuilder(loaded.tokenizer, load_task("qa"), number_few_shot=1)
    row = tokenize_example(builder, example, answer, append_eos=False, max_length=None)
    return TeacherTargets.stack(capture_targets(loaded.model, [row], method.request()))


@pytest.mark.parametrize("method", ["sft", "multilevel_ot", "uld"])
def test_an_encoder_decoder_student_is_trained(
    t5_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path, method: str
) -> None:
    output = tmp_path / "student"
    words = ["distill", "--student", str(t5_folder), "--data", str(data_folder), "--output_dir", str(output),
             "--method", method, "--learning_rate", "1e-2", "--per_device_train_batch_size", "12", "--max_steps", "4",
             "--logging_steps", "1", "--report_to", "none", "--number_few_shot", "1"]  # fmt: skip
    teacher = None if method == "sft" else teacher_folder
    assert main([*words, *(["--teacher", str(teacher)] if teacher else [])]) == 0
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    alone = answers_alone(t5_folder, data_folder, method, teacher)
    total = alone["cross_entropy"] + 0.15 * alone.get("distillation", 0.0)
    models = [load_model(t5_folder, encoder_decoder=True).model, *([load_model(teacher).model] if teacher else [])]
    tolerance = loss_tolerance(*models, length=256, tokens=int(alone["tokens"]))
    assert logged[0]["loss"] == pytest.approx(total / alone["tokens"], rel=tolerance)
    assert logged[3]["loss"] < logged[0]["loss"]
    assert "AutoModelForSeq2SeqLM" in (output / "README.md").read_text()
    scores = ["--output", str(tmp_path / "scores"), "--max_new_tokens", "4"]
    assert main(["evaluate", "--model", str(output), "--data", str(data_folder), *scores]) == 0


def test_cached_targets_train_it_as_a_live_teacher_does(
    t5_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    teacher = ["--teacher", str(teacher_folder), "--number_few_shot", "1"]
    targets = ["--output", str(tmp_path / "targets"), "--target_dtype", "float32"]
    assert main(["cache", *teacher, "--data", str(data_folder), *targets]) == 0
    losses = {}
    for name, words in (("live", teacher), ("cached", ["--teacher_cache", str(tmp_path / "targets")])):
        output = [
            "--output_dir",
            str(tmp_path / name),
            "--max_steps",
            "3",
            "--logging_steps",
            "1",
            "--report_to",
            "none",
        ]
        common = ["--student", str(t5_folder), "--data", str(data_folder), "--number_few_shot", "1", "--bf16", "False"]
        assert main(["distill", *common, *output, *words]) == 0
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(row)["loss"] for row in rows if '"loss"' in row]
    models = load_model(t5_folder, encoder_decoder=True).model, load_model(teacher_folder).model
    assert losses["cached"] == pytest.approx(losses["live"], rel=loss_tolerance(*models, length=256, tokens=100))


def test_a_long_prompt_is_cut_for_the_encoder_alone(t5_folder: Path, data_folder: Path) -> None:
    builder = PromptBuilder(load_model(t5_folder, encoder_decoder=True).tokenizer, load_task("qa"), append_eos=True)
    example = {"id": "a", "context": "river and sea " * 60, "question": "where?", "title": ""}
    row = tokenize_example(builder, example, "hills " * 40, append_eos=True, max_length=80)
    assert len(row.prompt_ids) <= 80
    assert row.context_tokens_dropped > 0
    assert len(row.answer_ids) > 80 - len(row.prompt_ids)


def test_an_encoder_decoder_teacher_is_refused(
    t5_folder: Path, student_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, data = tmp_path / "out", ["--data", str(data_folder)]
    for words in (
        ["cache", "--teacher", str(t5_folder), *data, "--output", str(output)],
        ["distill", "--student", str(student_folder), "--teacher", str(t5_folder), *data, "--output_dir", str(output)],
    ):
        assert main(words) == 2
        assert "T5ForConditionalGeneration" in capsys.readouterr().err
    assert not output.exists()
