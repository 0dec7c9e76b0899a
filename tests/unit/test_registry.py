"""Methods by name."""

from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
import torch

from crosskd.errors import UsageError
from crosskd.losses import METHODS, DistillationMethod, create_method, register
from crosskd.losses.registry import setting_names


def test_every_method_of_the_design_is_there_and_builds_with_its_defaults():
    assert {"sft", "seqkd", "uld", "mined", "multilevel_ot"} <= METHODS.keys()
    for name, method in METHODS.items():
        assert method.name == name
        assert method.__doc__
    assert not create_method("sft").needs_teacher
    assert create_method("multilevel_ot").needs_teacher


def test_settings_reach_the_method():
    method = create_method("multilevel_ot", top_k=20, matching="exact")
    assert (method.top_k, method.matching) == (20, "exact")
    assert setting_names(METHODS["multilevel_ot"])[:3] == ["top_k", "matching", "formulation"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("multilevel-ot", {}, "did you mean 'multilevel_ot'"),
        ("multilevel_ot", {"topk": 3}, "did you mean 'top_k'"),
        ("sft", {"top_k": 3}, "sft has no settings"),
    ],
)
def test_mistyped_names_get_a_suggestion(name, settings, message):
    with pytest.raises(UsageError, match=message):
        create_method(name, **settings)


def test_a_new_method_is_known_by_its_name(monkeypatch):
    monkeypatch.setattr("crosskd.losses.registry.METHODS", dict(METHODS))

    @register
    @dataclass(frozen=True)
    class Nothing(DistillationMethod):
        name: ClassVar[str] = "nothing"
        weight: float = 2.0

        def request(self):
            return None

        def terms(self, student, targets):
            return {"cross_entropy": torch.zeros(()), "distillation": torch.zeros(())}

    assert create_method("nothing", weight=3.0) == Nothing(weight=3.0)
    assert [field.name for field in fields(Nothing)] == ["weight"]
    with pytest.raises(UsageError, match="no other method"):
        register(type("Other", (Nothing,), {}))
