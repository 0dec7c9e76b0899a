"""A run goes on only as what it was: settings and contents are compared with what it wrote down when it began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from crosskd.errors import UsageError, list_differences
from crosskd.files import read_json
from crosskd.training.config import DistillationConfig
from crosskd.training.participants import Participants
from crosskd.training.records import all_settings, run_contents
from crosskd.training.run_files import PROVENANCE, RESOLVED

NEUTRAL = frozenset({
    "output_dir", "report_to", "run_name", "project", "trackio_space_id", "disable_tqdm", "log_level",
    "log_level_replica", "log_on_each_node", "logging_dir", "save_total_limit", "save_on_each_node",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision",
    "skip_memory_metrics", "ddp_timeout", "ddp_backend", "torch_empty_cache_steps", "resume_from_checkpoint",
    "on_nonfinite", "trust_remote_code", "allow_pickle",
})  # fmt: skip
"""Settings that a resumed run may change: they decide neither weights nor metrics."""


def check_settings(folder: Path, config: DistillationConfig, sources: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under other settings than it began with.

    Args:
        folder: The run's.
        config: The settings now.
        sources: Where models and data come from now.

    Raises:
        UsageError: Names every setting that differs, with both values.
    """
    defaults = type(config).default_settings()
    begun = {**defaults, **_read(folder / RESOLVED)}
    now = {**defaults, **yaml.safe_load(yaml.safe_dump(all_settings(config, sources)))}
    names = sorted((begun.keys() | now.keys()) - NEUTRAL)
    _refuse(folder, begun, now, [name for name in names if not _same(name, begun.get(name), now.get(name))])


def check_contents(
    folder: Path, config: DistillationConfig, participants: Participants, examples: Dataset | None
) -> None:
    """Refuse to go on where data or models hold something else than when the run began, under the same names.

    Raises:
        UsageError: Names what differs.
    """
    if not (folder / PROVENANCE).is_file():
        return
    begun, now = read_json(folder / PROVENANCE), run_contents(config, participants, examples)
    _refuse(folder, begun, now, [name for name in now if name in begun and begun[name] != now[name]])


def _refuse(folder: Path, begun: Mapping[str, Any], now: Mapping[str, Any], differing: Sequence[str]) -> None:
    if differing:
        raise UsageError(
            f"--resume {folder}", got=f"another run ({list_differences(begun, now, differing)})",
            expected="the settings, models and data it began with",
            fix=f"repeat them (--config {folder / RESOLVED} --resume), or choose another --output_dir",
        )  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read", got=str(error)) from error
    return value if isinstance(value, dict) else {}


def _same(name: str, old: Any, new: Any) -> bool:
    """Whether two values of a setting mean the same; a path may be written in two ways."""
    if old == new:
        return True
    paths = name in ("student", "teacher", "data", "teacher_cache", "task") and old is not None and new is not None
    return paths and Path(str(old)).exists() and Path(str(old)).resolve() == Path(str(new)).resolve()
