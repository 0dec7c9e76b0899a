"""Methods by name: a new one is a file in this folder that ends in a registered class."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from crosskd.errors import UsageError, did_you_mean
from crosskd.losses.base import DistillationMethod

METHODS: dict[str, type[DistillationMethod]] = {}

M = TypeVar("M", bound=type[DistillationMethod])


def register(method: M) -> M:
    """Class decorator: file ``method`` under its ``name``. It must be a dataclass, so that its settings are known."""
    if method.name in METHODS and METHODS[method.name] is not method:
        raise UsageError("method name", got=method.name, expected="a name that no other method has")
    METHODS[method.name] = method
    return method


def create_method(name: str, **settings: object) -> DistillationMethod:
    """Build a method from its name and its hyperparameters.

    Args:
        name: A key of ``METHODS``: ``sft``, ``seqkd``, ``uld``, ``mined``, ``multilevel_ot`` or one of your own.
        settings: Fields of the method's dataclass; what is left out keeps its default.

    Raises:
        UsageError: An unknown name, an unknown setting (both with a suggestion), or a value out of range.

    Example:
        >>> create_method("multilevel_ot", top_k=20, matching="greedy")
    """
    if name not in METHODS:
        raise UsageError("method", got=name, expected="a known method", fix=did_you_mean(name, METHODS))
    method = METHODS[name]
    known = setting_names(method)
    for setting in settings:
        if setting not in known:
            fix = did_you_mean(setting, known) if known else f"{name} has no settings"
            raise UsageError(f"setting of method {name}", got=setting, expected="a known setting", fix=fix)
    return method(**settings)


def configured_method(config: Any) -> DistillationMethod:
    """The method that a configuration names, with those of its attributes that the method declares.

    Args:
        config: Has ``method``, any settings, and ``method_settings``: a mapping of further ones, or None.

    Raises:
        UsageError: As for `create_method`.
    """
    known = setting_names(METHODS[config.method]) if config.method in METHODS else []
    shared = {name: getattr(config, name) for name in known if hasattr(config, name)}
    further: dict[str, object] = config.method_settings or {}
    return create_method(config.method, **{**shared, **further})


def setting_names(method: type[DistillationMethod]) -> list[str]:
    """Hyperparameters of a method, by name, in the order in which its dataclass lists them."""
    return [field.name for field in fields(method) if field.init] if is_dataclass(method) else []
