"""Chat templates of every kind through real command lines: they serve, or one line says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crosskd.cli.main import main
from crosskd.text.prompts import PromptBuilder
from helpers_families import EXAMPLES, TASK, TASK_FILE, family_tokenizer, save_tiny
from helpers_tokenizers import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_DROPPING_SYSTEM,
    CHAT_TEMPLATE_WITHOUT_SYSTEM,
    FAILING_CHAT_TEMPLATE,
)

_TEXTS = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
SERVING = {
    "system role": CHAT_TEMPLATE,
    "refuses system turns, wants alternation": CHAT_TEMPLATE_WITHOUT_SYSTEM,
    "drops system turns": CHAT_TEMPLATE_DROPPING_SYSTEM,
    "wants a system turn": "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + _TEXTS,
    "reads the clock": "{{ strftime_now('%d %B %Y') }}\n" + _TEXTS,
}
FAILING = {
    "always": (FAILING_CHAT_TEMPLATE, "no conversation pleases me"),
    "not a template": ("{% for %}", "fails"),
    "unknown name": ("{{ messages[0]['text'] + 1 }}", "fails"),
    "alternates the other way": (
        "{% for m in messages %}{% if (m['role'] == 'assistant') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}",
        "roles must alternate",
    ),
    "loses the request": ("{{ messages[0]['role'] }}", "loses 'Answer:'"),
}


def words_of(verb: str, model: Path, data: Path, output: Path) -> list[str]:
    common = ["--data", str(data), "--output", str(output), "--task", str(TASK_FILE), "--number_few_shot", "2"]
    return {
        "answer": ["answer", "--teacher", str(model), *common, "--max_new_tokens", "2"],
        "cache": ["cache", "--teacher", str(model), *common],
        "evaluate": ["evaluate", "--model", str(model), *common, "--max_new_tokens", "2"],
    }[verb]


@pytest.mark.parametrize("kind", SERVING)
def test_templates_that_serve(kind: str, data_folder: Path, tmp_path: Path) -> None:
    model = save_tiny("llama3", tmp_path / "model", SERVING[kind])
    assert main(words_of("evaluate", model, data_folder, tmp_path / "out")) == 0
    scores: dict[str, Any] = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["number_few_shot"] == 2


@pytest.mark.parametrize("kind", FAILING)
@pytest.mark.parametrize("verb", ["answer", "cache", "evaluate"])
def test_templates_that_fail(
    kind: str, verb: str, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template, reason = FAILING[kind]
    model = save_tiny("llama3", tmp_path / "model", template)
    capsys.readouterr()
    assert main(words_of(verb, model, data_folder, tmp_path / "out")) == 2
    told = capsys.readouterr().err.rstrip("\n").split("\n")[-1]  # progress bars stand before it
    assert told.startswith(f"crosskd {verb}: error: chat template of {model} ")
    assert reason in told
    assert "plain prompts" in told
    assert not (tmp_path / "out").exists()


def test_failing_templates_do_not_matter_to_plain_prompts(data_folder: Path, tmp_path: Path) -> None:
    model = save_tiny("llama3", tmp_path / "model", FAILING_CHAT_TEMPLATE)
    words = words_of("cache", model, data_folder, tmp_path / "out")
    assert main([*words, "--teacher_prompt_style", "plain"]) == 0


def test_a_template_that_reads_the_clock_gives_the_same_prompt_every_day() -> None:
    text = PromptBuilder(family_tokenizer("llama3", SERVING["reads the clock"]), TASK).build(EXAMPLES[0]).text
    assert text.startswith("26 July 2024\n")
