"""MinED and ULD as published, by command line: a cache gives what a live teacher gives, a recipe scores plainly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from crosskd.cli.main import main
from crosskd.evaluation.results import Evaluation
from crosskd.published.benchmark_scores import published_scores
from helpers_models import tiny_model
from helpers_tokenizers import byte_level_tokenizer

RIVALS = {
    "uld": ["--top_entries", "0"],
    "mined": [
        "--top_entries", "10", "--edit_distance_cutoff", "1.0", "--alignment", "dtw", "--remainder", "dropped",
    ],
}  # fmt: skip


def logged(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def fine_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose tokenizer knows few words, so that a teacher's token covers several of its own."""
    folder = tmp_path_factory.mktemp("models") / "fine"
    tiny_model("llama", seed=1).save_pretrained(folder)
    byte_level_tokenizer(vocab_size=300).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rivers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of words that the teacher's tokenizer was trained on."""
    folder = tmp_path_factory.mktemp("rivers")
    context = "The river rises in the hills and runs to the sea. Ann lives in Rome, and Bob sings every morning."
    answers = ["in the hills", "to the sea", "Rome", "every morning", "Ann lives in Rome", "the river", "Bob", "sings"]
    rows = [{"context": context, "question": f"what about {each}", "answers": [each]} for each in answers]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["prepare", "--data", str(folder / "train.jsonl"), "--output", str(folder / "data")]) == 0
    return folder / "data"


@pytest.mark.parametrize("method", RIVALS)
def test_a_cached_run_equals_a_live_run(
    method: str, fine_student: Path, teacher_folder: Path, rivers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    common = ["--data", str(rivers), "--number_few_shot", "1"]
    entries = RIVALS[method][1]
    words = ["cache", "--teacher", str(teacher_folder), *common, "--output", str(tmp_path / "targets")]
    words += ["--methods", method, "--top_entries", entries, "--target_dtype", "float32"]
    assert main(words) == 0
    words = ["distill", "--student", str(fine_student), *common, "--method", method, *RIVALS[method]]
    words += ["--max_steps", "6", "--logging_steps", "1", "--learning_rate", "1e-4", "--save_strategy", "no"]
    words += ["--per_device_train_batch_size", "4"]
    live, cached = tmp_path / "live", tmp_path / "cached"
    assert main([*words, "--output_dir", str(live), "--teacher", str(teacher_folder)]) == 0
    assert main([*words, "--output_dir", str(cached), "--teacher_cache", str(tmp_path / "targets")]) == 0
    assert len(logged(live)) == 6
    for left, right in zip(logged(live), logged(cached), strict=True):
        for name in ("loss", "cross_entropy", "distillation", "tail_mass"):
            assert left[name] == pytest.approx(right[name], rel=1e-5, abs=1e-6)
    assert logged(live)[0]["distillation"] > 0
    if method == "uld":
        assert logged(live)[0]["tail_mass"] == 0  # Eq. 7 leaves nothing out
    else:
        # some tokens have a teacher and some learn their label
        assert all(0 < line["label_targets"] < 1 for line in logged(live))
        assert all(line["tail_mass"] > 0 for line in logged(live))
    resolved = yaml.safe_load((live / "resolved_config.yaml").read_text())
    flags = dict(zip(RIVALS[method][::2], RIVALS[method][1::2], strict=True))
    assert {f"--{name}": str(resolved[name]) for name in resolved if f"--{name}" in flags} == flags


def test_a_cache_of_fewer_entries_is_refused_for_all_of_them(
    student_folder: Path, teacher_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", str(data_folder), "--number_few_shot", "1"]
    words = ["cache", "--teacher", str(teacher_folder), *common, "--output", str(tmp_path / "targets")]
    assert main([*words, "--methods", "uld"]) == 0
    words = ["distill", "--student", str(student_folder), *common, "--method", "uld", "--top_entries", "0"]
    words += ["--teacher_cache", str(tmp_path / "targets"), "--output_dir", str(tmp_path / "run")]
    assert main(words) == 2
    assert "top_entries" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_recipes_score_is_what_the_published_script_makes_of_its_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    name = "table1/opt-350m/fairytaleqa/sft"
    words = ["recipes", "run", name, "--data", "sample:fairytaleqa", "--output", str(tmp_path / "run"), "--limit", "4"]
    assert main([*words, "--model_override", "tiny", "--max_new_tokens", "6", "--split", "validation"]) == 0
    found = Evaluation.load(tmp_path / "run" / "scores" / "validation")
    assert found.settings["rouge_variant"] == "plain"
    answers = [each.prediction for each in found.predictions]
    published = published_scores(answers, [each.answers for each in found.predictions], {})
    assert f"{published['rougeLsum']:.2f}" in capsys.readouterr().out
    assert round(100 * found.scores["rougeLsum"], 2) == published["rougeLsum"]
