"""Sources: what a user names as data, and the splits that are found there."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetsError

from crosskd.data.quiet import without_progress_bars
from crosskd.data.readers import READERS, Row, json_parts, kind_of, reader_of
from crosskd.errors import UsageError, did_you_mean, first_line

Splits = dict[str, Callable[[], Iterator[Row]]]

SAMPLES = ("qed", "fairytaleqa")
_SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "eval": "validation", "test": "test",
}  # fmt: skip
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")
_SHARD = re.compile(r"[-_.]\d+([-_.]of[-_.]\d+)?$")
_ABOUT_DATA = ("dataset_info.json", "dataset_infos.json", "state.json", "prepare_summary.json")


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
        UsageError: There is nothing of that name, it is of a kind that cannot be read, or a split has a name that no
            folder can have.
    """
    splits = _open(str(source), split)
    for name in splits:
        check_split_name(name, str(source))
    return splits


def check_split_name(name: str, source: str) -> None:
    """Refuse names of splits that lead out of a folder: a split is written into a folder of its name.

    Raises:
        UsageError: The name begins with a dot, or has a slash or a control character in it.
    """
    if not name or name.startswith(".") or re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise UsageError(f"{source}: split {name!r}", expected="a name without slashes and leading dots")


def _open(name: str, split: str | None) -> Splits:
    if name.startswith("sample:"):
        return _open_folder(sample_folder(name))
    path = Path(name)
    if path.is_dir():
        return _open_folder(path)
    if path.exists():
        return _open_file(path, split)
    if kind_of(path) in READERS or not _HUB_ID.fullmatch(name):
        raise UsageError(f"there is no file or folder {name}")
    return _open_hub(name)


def split_name(name: str) -> str:
    """The name that a split has here: ``validation`` for ``dev``, ``val``, ...; others keep theirs."""
    return _SPLIT_NAMES.get(name.lower(), name)


def sample_folder(name: str) -> Path:
    """The folder of a sample that comes with the package, such as ``sample:qed``."""
    sample = name.removeprefix("sample:")
    if sample not in SAMPLES:
        raise UsageError(f"unknown sample {sample!r}", fix=did_you_mean(sample, SAMPLES))
    return Path(str(resources.files("crosskd.data") / "samples" / sample))


def _open_file(path: Path, split: str | None) -> Splits:
    read = reader_of(path)
    if read is None:
        kinds = ", ".join(READERS)
        raise UsageError(f"{path} is of an unknown kind", got=path.suffix or "no ending", expected=f"one of {kinds}")
    lone = _split_of_file(path) or split or "train"
    if kind_of(path) == ".json":
        return _in_order({lone if name is None else split_name(name): rows for name, rows in json_parts(path).items()})
    return {lone: lambda: read(path)}


def _open_folder(folder: Path) -> Splits:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _open_saved(folder)
    entries = sorted(folder.iterdir())
    files = [path for path in entries if path.is_file() and reader_of(path) and path.name not in _ABOUT_DATA]
    named: dict[str, list[Path]] = {}
    for path in files:
        name = _split_of_file(path)
        if name:
            named.setdefault(name, []).append(path)
    if named:
        return _in_order({name: _chain(paths) for name, paths in named.items()})
    if len(files) == 1:
        return _open_file(files[0], None)
    found = ", ".join(path.name for path in files) or "no data files"
    folders = ", ".join(path.name for path in entries if path.is_dir())
    raise UsageError(
        f"folder {folder}",
        got=found,
        expected="files named after splits, such as train.jsonl",
        fix=f"or give one of the folders in it: {folders}" if folders else None,
    )


def _chain(paths: Sequence[Path]) -> Callable[[], Iterator[Row]]:
    return lambda: itertools.chain.from_iterable(READERS[kind_of(path)](path) for path in paths)


def _open_saved(folder: Path) -> Splits:
    try:
        with without_progress_bars():
            saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever a damaged file makes of the libraries that read it
        raise UsageError(f"{folder} cannot be read as a saved data set: {first_line(error)}") from error
    return _of_datasets(saved if isinstance(saved, datasets.DatasetDict) else {"train": saved})


def _open_hub(name: str) -> Splits:
    repository, _, configuration = name.partition(":")
    try:
        with without_progress_bars():
            loaded = datasets.load_dataset(repository, configuration or None)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        configurations = re.search(r"available configs: \[(.*?)\]", str(error))
        if configurations:
            raise UsageError(
                f"{name} has several configurations",
                expected=f"one of {configurations[1]}",
                fix=f"choose with {repository}:<configuration>",
            ) from error
        raise UsageError(
            f"{name} is neither a file nor a hub data set within reach: {first_line(error)}",
            fix="check the spelling and the connection, or give a file",
        ) from error
    return _of_datasets(loaded)


def _of_datasets(splits: Mapping[Any, Any]) -> Splits:
    return _in_order({split_name(str(name)): _rows_of(dataset) for name, dataset in splits.items()})


def _rows_of(dataset: datasets.Dataset) -> Callable[[], Iterator[Row]]:
    """Rows as they are stored, so that images and sounds beside the texts are not decoded; classes by their names."""
    classes = {
        column: feature for column, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)
    }

    def rows() -> Iterator[Row]:
        for table in dataset.with_format("arrow").iter(batch_size=1000):
            for row in table.to_pylist():  # pyright: ignore[reportAttributeAccessIssue]
                for column, feature in classes.items():
                    row[column] = None if row[column] in (None, -1) else feature.int2str(row[column])
                yield row

    return rows


def _split_of_file(path: Path) -> str | None:
    """The split that the first or the last part of a file's name tells: ``train-00000-of-00002``, ``qed-dev``."""
    stem = path.name.lower().removesuffix(".gz").removesuffix(kind_of(path))
    parts = re.split(r"[-_.]", _SHARD.sub("", stem))
    return _SPLIT_NAMES.get(parts[0]) or _SPLIT_NAMES.get(parts[-1])


def _in_order(splits: Splits) -> Splits:
    order = ("train", "validation", "test")
    names = sorted(splits, key=lambda name: (order.index(name) if name in order else len(order), name))
    return {name: splits[name] for name in names}
