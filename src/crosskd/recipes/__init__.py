"""Recipes: settings of a run as YAML, for ``crosskd distill --config``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def recipe_path(name: str) -> Path:
    """The YAML file of a recipe that crosskd ships, such as ``"demo_qed"``."""
    return Path(str(resources.files("crosskd.recipes").joinpath(f"{name}.yaml")))
