"""Whose targets a cache holds: another teacher is refused wherever it lies, the same one accepted wherever it lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from crosskd.cli.main import main
from crosskd.models.load import load_tokenizer
from crosskd.teacher.cache import VOCABULARY, TargetCache
from crosskd.teacher.identity import tokenizer_sha256
from crosskd.text.alignment import parse_vocabulary, read_vocabulary, write_vocabulary
from helpers_models import tiny_model
from helpers_tokenizers import TOKENIZERS

METHODS = ("multilevel_ot", "mined")


def cache(teacher: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        "cache", "--teacher", str(teacher), "--data", str(data), "--output", str(output), "--number_few_shot", "1",
        "--top_k", "10", "--methods", ",".join(METHODS), *more,
    ]  # fmt: skip


def distill(student: Path, data: Path, output: Path, targets: Path, *more: str) -> list[str]:
    return [
        "distill", "--student", str(student), "--data", str(data), "--output_dir", str(output), "--top_k", "10",
        "--number_few_shot", "1", "--max_steps", "1", "--save_strategy", "no", "--teacher_cache", str(targets), *more,
    ]  # fmt: skip


@pytest.fixture
def teacher(teacher_folder: Path, tmp_path: Path) -> Path:
    """A teacher that the test may change."""
    return shutil.copytree(teacher_folder, tmp_path / "teacher")


@pytest.fixture
def targets(teacher: Path, data_folder: Path, tmp_path: Path) -> Path:
    assert main(cache(teacher, data_folder, tmp_path / "targets")) == 0
    return tmp_path / "targets"


def change_weights(teacher: Path) -> None:
    tiny_model("gemma3", seed=9).save_pretrained(teacher)


def change_tokenizer(teacher: Path) -> None:
    tokenizer = load_tokenizer(teacher)
    tokenizer.add_tokens(["crosswise"])
    tokenizer.save_pretrained(teacher)


def change_merges(teacher: Path) -> None:
    """The same tokens by the same ids, made of a text in another order."""
    file = teacher / "tokenizer.json"
    state = json.loads(file.read_text())
    state["model"]["merges"].reverse()
    file.write_text(json.dumps(state))


def change_template(teacher: Path) -> None:
    (teacher / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")


def change_configuration(teacher: Path) -> None:
    stated = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps({**stated, "sliding_window": 4}))


CHANGES = {
    change_weights: "teacher_weights_sha256",
    change_tokenizer: "tokenizer_sha256",
    change_merges: "tokenizer_sha256",
    change_template: "tokenizer_sha256",
    change_configuration: "teacher_config_sha256",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_teacher_that_changed_in_its_place_is_refused(
    change, teacher: Path, targets: Path, student_folder: Path, data_folder: Path, tmp_path: Path, capsys
) -> None:
    change(teacher)
    for method in METHODS:
        words = distill(student_folder, data_folder, tmp_path / "run", targets, "--method", method)
        assert main([*words, "--teacher", str(teacher)]) == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{CHANGES[change]}: there " in last
    assert main(cache(teacher, data_folder, targets, "--resume")) == 2
    assert f"{CHANGES[change]}: there " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_same_teacher_is_accepted_wherever_it_lies_and_when_it_is_gone(
    teacher: Path, targets: Path, student_folder: Path, data_folder: Path, tmp_path: Path, capsys
) -> None:
    moved = tmp_path / "mount" / "elsewhere"
    moved.parent.mkdir()
    teacher.rename(moved)
    words = distill(student_folder, data_folder, tmp_path / "run", targets, "--method", "mined", "--overwrite")
    assert main([*words, "--teacher", str(moved)]) == 0
    before = (targets / "identity.json").read_bytes()
    (targets / "targets-00000.sha256").unlink()
    assert main(cache(moved, data_folder, targets, "--resume")) == 0
    assert (targets / "identity.json").read_bytes() == before
    shutil.rmtree(moved)
    assert main(words) == 0  # alignment takes the teacher's tokens from the cache
    assert main([*words, "--teacher", "hub/never-seen"]) == 2
    errors = capsys.readouterr().err
    assert "are not on this machine" in " ".join(errors.split())
    assert "teacher: there" in errors


def test_number_formats_that_are_asked_for_must_be_those_of_the_cache(
    targets: Path, student_folder: Path, data_folder: Path, tmp_path: Path, capsys
) -> None:
    words = distill(student_folder, data_folder, tmp_path / "run", targets)
    assert main([*words, "--teacher_dtype", "bfloat16"]) == 2
    assert "teacher_dtype: there torch.float32, here torch.bfloat16" in capsys.readouterr().err
    assert main([*words, "--teacher_quantization", "4bit"]) == 2
    assert "teacher_quantization: there none, here 4bit" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*words, "--teacher_dtype", "float32"]) == 0


def test_another_dtype_is_refused_when_a_cache_goes_on(teacher: Path, targets: Path, data_folder: Path, capsys) -> None:
    assert main(cache(teacher, data_folder, targets, "--resume", "--dtype", "bfloat16")) == 2
    assert "teacher_dtype: there torch.float32, here torch.bfloat16" in capsys.readouterr().err


def test_a_task_is_known_by_its_texts(
    teacher: Path, student_folder: Path, data_folder: Path, tmp_path: Path, capsys
) -> None:
    texts = "name: {}\nsystem: Answer.\nformat: '{{context}} {{question}} Answer:'\nmetrics: [{}]\n"
    files = {name: tmp_path / f"{name}.yaml" for name in ("one", "two", "other")}
    files["one"].write_text(texts.format("one", "f1"))
    files["two"].write_text(texts.format("two", "exact_match"))
    files["other"].write_text(texts.format("one", "f1").replace("Answer.", "Reply."))
    targets, none = tmp_path / "targets", ("--number_few_shot", "0")
    assert main([*cache(teacher, data_folder, targets, "--task", str(files["one"])), *none]) == 0
    words = [*distill(student_folder, data_folder, tmp_path / "run", targets), *none]
    assert main([*words, "--task", str(files["other"])]) == 2
    assert "prompt_sha256" in capsys.readouterr().err
    assert main([*words, "--task", str(files["two"])]) == 0


def test_alignment_needs_what_the_cache_was_made_to_keep(
    teacher: Path, targets: Path, student_folder: Path, data_folder: Path, tmp_path: Path, capsys
) -> None:
    words = distill(student_folder, data_folder, tmp_path / "run", targets, "--method", "mined")
    whole = (targets / VOCABULARY).read_bytes()
    (targets / VOCABULARY).write_bytes(whole[:-9])
    assert main(words) == 2
    assert "--repair" in capsys.readouterr().err.strip().splitlines()[-1]
    assert main(cache(teacher, data_folder, targets, "--repair")) == 0
    assert (targets / VOCABULARY).read_bytes() == whole
    assert main(words) == 0
    other = tmp_path / "without"
    assert main(cache(teacher, data_folder, other, "--methods", "multilevel_ot,uld")) == 0
    assert not (other / VOCABULARY).exists()
    words = distill(student_folder, data_folder, tmp_path / "second", other, "--method", "mined")
    assert main(words) == 2
    assert "request_" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_cache_of_an_earlier_format_is_one_line(
    targets: Path, student_folder: Path, data_folder: Path, tmp_path: Path, capsys
) -> None:
    identity = json.loads((targets / "identity.json").read_text())
    del identity["format"]
    (targets / "identity.json").write_text(json.dumps(identity))
    assert main(distill(student_folder, data_folder, tmp_path / "run", targets)) == 2
    assert "a cache of format 1" in capsys.readouterr().err.strip().splitlines()[-1]


def test_processes_beside_the_first_do_not_read_the_whole_cache(targets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from crosskd.teacher import shards

    read: list[Path] = []
    monkeypatch.setattr(shards, "known_sha256", lambda path: read.append(path) or "")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert len(TargetCache.open(targets)) == 12
    assert read == []


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_is_the_same_after_use_and_from_another_folder(kind: str, tmp_path: Path) -> None:
    TOKENIZERS[kind]().save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("one", "two"))
    two(["a text", "and a longer one"], padding=True, truncation=True, max_length=3)
    assert tokenizer_sha256(one) == tokenizer_sha256(two)
    vocabulary = read_vocabulary(one)
    assert parse_vocabulary(write_vocabulary(vocabulary)) == vocabulary
    assert write_vocabulary(read_vocabulary(two)) == write_vocabulary(vocabulary)


def test_a_model_that_was_saved_again_in_shards_is_another_file_but_extra_files_do_not_count(
    teacher: Path, targets: Path, student_folder: Path, data_folder: Path, tmp_path: Path, capsys
) -> None:
    (teacher / "consolidated.safetensors").write_bytes(b"the same weights in a form that is not loaded")
    words = distill(student_folder, data_folder, tmp_path / "run", targets, "--teacher", str(teacher))
    assert main(words) == 0
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    (teacher / "model.safetensors").unlink()
    model.save_pretrained(teacher, max_shard_size="50KB")
    assert (teacher / "model.safetensors.index.json").is_file()
    capsys.readouterr()
    assert main([*words, "--overwrite"]) == 2
    assert "teacher_weights_sha256" in capsys.readouterr().err
