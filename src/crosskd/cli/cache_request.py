"""What several methods need of a teacher together, as the flags of ``crosskd cache`` name them."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

from crosskd.errors import UsageError
from crosskd.losses import METHODS, TargetRequest, create_method
from crosskd.losses.registry import setting_names


def merged_request(arguments: Any) -> TargetRequest:
    """What all the methods named need together."""
    requests: list[TargetRequest] = []
    for name in _names(arguments):
        request = create_method(name, **_settings_of(name, arguments)).request()
        if request is None:
            raise UsageError("--methods", got=name, expected="methods that ask the teacher", fix="leave it out")
        requests.append(request)
    merged = reduce(or_, requests)
    return merged | TargetRequest(answer_tokens=True) if aligns(arguments) else merged


def aligns(arguments: Any) -> bool:
    """Whether a method pairs the tokens of both models: it needs the teacher's answer tokens and their texts."""
    return any(METHODS[name].needs_alignment for name in _names(arguments))


def _names(arguments: Any) -> list[str]:
    return [word.strip() for word in arguments.methods.split(",")]


def _settings_of(name: str, arguments: Any) -> dict[str, Any]:
    known = setting_names(METHODS[name]) if name in METHODS else []
    return {setting: getattr(arguments, setting) for setting in known if hasattr(arguments, setting)}
