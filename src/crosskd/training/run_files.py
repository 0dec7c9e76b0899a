"""The files by which a run is known: what it is, where it came from, whether it is finished."""

from __future__ import annotations

from pathlib import Path

RESOLVED = "resolved_config.yaml"
PROVENANCE = "provenance.json"
STATE = "trainer_state.json"
"""What the trainer remembers: of each checkpoint, and, written last, of a finished run."""


def has_begun(folder: Path) -> bool:
    """Whether a run has written into a folder what it is."""
    return (folder / RESOLVED).is_file()


def is_finished(folder: Path) -> bool:
    """Whether a run has written its student: ``trainer_state.json`` is the last file that it writes."""
    return (folder / STATE).is_file()
