"""Models that bring their own code: refused unless it is allowed, then used like any other."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import dynamic_module_utils

from crosskd.cli.main import main
from crosskd.data.prepare import load_examples
from crosskd.models.load import load_model, load_tokenizer
from crosskd.text.prompts import PromptBuilder
from helpers_families import EXAMPLES, TASK
from helpers_templates import CHATML
from helpers_tokenizers import CORPUS
from remote_model import modeling_standin, tokenization_standin
from remote_model.modeling_standin import StandInConfig, StandInLMHeadModel
from remote_model.tokenization_standin import SPECIAL, write_vocabulary

SOURCES = [Path(str(module.__file__)) for module in (modeling_standin, tokenization_standin)]


def vocabulary() -> list[bytes]:
    words = sorted({word for text in CORPUS for word in text.split()})
    pieces = {f" {word}"[:length].encode() for word in words for length in range(2, len(word) + 2)}
    return [*(bytes([byte]) for byte in range(256)), *sorted(pieces, key=lambda piece: (len(piece), piece))]


def add_to(path: Path, **values: object) -> None:
    stated = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**stated, **values}))


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of models is copied into a folder of the test, not of the user."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A folder as the first Qwen chat models have it."""
    folder = tmp_path / "standin-7b-chat"
    tokens = vocabulary()
    end = len(tokens)
    torch.manual_seed(4)
    config = StandInConfig(
        vocab_size=end + len(SPECIAL) + 20, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2048, eos_token_id=end,
    )  # fmt: skip
    model = StandInLMHeadModel(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.5)
        model.lm_head.weight[end:] = 0
    model.save_pretrained(folder)
    for source in SOURCES:
        shutil.copy(source, folder)
    code = {
        "AutoConfig": "modeling_standin.StandInConfig",
        "AutoModelForCausalLM": "modeling_standin.StandInLMHeadModel",
    }
    add_to(folder / "config.json", auto_map=code)
    tokenizer_code = {"AutoTokenizer": ["tokenization_standin.StandInTokenizer", None]}
    add_to(
        folder / "tokenizer_config.json",
        auto_map=tokenizer_code, tokenizer_class="StandInTokenizer", model_max_length=2048,
    )  # fmt: skip
    settings = {"chat_format": "chatml", "eos_token_id": end, "pad_token_id": end, "do_sample": True, "top_p": 0.8}
    add_to(folder / "generation_config.json", **settings)
    write_vocabulary(folder / "standin.tiktoken", tokens)
    return folder


def words_of(verb: str, teacher: Path, data: Path, output: Path, student: Path) -> list[str]:
    common = ["--teacher", str(teacher), "--data", str(data), "--number_few_shot", "1"]
    return {
        "cache": ["cache", *common, "--output", str(output)],
        "answer": ["answer", *common, "--output", str(output), "--max_new_tokens", "5"],
        "evaluate": ["evaluate", "--model", *common[1:], "--output", str(output), "--max_new_tokens", "5"],
        "distill": [
            "distill", *common, "--student", str(student), "--output_dir", str(output), "--max_steps", "1",
            "--report_to", "none", "--save_strategy", "no", "--learning_rate", "1e-3", "--logging_steps", "1",
        ],
    }[verb]  # fmt: skip


VERBS = ["cache", "answer", "distill", "evaluate"]


@pytest.mark.parametrize("verb", VERBS)
def test_code_of_a_model_is_not_run_unless_that_is_allowed(
    verb: str, teacher: Path, data_folder: Path, student_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(words_of(verb, teacher, data_folder, tmp_path / "out", student_folder)) == 2
    told = capsys.readouterr().err.strip().split("\n")[-1]  # progress bars stand before it
    assert told.startswith(f"crosskd {verb}: error: model ")
    assert told.endswith("give --trust_remote_code to run the code in its repository")
    assert str(teacher) in told
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "modules").exists() or not list((tmp_path / "modules").rglob("*standin*"))


@pytest.mark.parametrize("verb", VERBS)
def test_with_leave_it_teaches_and_answers(
    verb: str, teacher: Path, data_folder: Path, student_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main([*words_of(verb, teacher, data_folder, out, student_folder), "--trust_remote_code"]) == 0
    if verb == "cache":
        assert list(out.glob("*.safetensors"))
    elif verb == "evaluate":
        assert json.loads((out / "scores.json").read_text())["examples"] > 0
    elif verb == "answer":
        assert any(answer.strip() for answer in load_examples(out, "train")["teacher_answer"])
    else:
        line = json.loads((out / "metrics.jsonl").read_text().split("\n")[0])
        assert 0 < line["distillation"] < float("inf")


def test_its_end_of_sequence_is_found_by_its_own_name(teacher: Path) -> None:
    model, tokenizer, _ = load_model(teacher, trust_remote_code=True)
    assert type(tokenizer).__name__ == "StandInTokenizer"
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == len(vocabulary())
    assert model.config.vocab_size > len(tokenizer)
    assert load_tokenizer(teacher, trust_remote_code=True).eos_token_id == tokenizer.eos_token_id


def test_turns_come_with_a_template_that_the_user_writes_beside_it(teacher: Path) -> None:
    plain = PromptBuilder(load_tokenizer(teacher, trust_remote_code=True), TASK)
    assert plain.build(EXAMPLES[0]).text == TASK.request(EXAMPLES[0])
    add_to(teacher / "tokenizer_config.json", chat_template=CHATML)
    tokenizer = load_tokenizer(teacher, trust_remote_code=True)
    prompt = PromptBuilder(tokenizer, TASK, number_few_shot=1).build(EXAMPLES[0])
    assert prompt.text.startswith(f"<|im_start|>system\n{TASK.system}<|im_end|>\n<|im_start|>user\n")
    assert [token == tokenizer.im_start_id for token in prompt.ids].count(True) == 4
    assert tokenizer.decode(prompt.ids) == prompt.text


@pytest.mark.parametrize("method", ["multilevel_ot", "mined"])
def test_every_method_reads_its_tokens(
    method: str, teacher: Path, data_folder: Path, student_folder: Path, tmp_path: Path
) -> None:
    words = words_of("distill", teacher, data_folder, tmp_path / "out", student_folder)
    assert main([*words, "--trust_remote_code", "--method", method]) == 0
    line = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().split("\n")[0])
    assert 0 < line["distillation"] < float("inf")


def test_a_cache_aligns_its_tokens_without_running_its_code(
    teacher: Path, data_folder: Path, student_folder: Path, tmp_path: Path
) -> None:
    targets, out = tmp_path / "targets", tmp_path / "out"
    words = [*words_of("cache", teacher, data_folder, targets, student_folder), "--methods", "mined"]
    assert main([*words, "--trust_remote_code"]) == 0
    live = words_of("distill", teacher, data_folder, tmp_path / "live", student_folder)
    assert main([*live, "--method", "mined", "--trust_remote_code"]) == 0
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    shutil.rmtree(tmp_path / "modules")
    words = words_of("distill", teacher, data_folder, out, student_folder)
    words = [word for word in words if word not in ("--teacher", str(teacher))]
    assert main([*words, "--method", "mined", "--teacher_cache", str(targets)]) == 0
    assert not (tmp_path / "modules").exists() or not list((tmp_path / "modules").rglob("*standin*"))
    losses = [json.loads((run / "metrics.jsonl").read_text().split("\n")[0]) for run in (out, tmp_path / "live")]
    assert losses[0]["distillation"] == pytest.approx(losses[1]["distillation"], rel=2e-3)  # kept in float16


def test_inspect_looks_at_it(teacher: Path, student_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "--teacher", str(teacher), "--student", str(student_folder)]
    assert main([*words, "--trust_remote_code"]) == 0
    assert main(words) == 2
    assert "--trust_remote_code" in capsys.readouterr().err


def test_a_package_that_its_code_needs_is_named(
    teacher: Path, data_folder: Path, student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = teacher / "tokenization_standin.py"
    code.write_text("import a_package_that_nobody_has\n" + code.read_text())
    words = words_of("cache", teacher, data_folder, tmp_path / "out", student_folder)
    assert main([*words, "--trust_remote_code"]) == 2
    assert "a_package_that_nobody_has" in capsys.readouterr().err.strip().split("\n")[-1]
