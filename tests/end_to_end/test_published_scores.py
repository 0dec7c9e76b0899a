"""``python benchmark.py`` on what ``finetuning.py`` wrote: the published way from a loader file to a score."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from crosskd.evaluation.metrics import bert_score
from crosskd.published.benchmark import main
from crosskd.published.finetuning import main as finetune
from helpers_encoders import save_bert
from helpers_published import finetuning_words, items, save_t5, write_loader

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def saved_items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "passages"
    rows = [{**item, "title": "A passage"} for item in items(6)]
    DatasetDict({"validation": Dataset.from_list(rows)}).save_to_disk(str(folder))
    return folder


def test_the_published_command_line(student_folder: Path, saved_items: Path, tmp_path: Path) -> None:
    loader = write_loader(tmp_path / "data", train=12)
    assert finetune(finetuning_words(student_folder, loader, tmp_path / "student", "--lr", "1e-2")) == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [
        "--model_id", str(tmp_path / "student"), "--model_tokenizer", str(student_folder),
        "--dataset_id", str(saved_items), "--split_name", "validation", "--context", "--title", "--batch_size", "1",
        "--num_workers", "1", "--output_path", f"{tmp_path / 'scores'}/", "--number_few_shot", "0",
        "--context_length", "1024", "--from_disk", "--task", "qa", "--f", "1", "--bfloat", "--save_predictions",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "benchmark.py", *words], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "scores" / "0shots.json").read_text())
    assert json.loads(done.stdout) == record
    assert (record["samples_number"], record["title"]) == (6, True)
    lines = (tmp_path / "scores" / "predictions_0shots.json").read_text().splitlines()
    assert [json.loads(line)["answers"] for line in lines] == [[item["answer"]] for item in items(6)]


def test_an_encoder_decoder_model_is_scored(saved_items: Path, tmp_path: Path) -> None:
    model = save_t5(tmp_path / "t5")
    words = ["--model_id", str(model), "--dataset_id", str(saved_items), "--split_name", "validation", "--seq2seq"]
    assert main([*words, "--output_path", str(tmp_path / "out"), "--max_new_tokens", "4"]) == 0
    assert json.loads((tmp_path / "out" / "0shots.json").read_text())["samples_number"] == 6


def test_bert_score_has_its_published_names(student_folder: Path, saved_items: Path, tmp_path: Path) -> None:
    pytest.importorskip("bert_score")
    encoder = save_bert(tmp_path / "encoder")
    words = ["--model_id", str(student_folder), "--dataset_id", str(saved_items), "--split_name", "validation"]
    words += ["--bert_score", "--bert_score_model", str(encoder), "--output_path", str(tmp_path)]
    assert main([*words, "--bert_score_layer", "2", "--max_new_tokens", "2", "--save_predictions"]) == 0
    record = json.loads((tmp_path / "0shots.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "predictions_0shots.json").read_text().splitlines()]
    wanted = bert_score(
        [line["prediction_text"] for line in lines],
        [line["answers"] for line in lines],
        model=str(encoder),
        layer=2,
    )
    for part in ("f1", "precision", "recall"):
        assert record[f"{part}_bert"] == pytest.approx(100 * wanted[part], abs=0.006)
