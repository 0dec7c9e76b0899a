"""Users' loader files: Python files with ``get_split(dataset_config, tokenizer, split)``."""

from __future__ import annotations

import importlib.util
import logging
import traceback
from collections.abc import Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from transformers import PreTrainedTokenizerBase

from crosskd.errors import UsageError, first_line

logger = logging.getLogger(__name__)


class LoaderFile:
    """A loader file, run once. It is the user's own code and is run as such, which the log says.

    Args:
        source: The file, or a folder with a ``load.py``.

    Raises:
        UsageError: There is no such file, it fails, or it has no ``get_split``.
    """

    def __init__(self, source: str) -> None:
        path = Path(source).expanduser()
        self.path = path if path.suffix == ".py" else path / "load.py"
        if not self.path.is_file():
            raise UsageError(f"--dataset.file {source}: no such file", expected="a Python file with get_split")
        logger.warning("%s is run: it is Python code, and can do whatever you can do", self.path)
        self._get_split = self._find(self._module())

    def split(
        self, name: str, tokenizer: PreTrainedTokenizerBase, config: SimpleNamespace
    ) -> Sequence[Mapping[str, Any]]:
        """The rows of a split, as the file makes them.

        Args:
            name: ``"train"`` or ``"validation"``.
            tokenizer: The student's, or the teacher's.
            config: What the file sees as ``dataset_config``.

        Raises:
            UsageError: ``get_split`` fails, or returns no sequence of rows with ``input_ids`` and ``labels``.
        """
        where = f"{self.path}: get_split for split {name!r}"
        try:
            rows = self._get_split(config, tokenizer, name)
        except Exception as error:
            raise self._failure(where, error) from error
        if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
            raise UsageError(f"{where} returned a {type(rows).__name__}", expected="a data set of rows")
        if len(rows) == 0:
            raise UsageError(f"{where} returned no rows")
        _check_row(rows, where)
        return rows

    def _module(self) -> ModuleType:
        loader = SourceFileLoader("crosskd_loader_file", str(self.path))
        spec = importlib.util.spec_from_loader(loader.name, loader)
        assert spec is not None  # made from a loader
        # not among sys.modules: `datasets` then tells by its code, not its name, whether a cached `map` is this one's
        module = importlib.util.module_from_spec(spec)
        try:
            loader.exec_module(module)
        except Exception as error:
            raise self._failure(str(self.path), error) from error
        return module

    def _find(self, module: ModuleType) -> Any:
        found = getattr(module, "get_split", None)
        if not callable(found):
            raise UsageError(
                f"{self.path} has no function get_split", expected="get_split(dataset_config, tokenizer, split)"
            )
        return found

    def _failure(self, where: str, error: Exception) -> UsageError:
        text = first_line(error)
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self.path)
        ]
        place = f" in line {lines[-1]}" if lines else ""
        return UsageError(f"{where} failed{place}: {type(error).__name__}: {text}", fix=self._hint(error))

    def _hint(self, error: Exception) -> str | None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.split(".")[0]
            for folder in self.path.resolve().parents:
                if (folder / package).is_dir() or (folder / f"{package}.py").is_file():
                    return f"run with PYTHONPATH={folder}"
            return f"install {package}, or put the folder that holds it on PYTHONPATH"
        if isinstance(error, AttributeError) and isinstance(getattr(error, "obj", None), SimpleNamespace):
            return f"give --dataset.{error.name}"
        if isinstance(error, AttributeError) and getattr(error, "obj", ...) is None:
            return "an attribute of dataset_config may be missing: give --dataset.NAME (such as --dataset.generated_by)"
        return None


def _check_row(rows: Sequence[Mapping[str, Any]], where: str) -> None:
    try:
        row = rows[0]
    except Exception as error:
        raise UsageError(f"{where} returned a {type(rows).__name__} without a row 0", expected="a data set") from error
    if not isinstance(row, Mapping):
        raise UsageError(f"{where} returned rows that are {type(row).__name__}", expected="mappings of columns")
    missing = [name for name in ("input_ids", "labels") if name not in row]
    if missing:
        raise UsageError(
            f"{where} returned rows without {' and '.join(missing)}",
            got=", ".join(map(str, row)) or "no columns",
            expected="input_ids, attention_mask and labels",
        )
