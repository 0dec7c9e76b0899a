"""Whether a folder holds prepared examples: known without the library that reads them, which is slow to import."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from crosskd.errors import UsageError, did_you_mean, first_line
from crosskd.files import read_json

SPLITS_FILE = "dataset_dict.json"


def check_is_prepared(folder: Path) -> None:
    """Refuse a folder that ``crosskd prepare`` did not write.

    Raises:
        UsageError: It is missing or holds something else.
    """
    if not folder.exists():
        raise UsageError(f"there is no folder {folder}", expected="examples written by `crosskd prepare`")
    if not (folder / SPLITS_FILE).exists():
        raise UsageError(f"{folder} does not hold prepared examples", fix="run `crosskd prepare` on it first")


def check_split(name: str, splits: Iterable[str], split: str) -> None:
    """Refuse a split that the data ``name`` do not have.

    Raises:
        UsageError: Names the nearest split.
    """
    if split not in (known := list(splits)):
        raise UsageError(f"{name} has no split {split!r}", fix=did_you_mean(split, known))


def check_prepared_split(folder: Path, split: str) -> Sequence[str]:
    """Read just so much of a split that a missing or truncated file is seen.

    Args:
        folder: What ``crosskd prepare`` wrote.
        split: ``train``, ``validation``, ...

    Returns:
        Its columns.

    Raises:
        UsageError: There is no such folder or split, or its files are not whole.
    """
    check_is_prepared(folder)
    splits = read_json(folder / SPLITS_FILE).get("splits")
    if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
        raise UsageError(f"{folder / SPLITS_FILE}", got=f"splits {splits!r}", expected="a list of names")
    check_split(str(folder), splits, split)
    state = folder / split / "state.json"
    if not state.is_file():
        raise UsageError(f"{folder} cannot be read: there is no {state}", fix="run `crosskd prepare` again")
    files = read_json(state).get("_data_files") or []
    columns = [_columns(folder / split / str(file.get("filename"))) for file in files]
    return columns[0] if columns else []


def _columns(path: Path) -> Sequence[str]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            stream.read_all()  # of a mapped file it reads where things lie, not what they are
            return list(stream.schema.names)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}", fix="run `crosskd prepare` again") from error
