"""What a trainer reports of examples that it does not train on, and how `transformers.Trainer`'s users ask for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from datasets import Dataset, DatasetDict

from crosskd import DistillationConfig, DistillationTrainer, load_model
from crosskd.cli.main import main
from crosskd.data.prepare import load_splits
from crosskd.errors import UsageError
from crosskd.evaluation.evaluate import evaluate
from helpers_models import examples

ROWS = examples(12)


def trainer(
    student: Any, output: Path, evaluated: Any = ROWS[4:9], teacher: Path | None = None, **settings: Any
) -> DistillationTrainer:
    options = {name: settings.pop(name) for name in ("compute_metrics", "teacher_cache") if name in settings}
    config = DistillationConfig(
        output_dir=str(output),
        **{
            "method": "sft", "per_device_train_batch_size": 2, "max_steps": 2, "logging_steps": 1, "top_k": 10,
            "learning_rate": 1e-2, "save_strategy": "no", "number_few_shot": 1, "disable_tqdm": True, **settings,
        },
    )  # fmt: skip
    source = str(student) if isinstance(student, Path) else student
    return DistillationTrainer(source, teacher and str(teacher), config, ROWS[:4], evaluated, **options)


def by_hand(made: DistillationTrainer, rows: list[dict[str, Any]]) -> float:
    """Cross-entropy an answer token, one unpadded sequence at a time."""
    side = made.participants.sides[0]
    total, tokens = 0.0, 0
    for row in rows:
        found = side.tokenize(row, row["answers"][0])
        ids = torch.tensor([[*found.prompt_ids, *found.answer_ids]])
        with torch.no_grad():
            logits = made.model(input_ids=ids).logits[0, len(found.prompt_ids) - 1 : -1]
        labels = torch.tensor(found.answer_ids)
        total += float(torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum"))
        tokens += len(labels)
    return total / tokens


def test_eval_loss_is_the_cross_entropy_an_answer_token(
    student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """Whatever the batch size and the method, with a cache, a live teacher or none."""
    rows = ROWS[4:9]
    alone = trainer(student_folder, tmp_path / "sft")
    expected = by_hand(alone, rows)
    for size in (1, 2, 4, 8):
        alone.args.per_device_eval_batch_size = size
        assert alone.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6), size
    live = trainer(student_folder, tmp_path / "live", teacher=teacher_folder, method="multilevel_ot")
    assert live.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    from_cache = cached(student_folder, teacher_folder, tmp_path)
    assert from_cache.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert from_cache.evaluate(rows)["eval_loss"] == pytest.approx(expected, rel=1e-6)


def cached(student: Path, teacher: Path, folder: Path) -> DistillationTrainer:
    """A trainer that reads its teacher's targets from a cache."""
    from helpers_data import write_lines

    raw = folder / "raw"
    raw.mkdir()
    write_lines(raw / "train.jsonl", ROWS[:4])
    assert main(["prepare", "--data", str(raw), "--output", str(folder / "data")]) == 0
    words = ["--teacher", str(teacher), "--data", str(folder / "data"), "--output", str(folder / "cache")]
    assert main(["cache", *words, "--methods", "multilevel_ot", "--top_k", "10", "--number_few_shot", "1"]) == 0
    config = DistillationConfig(output_dir=str(folder / "cached"), number_few_shot=1, top_k=10, disable_tqdm=True)
    data = load_splits(folder / "data")["train"]
    return DistillationTrainer(str(student), None, config, data, ROWS[4:9], teacher_cache=folder / "cache")


def test_rows_a_dataset_and_sets_by_name_are_evaluated(student_folder: Path, tmp_path: Path) -> None:
    made = trainer(student_folder, tmp_path, {"a": ROWS[4:6], "b": ROWS[6:9]})
    known = made.evaluate()
    assert known["eval_a_loss"] == pytest.approx(by_hand(made, ROWS[4:6]), rel=1e-6)
    assert known["eval_b_loss"] == pytest.approx(by_hand(made, ROWS[6:9]), rel=1e-6)
    assert "eval_loss" not in known
    expected = by_hand(made, ROWS[9:])
    for given in (ROWS[9:], Dataset.from_list(ROWS[9:]), made.eval_dataset["a"]):
        found = made.evaluate(given)["eval_loss"]
        assert found == pytest.approx(known["eval_a_loss"] if given is made.eval_dataset["a"] else expected, rel=1e-6)
    for sets in ({"c": ROWS[9:]}, DatasetDict({"c": Dataset.from_list(ROWS[9:])})):
        assert made.evaluate(sets)["eval_c_loss"] == pytest.approx(expected, rel=1e-6)
    assert made.evaluate(ROWS[9:], metric_key_prefix="later")["later_loss"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(UsageError, match="at least one"):
        made.evaluate([])


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_predict_gives_the_logits_of_every_answer_token(strategy: str, student_folder: Path, tmp_path: Path) -> None:
    """In the rows' order; logits t predict label t; padding is -100."""
    made = trainer(student_folder, tmp_path, per_device_eval_batch_size=2, train_sampling_strategy=strategy)
    rows = ROWS[4:9]
    output = made.predict(rows)
    answers = [made.participants.sides[0].tokenize(row, row["answers"][0]).answer_ids for row in rows]
    longest = max(map(len, answers))
    assert output.predictions.shape == (len(rows), longest, made.model.config.vocab_size)
    assert output.label_ids.tolist() == [[*answer, *[-100] * (longest - len(answer))] for answer in answers]
    logits, labels = torch.tensor(output.predictions), torch.tensor(output.label_ids)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert float(loss) == pytest.approx(output.metrics["test_loss"], rel=1e-6)
    assert output.metrics["test_loss"] == pytest.approx(by_hand(made, rows), rel=1e-6)


def test_batches_are_grouped_by_length(student_folder: Path, tmp_path: Path) -> None:
    config = DistillationConfig(
        output_dir=str(tmp_path), method="sft", train_sampling_strategy="group_by_length", save_strategy="no",
        per_device_train_batch_size=2, num_train_epochs=1, max_steps=-1, disable_tqdm=True,
    )  # fmt: skip
    rows = examples(60)
    made = DistillationTrainer(str(student_folder), None, config, rows)
    index = {row: len(made.train_dataset[i]["student_prompt_ids"]) for i, row in enumerate(made.train_dataset["id"])}
    spread = []
    for batch in made.get_train_dataloader():
        lengths = [index[name] for name in batch["ids"]]
        spread.append(max(lengths) - min(lengths))
    assert len(spread) == 30
    # contexts come in three lengths: batches at random would mix them two times of three
    assert numpy.mean(spread) < 0.2 * (max(index.values()) - min(index.values()))
    made.args.max_steps = 1
    made.train()
    assert made.state.global_step == 1


@pytest.mark.parametrize(
    ("metric", "sets"), [("f1", False), ("rougeL", False), ("eval_a_f1", True), ("loss", False), ("eval_b_loss", True)]
)
def test_the_best_model_is_loaded_at_the_end(metric: str, sets: bool, student_folder: Path, tmp_path: Path) -> None:
    evaluated = {"a": ROWS[4:6], "b": ROWS[6:8]} if sets else ROWS[4:8]
    made = trainer(
        student_folder, tmp_path / "run", evaluated, max_steps=3, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model=metric,
        generation_max_new_tokens=8, learning_rate=2e-2,
    )  # fmt: skip
    assert made.args.predict_with_generate == (not metric.endswith("loss"))
    made.train()
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    values = [line[name] for line in made.state.log_history if name in line]
    assert len(values) == 3
    best = min(values) if name.endswith("loss") else max(values)
    assert made.state.best_metric == best
    assert Path(str(made.state.best_model_checkpoint)).name == f"checkpoint-{values.index(best) + 1}"
    assert made.evaluate()[name] == pytest.approx(best, rel=1e-6)


def test_scores_during_training_are_those_of_evaluate(student_folder: Path, tmp_path: Path) -> None:
    """On the same student; references are what it answers, but for one example, so that scores are not all 0."""
    loaded = load_model(student_folder, dtype="float32")
    asked: dict[str, Any] = {"task": "qa", "tokenizer": loaded.tokenizer, "max_new_tokens": 8}
    answers = [found.prediction or "nothing" for found in evaluate(loaded.model, ROWS[4:9], **asked).predictions]
    gold = [ROWS[4], *({**row, "answers": [text]} for row, text in zip(ROWS[5:9], answers[1:], strict=True))]
    made = trainer(loaded, tmp_path, gold, predict_with_generate=True, generation_max_new_tokens=8)
    found, expected = made.evaluate(), evaluate(loaded.model, gold, **asked).scores
    for name in ("f1", "exact_match", "rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert found[f"eval_{name}"] == pytest.approx(expected[name], rel=1e-12), name
    assert 0 < found["eval_f1"] < 1


def test_own_metrics_see_logits_and_labels(student_folder: Path, tmp_path: Path) -> None:
    def accuracy(prediction: Any) -> dict[str, float]:
        kept = prediction.label_ids != -100
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids)[kept].mean())}

    made = trainer(
        student_folder, tmp_path, compute_metrics=accuracy, eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, load_best_model_at_end=True, metric_for_best_model="accuracy",
    )  # fmt: skip
    made.train()
    values = [line["eval_accuracy"] for line in made.state.log_history if "eval_accuracy" in line]
    assert len(values) == 2
    assert made.state.best_metric == max(values)
    assert all(0 <= value <= 1 for value in values)


@pytest.mark.parametrize("flags", [["--method", "sft", "--supervision", "teacher"], ["--method", "seqkd"]])
def test_validation_is_on_labels_where_only_training_was_answered(
    flags: list[str], student_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    answered, run = tmp_path / "answered", tmp_path / "run"
    words = ["answer", "--teacher", str(teacher_folder), "--data", str(data_folder), "--output", str(answered)]
    assert main([*words, "--split", "train", "--max_new_tokens", "4", "--number_few_shot", "1"]) == 0
    words = ["distill", "--student", str(student_folder), "--data", str(answered), "--output_dir", str(run), *flags]
    words += ["--max_steps", "1", "--eval_strategy", "steps", "--eval_steps", "1", "--learning_rate", "0"]
    assert main(words) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    [found] = [line["eval_loss"] for line in lines if "eval_loss" in line]
    validation = load_splits(data_folder)["validation"]
    made = trainer(student_folder, tmp_path / "other", validation)
    assert found == pytest.approx(by_hand(made, list(validation)), rel=1e-6)


REFUSED: dict[str, dict[str, Any]] = {
    "label_smoothing_factor": {"label_smoothing_factor": 0.1},
    "remove_unused_columns": {"remove_unused_columns": True},
    "label_names": {"label_names": ["start_positions"]},
    "resume_from_checkpoint": {"resume_from_checkpoint": "checkpoint-3"},
    "use_liger_kernel": {"use_liger_kernel": True},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=f"^--{name}: got .*; expected"):
        DistillationConfig(output_dir=str(tmp_path / "run"), **REFUSED[name])
    [value] = REFUSED[name].values()
    words = [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    assert main(["distill", "--student", "s", "--data", "d", "--output_dir", str(tmp_path / "run"), *words]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"crosskd distill: error: --{name}")
    assert not (tmp_path / "run").exists()


class _Parallel:
    def __init__(self, **sizes: int) -> None:
        self.cp_size, self.sp_size = sizes.get("cp_size", 1), sizes.get("sp_size", 1)


@pytest.mark.parametrize("kind", ["cp_size", "sp_size"])
def test_a_sequence_is_not_spread_over_devices(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="context or sequence parallelism"):
        DistillationConfig(output_dir=str(tmp_path), parallelism_config=_Parallel(**{kind: 2}))  # pyright: ignore


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric_for_best_model": "f2"}, "--metric_for_best_model: got 'f2'.*choose from loss"),
        ({"metric_for_best_model": "eval_rougel"}, "did you mean 'rougeL'"),
        ({"length_column_name": "size"}, "--length_column_name: got 'size'"),
    ],
)
def test_names_that_nothing_has_are_refused_before_training(
    settings: dict[str, Any], message: str, student_folder: Path, tmp_path: Path
) -> None:
    if "rougel" in str(settings):
        settings = {**settings, "predict_with_generate": True}
    with pytest.raises(UsageError, match=message):
        trainer(student_folder, tmp_path, **settings)


def test_answers_need_examples_as_text(student_folder: Path, tmp_path: Path) -> None:
    made = trainer(student_folder, tmp_path)
    tokens = made.train_dataset.select_columns(["student_prompt_ids", "student_answer_ids"])
    assert made.evaluate(tokens)["eval_loss"] == pytest.approx(by_hand(made, ROWS[:4]), rel=1e-6)
    with pytest.raises(UsageError, match="--predict_with_generate: got 'evaluation examples that are tokens'"):
        trainer(student_folder, tmp_path, tokens, predict_with_generate=True)


@pytest.mark.parametrize("name", ["compute_loss_func", "model_init", "data_collator"])
def test_arguments_of_trainer_that_nothing_would_ask_are_refused(
    name: str, student_folder: Path, tmp_path: Path
) -> None:
    config = DistillationConfig(output_dir=str(tmp_path), method="sft")
    with pytest.raises(UsageError, match=f"^{name}="):
        DistillationTrainer(str(student_folder), None, config, ROWS[:2], **{name: print})
