"""A small world to be wrong in: models whole and damaged, data, a cache, scores; and what stands in it."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from crosskd.cli.main import main
from helpers_data import ROWS

LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TASK = "system: Name it.\nformat: |\n  {context}\n  Name:\n"


def make_world(folder: Path, student: Path, teacher: Path, data: Path) -> Path:
    """Everything that a command line can name, below one folder."""
    shutil.copytree(student, folder / "student")
    shutil.copytree(teacher, folder / "teacher")
    shutil.copytree(data, folder / "data")
    (folder / "rows.jsonl").write_text(LINES)
    for name, damage in DAMAGED_MODELS.items():
        shutil.copytree(student, folder / name)
        damage(folder / name)
    words = ["--data", str(folder / "data"), "--teacher", str(folder / "teacher"), "--methods", "uld"]
    assert main(["cache", *words, "--output", str(folder / "cache"), "--number_few_shot", "0"]) == 0
    for name, damage in DAMAGED_CACHES.items():
        shutil.copytree(folder / "cache", folder / name)
        damage(folder / name)
    for name, damage in DAMAGED_DATA.items():
        shutil.copytree(folder / "data", folder / name)
        damage(folder / name)
    for name in ("one", "other"):
        _write_scores(folder / "scores" / name, name)
    return folder


def snapshot(*folders: Path) -> dict[str, str]:
    """Every file and folder with a hash of its content."""
    return {
        str(path): hashlib.blake2b(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for folder in folders
        for path in sorted(folder.rglob("*"))
    }


def prediction(**changed: object) -> str:
    """One line of a predictions.jsonl."""
    return json.dumps({"id": "a", "question": "Q", "answers": ["x"], "prediction": "x", **changed}) + "\n"


def scores(**changed: object) -> str:
    """A scores.json."""
    record = {"name": "m", "task": "qa", "scores": {"f1": 1.0, "exact_match": 1.0, "rougeLsum": 1.0}}
    return json.dumps({**record, "examples": 1, "seconds": 1.0, **changed})


def packed(content: bytes, keep: int) -> bytes:
    """The first bytes of a gzip file."""
    return gzip.compress(content)[:keep]


def _write_scores(folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    (folder / "predictions.jsonl").write_text(prediction())
    (folder / "scores.json").write_text(scores(name=name))


def _cut(name: str, keep: float = 0.5) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (path,) = folder.rglob(name)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return damage


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def _set(name: str, **values: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        record = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**record, **values}))

    return damage


def _only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _nameless_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "task_type": "CAUSAL_LM"}')
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


DAMAGED_MODELS: dict[str, Callable[[Path], None]] = {
    "cut_weights": _cut("model.safetensors"),
    "empty_weights": _write("model.safetensors", b""),
    "no_weights": _without("model.safetensors"),
    "pickled": _only_pickle,
    "other_shapes": _set("config.json", hidden_size=64),
    "config_no_json": _write("config.json", b"{hidden"),
    "config_list": _write("config.json", b"[1]"),
    "config_latin": _write("config.json", '{"a": "é"}'.encode("latin-1")),
    "config_types": _set("config.json", hidden_size="many"),
    "config_unknown": _set("config.json", model_type="unheard_of"),
    "config_encoder": _set("config.json", architectures=["LlamaForSequenceClassification"]),
    "tokenizer_cut": _cut("tokenizer.json"),
    "tokenizer_empty": _write("tokenizer.json", b""),
    "tokenizer_types": _write("tokenizer.json", b'{"model": 7}'),
    "tokenizer_latin": _write("tokenizer.json", '{"a": "é"}'.encode("latin-1")),
    "tokenizer_config_cut": _cut("tokenizer_config.json"),
    "no_tokenizer": lambda folder: [path.unlink() for path in folder.glob("tokenizer*")] and None,
    "template_broken": _write("chat_template.jinja", b"{% if %}"),
    "adapter_no_json": _write("adapter_config.json", b"{"),
    "adapter_no_base": _nameless_adapter,
}

DAMAGED_CACHES: dict[str, Callable[[Path], None]] = {
    "cache_cut": _cut("targets-00000.safetensors"),
    "cache_no_json": _write("identity.json", b"{"),
    "cache_list": _write("identity.json", b"[]"),
    "cache_empty": _write("identity.json", b"{}"),
    "cache_types": _set("identity.json", examples="many", shard_size=None),
    "cache_no_sum": _without("targets-00000.sha256"),
    "cache_other": _set("identity.json", data_sha256="0" * 64),
}

DAMAGED_DATA: dict[str, Callable[[Path], None]] = {
    "data_cut": _cut("train/*.arrow"),
    "data_no_json": _write("dataset_dict.json", b"{"),
    "data_no_state": lambda folder: (folder / "train" / "state.json").unlink(),
    "data_no_split": _write("dataset_dict.json", b'{"splits": ["train", "gone"]}'),
    "data_types": _write("dataset_dict.json", b'{"splits": 7}'),
}
