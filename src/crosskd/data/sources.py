"""Sources: what a user names as data, and the splits that are found there."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError

from crosskd.data.quiet import without_progress_bars
from crosskd.data.readers import READERS, Row, first_line, json_splits
from crosskd.errors import UsageError, did_you_mean

Splits = dict[str, Callable[[], Iterator[Row]]]

SAMPLES = ("qed", "fairytaleqa")
_SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "eval": "validation", "test": "test",
}  # fmt: skip
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")


def open_source(source: str | Path, split: str | None = None) -> Splits:
    """Find the splits of a source; rows are read when a split is called.

    Args:
        source: A file (JSON, JSON Lines, CSV, TSV, Parquet, Arrow), a folder (written by ``save_to_disk``, or with
            files named after splits), ``sample:<name>``, or a hub id (``owner/name`` or
            ``owner/name:configuration``).
        split: Name for the rows of a lone file that is not named after a split; ``train`` where it is None.

    Returns:
        Split name to a function that begins reading it. ``dev``, ``valid``, ``val`` and ``eval`` count as
        ``validation``.

    Raises:
        UsageError: There is nothing of that name, or it is of a kind that cannot be read.
    """
    name = str(source)
    if name.startswith("sample:"):
        return _open_folder(sample_folder(name))
    path = Path(name)
    if path.is_dir():
        return _open_folder(path)
    if path.exists():
        return _open_file(path, split)
    if path.suffix.lower() in READERS or not _HUB_ID.fullmatch(name):
        raise UsageError(f"there is no file or folder {name}")
    return _open_hub(name)


def sample_folder(name: str) -> Path:
    """The folder of a sample that comes with the package, such as ``sample:qed``."""
    sample = name.removeprefix("sample:")
    if sample not in SAMPLES:
        raise UsageError(f"unknown sample {sample!r}", fix=did_you_mean(sample, SAMPLES))
    return Path(str(resources.files("crosskd.data") / "samples" / sample))


def _open_file(path: Path, split: str | None) -> Splits:
    read = READERS.get(path.suffix.lower())
    if read is None:
        kinds = ", ".join(READERS)
        raise UsageError(f"{path} is of an unknown kind", got=path.suffix or "no ending", expected=f"one of {kinds}")
    if path.suffix.lower() == ".json":
        parts = json_splits(path)
        if parts is not None:
            return {_split_name(name) or name: _iterator(rows) for name, rows in parts.items()}
    return {_split_name(path.stem) or split or "train": lambda: read(path)}


def _open_folder(folder: Path) -> Splits:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _open_saved(folder)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in READERS and path.is_file())
    named: dict[str, list[Path]] = {}
    for path in files:
        name = _split_name(path.stem)
        if name:
            named.setdefault(name, []).append(path)
    if named:
        return {name: _chain(named[name]) for name in _in_order(named)}
    if len(files) == 1:
        return _open_file(files[0], None)
    found = ", ".join(path.name for path in files) or "no data files"
    raise UsageError(f"folder {folder}", got=found, expected="files named after splits, such as train.jsonl")


def _chain(paths: Sequence[Path]) -> Callable[[], Iterator[Row]]:
    return lambda: itertools.chain.from_iterable(READERS[path.suffix.lower()](path) for path in paths)


def _open_saved(folder: Path) -> Splits:
    try:
        with without_progress_bars():
            saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise UsageError(f"{folder} cannot be read as a saved data set: {first_line(error)}") from error
    return _of_datasets(saved if isinstance(saved, datasets.DatasetDict) else {"train": saved})


def _open_hub(name: str) -> Splits:
    repository, _, configuration = name.partition(":")
    try:
        with without_progress_bars():
            loaded = datasets.load_dataset(repository, configuration or None)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise UsageError(
            f"{name} is neither a file nor a hub data set within reach: {first_line(error)}",
            fix="check the spelling and the connection, or give a file",
        ) from error
    return _of_datasets(loaded)


def _of_datasets(splits: Mapping[Any, Iterable[Any]]) -> Splits:
    names = {_split_name(str(name)) or str(name): dataset for name, dataset in splits.items()}
    return {name: _iterator(names[name]) for name in _in_order(names)}


def _iterator(rows: Iterable[Any]) -> Callable[[], Iterator[Row]]:
    return lambda: iter(rows)


def _split_name(stem: str) -> str | None:
    return _SPLIT_NAMES.get(re.split(r"[-_.]", stem.lower(), maxsplit=1)[0])


def _in_order(names: Iterable[str]) -> list[str]:
    order = ("train", "validation", "test")
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))
