"""Answers of a teacher: sampling, backends, merging, folders, and which examples can be trained on."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from crosskd.data.answers_merge import read_answers
from crosskd.data.prepare import prepare_examples
from crosskd.data.supervision import supervised_examples
from crosskd.errors import UsageError
from crosskd.evaluation.generation import first_line, generate_answers
from crosskd.models.load import load_model
from crosskd.teacher.answers import AnswerFolder, TeacherAnswers
from crosskd.teacher.backends import TransformersBackend, VllmBackend
from crosskd.teacher.decoding import Decoding
from crosskd.teacher.sampling import SeededSampling, sampled_generation
from crosskd.text.tasks import TASKS
from helpers_models import examples

DRAWN = Decoding(max_new_tokens=6, temperature=0.7, top_p=0.9)


def rows(count: int) -> Dataset:
    return Dataset.from_list(examples(count))


def tokens(sampling: SeededSampling, scores: torch.Tensor) -> list[int]:
    left = sampling(torch.zeros(len(scores), 1, dtype=torch.long), scores)
    assert (left.isfinite().sum(-1) == 1).all()
    return left.argmax(-1).tolist()


# --- sampling


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_softmax(temperature: float) -> None:
    scores = torch.tensor([0.0, 1.0, -torch.inf, 2.0])
    drawn = tokens(SeededSampling(range(20_000), temperature, 1.0), scores.expand(20_000, -1))
    share = torch.tensor(drawn).bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(share, (scores / temperature).softmax(-1), atol=0.012, rtol=0)
    assert share[2] == 0


def test_top_p_keeps_the_tokens_that_reach_the_share() -> None:
    scores = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    for top_p, kept in ((0.4, {1}), (0.5, {1}), (0.6, {1, 3}), (0.85, {1, 2, 3}), (1.0, {0, 1, 2, 3})):
        drawn = tokens(SeededSampling(range(3000), 1.0, top_p), scores.expand(3000, -1))
        assert set(drawn) == kept, top_p
    half = tokens(SeededSampling(range(20_000), 1.0, 0.6), scores.expand(20_000, -1))
    assert half.count(1) / len(half) == pytest.approx(2 / 3, abs=0.012)


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_a_rows_draws_do_not_depend_on_its_batch(top_p: float) -> None:
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    together, alone = SeededSampling([5, 6, 7], 1.3, top_p), SeededSampling([6], 1.3, top_p)
    steps = [(tokens(together, scores), tokens(alone, scores[1:2])) for _ in range(20)]
    assert [row[1] for row, _ in steps] == [row[0] for _, row in steps]
    assert len({row[1] for row, _ in steps}) > 3


def test_sampled_generation_leaves_the_model_as_it_was(teacher_folder: Path) -> None:
    model = load_model(teacher_folder).model
    with sampled_generation(model, 1.0, 1.0, len):
        assert "generate" in vars(model)
    assert "generate" not in vars(model)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"temperature": -1}, "--temperature"), ({"top_p": 0}, "--top_p"), ({"max_new_tokens": 0}, "--max_new_tokens")],
)
def test_impossible_decoding_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Decoding(**settings)


# --- transformers backend


def test_greedy_answers_are_those_of_generate_answers(teacher_folder: Path) -> None:
    loaded = load_model(teacher_folder)
    teacher = TeacherAnswers(TransformersBackend(loaded, 3), "qa", Decoding(max_new_tokens=8), number_few_shot=1)
    prompts = [teacher.builder.build(row).ids for row in examples(5)]
    wanted = generate_answers(loaded.model, loaded.tokenizer, prompts, max_new_tokens=8)
    assert [row["teacher_answer"] for row in teacher.answer(rows(5))] == wanted
    assert any(wanted)


def test_sampled_answers_depend_on_the_seed_and_on_no_batch(teacher_folder: Path) -> None:
    loaded = load_model(teacher_folder, dtype="float32")

    def sampled(batch_size: int, seed: int, part: slice = slice(None)) -> list[str]:
        decoding = Decoding(6, 0.9, 0.95, seed)
        teacher = TeacherAnswers(TransformersBackend(loaded, batch_size), "qa", decoding, number_few_shot=1)
        return [row["teacher_answer"] for row in teacher.answer(Dataset.from_list(examples(6)[part]))]

    once = sampled(4, seed=1)
    assert once == sampled(4, seed=1) == sampled(2, seed=1)
    assert sampled(1, seed=1, part=slice(3, 5)) == once[3:5]
    assert once != sampled(4, seed=2)


def test_long_contexts_are_shortened_and_counted(teacher_folder: Path) -> None:
    long = {**examples(1)[0], "id": "long", "context": "a house " * 600}
    backend = TransformersBackend(load_model(teacher_folder))
    teacher = TeacherAnswers(backend, "qa", Decoding(max_new_tokens=8), number_few_shot=0)
    dropped = [row["context_tokens_dropped"] for row in teacher.answer(Dataset.from_list([long, *examples(1)]))]
    assert dropped[0] > 0
    assert dropped[1] == 0
    with pytest.raises(UsageError, match="--max_new_tokens"):
        TeacherAnswers(backend, "qa", Decoding(max_new_tokens=512))


# --- vLLM backend


class FakeEngine:
    """Writes fixed texts, cut at the stop strings as vLLM cuts them."""

    texts: tuple[str, ...] = ()
    last: FakeEngine

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.calls: list[tuple[list[list[int]], list[SimpleNamespace]]] = []
        type(self).last = self

    def generate(self, requests: list[dict], settings: list[SimpleNamespace], use_tqdm: bool) -> list[SimpleNamespace]:
        assert not use_tqdm
        prompts = [request["prompt_token_ids"] for request in requests]
        self.calls.append((prompts, settings))
        numbers = [self.calls[0][0].index(prompt) for prompt in prompts]
        return [
            SimpleNamespace(outputs=[SimpleNamespace(text=self._cut(self.texts[number], setting))])
            for number, setting in zip(numbers, settings, strict=True)
        ]

    @staticmethod
    def _cut(text: str, setting: SimpleNamespace) -> str:
        ends = [text.index(stop) + len(stop) for stop in setting.stop if stop in text]
        return text[: min(ends, default=len(text))]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    module = ModuleType("vllm")
    module.LLM = FakeEngine  # pyright: ignore[reportAttributeAccessIssue]
    module.SamplingParams = SimpleNamespace  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return FakeEngine


def test_vllm_reads_the_same_prompts_and_gives_first_lines(
    vllm: type[FakeEngine], teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "texts", (" Ada\nQuestion: who", "\n\nGrace Hopper\nmore", ""))
    backend = VllmBackend(str(teacher_folder), max_length=400)
    vllm_teacher = TeacherAnswers(backend, "qa", DRAWN, number_few_shot=1, max_length=400)
    answers = vllm_teacher.answer(rows(3))
    assert [row["teacher_answer"] for row in answers] == ["Ada", "Grace Hopper", ""]
    plain = TeacherAnswers(
        TransformersBackend(load_model(teacher_folder)), "qa", DRAWN, number_few_shot=1, max_length=400
    )
    wanted = [plain.builder.build(row, max_tokens=plain.longest_prompt).ids for row in examples(3)]
    (prompts, settings), (again, unstopped) = vllm.last.calls
    assert prompts == wanted
    assert again == [wanted[1]]  # only the one that began with line breaks
    assert unstopped[0].stop == []
    assert [setting.seed for setting in settings] == [DRAWN.prompt_seed(prompt) for prompt in wanted]
    assert (settings[0].temperature, settings[0].top_p, settings[0].max_tokens) == (0.7, 0.9, 6)
    assert backend.tokenizer.eos_token_id in settings[0].stop_token_ids
    assert vllm.last.options["load_format"] == "safetensors"
    assert vllm.last.options["trust_remote_code"] is False
    assert vllm.last.options["max_model_len"] == 400


def test_a_missing_vllm_names_the_extra(monkeypatch: pytest.MonkeyPatch, teacher_folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match=r"crosskd\[vllm\]"):
        VllmBackend(str(teacher_folder))


# --- answers of another tool


def data_file(folder: Path, rows: list[dict[str, Any]], name: str = "train.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("key", ["answer", "teacher_answer", "prediction_text"])
def test_answers_go_to_their_ids(key: str, tmp_path: Path) -> None:
    data = data_file(tmp_path, examples(4))
    given = data_file(tmp_path, [{"id": "q2", key: "two "}, {"id": "q0", key: "zero"}], "given.jsonl")
    prepared = prepare_examples(data, TASKS["qa"], answers=given)
    assert prepared.examples["train"]["teacher_answer"][:] == ["zero", "", "two", ""]
    assert prepared.summary["splits"]["train"]["without_teacher_answer"] == 2


def test_answers_without_ids_go_to_the_rows_in_order_before_any_is_dropped(tmp_path: Path) -> None:
    raw = examples(4)
    raw[1]["answers"] = []
    data = data_file(tmp_path, raw)
    given = data_file(tmp_path, [{"answer": str(number)} for number in range(4)], "given.jsonl")
    assert prepare_examples(data, TASKS["qa"], answers=given).examples["train"]["teacher_answer"][:] == ["0", "2", "3"]
    limited = prepare_examples(data, TASKS["qa"], answers=given, limit=2)
    assert limited.examples["train"]["teacher_answer"][:] == ["0", "2"]
    for count in (3, 5):
        data_file(tmp_path, [{"answer": str(number)} for number in range(count)], "given.jsonl")
        with pytest.raises(UsageError, match=f"{count} answers without ids"):
            prepare_examples(data, TASKS["qa"], answers=given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([{"id": "q0", "text": "x"}], "teacher_answer"),
        ([{"id": "q0", "answer": "x"}, {"id": "q0", "answer": "y"}], "two different answers"),
        ([{"id": "other", "answer": "x"}], "no id of an example"),
        ([{"id": "q0", "answer": "x"}, {"answer": "y"}], "row 2"),
        ([], "no rows"),
    ],
)
def test_answers_that_fit_nowhere_are_named(given: list[dict[str, Any]], told: str, tmp_path: Path) -> None:
    data = data_file(tmp_path, examples(2))
    path = data_file(tmp_path, given, "given.jsonl")
    with pytest.raises(UsageError, match=told):
        prepare_examples(data, TASKS["qa"], answers=path)
    with pytest.raises(UsageError, match="no such file"):
        read_answers(tmp_path / "absent.jsonl")


def test_unlabelled_rows_are_kept_when_asked(tmp_path: Path) -> None:
    raw = [{name: row[name] for name in ("id", "context", "question")} for row in examples(3)]
    data = data_file(tmp_path, raw)
    with pytest.raises(UsageError, match="'answers'"):
        prepare_examples(data, TASKS["qa"])
    prepared = prepare_examples(data, TASKS["qa"], unlabelled=True).examples["train"]
    assert prepared["answers"][:] == [[], [], []]
    assert prepared["id"][:] == ["q0", "q1", "q2"]


# --- which examples can be trained on


def test_examples_without_an_answer_of_the_teacher_are_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("crosskd"), "propagate", True)
    some = rows(4).add_column("teacher_answer", ["a", "", " ", "b"])  # pyright: ignore[reportCallIssue]
    assert supervised_examples(some, "labels") is some
    assert supervised_examples(some, "teacher")["id"][:] == ["q0", "q3"]
    assert "2 of 4 examples are left out" in caplog.text
    for nothing in (rows(2), some.select([1, 2])):
        with pytest.raises(UsageError, match="crosskd answer"):
            supervised_examples(nothing, "teacher")


# --- folders


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    folder = AnswerFolder.open(tmp_path, {"examples": 3, "shard_size": 2, "split": "train"})
    assert folder.missing() == [0, 1]
    folder.write(0, [{"id": "q0", "teacher_answer": "x"}, {"id": "q1", "teacher_answer": "y"}])
    folder.write(1, [{"id": "q9", "teacher_answer": "z"}])
    assert folder.missing() == []
    with pytest.raises(UsageError, match=r"00001\.jsonl"):
        folder.rows(rows(3))


def test_first_line_is_what_both_backends_cut() -> None:
    assert first_line("\n\n a b \nc") == "a b"
