"""Loader files that are missing, fail, or make what cannot be used: one line for each."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import PreTrainedTokenizerFast

from crosskd.errors import UsageError
from crosskd.published.loader_file import LoaderFile
from helpers_tokenizers import byte_level_tokenizer

HEAD = "def get_split(dataset_config, tokenizer, split):\n"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


def made(folder: Path, text: str) -> LoaderFile:
    path = folder / "loader.py"
    path.write_text(text)
    return LoaderFile(str(path))


def test_it_is_run_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("crosskd"), "propagate", True)
    made(tmp_path, HEAD + "    return []\n")
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert str(tmp_path / "loader.py") in caplog.text


def test_a_folder_stands_for_its_load_py(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "load.py").write_text(HEAD + "    return [{'input_ids': [1, 2], 'labels': [-100, 2], 'of': split}]\n")
    rows = LoaderFile(str(tmp_path)).split("train", tokenizer, SimpleNamespace())
    assert rows[0]["of"] == "train"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"has no function get_split"),
        ("get_split = 3\n", r"has no function get_split"),
        ("import no_such_package_here\n", r"line 1: ModuleNotFoundError.*install no_such_package_here"),
        ("def (:\n", r"failed.*SyntaxError"),
        ("\n\nraise RuntimeError('two\\nlines')\n", r"failed in line 3: RuntimeError: two$"),
    ],
)
def test_a_file_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        made(tmp_path, text)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return dataset_config.shots", r"failed in line 2: AttributeError.*give --dataset.shots"),
        ("return dataset_config.generated_by.split('/')", r"AttributeError.*--dataset.generated_by"),
        ("return {}[split]", r"split 'train' failed in line 2: KeyError: 'train'"),
        ("return None", r"returned a NoneType"),
        ("return []", r"returned no rows"),
        ("return {'train': []}", r"without a row 0"),
        ("return [[1, 2]]", r"rows that are list"),
        ("return [{'ids': [1], 'labels': [1]}]", r"without input_ids: got 'ids, labels'"),
        ("return [{'text': 'a'}]", r"without input_ids and labels"),
    ],
)
def test_a_get_split_that_cannot_be_used(
    body: str, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    loader = made(tmp_path, f"{HEAD}    {body}\n")
    with pytest.raises(UsageError, match=message):
        loader.split("train", tokenizer, SimpleNamespace(generated_by=None))


def test_a_module_beside_an_ancestor_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "published" / "llm_tools" / "loader"
    folder.mkdir(parents=True)
    with pytest.raises(UsageError, match=rf"run with PYTHONPATH={tmp_path / 'published'}$"):
        made(folder, "from llm_tools.prompt import create_prompt\n")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("missing.py", "missing"):
        with pytest.raises(UsageError, match=r"--dataset.file .*no such file"):
            LoaderFile(str(tmp_path / name))
