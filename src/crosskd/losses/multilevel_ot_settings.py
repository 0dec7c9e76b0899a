"""Hyperparameters of MultiLevelOT, with the paper's values as defaults, and what they may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from jaxtyping import Float
from torch import Tensor

from crosskd.errors import UsageError, did_you_mean
from crosskd.losses.levels import PlanGradient
from crosskd.transport.matching import MATCHINGS, Matching

Formulation = Literal["paper", "authors"]
Level = Literal["sequence", "token"]

AUTHORS_ITERATIONS = 10


class Parts(NamedTuple):
    """The three terms before their weights; None for one that is switched off."""

    absolute_difference: Float[Tensor, ""] | None
    sequential_log: Float[Tensor, ""] | None
    sinkhorn: Float[Tensor, ""] | None


@dataclass(frozen=True)
class MultiLevelOTSettings:
    """Hyperparameters of MultiLevelOT (section 4.1 of arXiv 2412.14528 for the values).

    Attributes:
        top_k: k, columns kept of each sequence (Eq. 12); None or 0 for no truncation (an ablation, slow).
        matching: ``fast``, ``greedy`` or ``exact`` (Eq. 11), see ``crosskd.transport.match_columns``. With
            ``formulation="authors"``, ``greedy`` is the published ``--f 2``, which is not the paper's greedy.
        formulation: ``paper`` or ``authors``.
        absolute_difference_weight: Weight of HAD, 1 in the paper; 0 switches it off.
        sequential_log_weight: beta; 0 switches SL off.
        sinkhorn_weight: gamma; 0 switches SD off.
        sequential_log_temperature: tau_SL; the published code knows only 1.
        sinkhorn_temperature: tau_SD.
        sinkhorn_epsilon: lambda, in units of a probability distance.
        sinkhorn_iterations: N. The published code has 10 written into it: ``authors`` runs 10, and accepts 10 or 20.
        sinkhorn_tolerance: Largest deviation of a row's mass from 1 at which a sequence pair takes no further round.
            0, the default, runs all N rounds, as the paper does.
        plan_gradient: ``unrolled``: through all iterations, as in the paper; ``envelope``: the plan is held constant.
        ranking: ``sequence`` (Eq. 10), or ``token``: each token sorted by itself, as in ULD (ablation, Table 3).
        sinkhorn_level: ``sequence``, or ``token``: transport between the columns of each token (ablation, Table 4).
        chunk_size: Tokens of a batch whose exponentials exist at once; None chooses, smaller bounds memory.
    """

    top_k: int | None = 50
    # Settings come from YAML and the command line: any text is let in, so that the error can suggest the right one.
    matching: Matching | str = "fast"
    formulation: Formulation | str = "paper"
    absolute_difference_weight: float = 1.0
    sequential_log_weight: float = 0.1
    sinkhorn_weight: float = 0.1
    sequential_log_temperature: float = 1.0
    sinkhorn_temperature: float = 2.0
    sinkhorn_epsilon: float = 0.1
    sinkhorn_iterations: int = 20
    sinkhorn_tolerance: float = 0.0
    plan_gradient: PlanGradient | str = "unrolled"
    ranking: Level | str = "sequence"
    sinkhorn_level: Level | str = "sequence"
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        _check_choice("matching", self.matching, MATCHINGS)
        _check_choice("formulation", self.formulation, get_args(Formulation))
        _check_choice("plan_gradient", self.plan_gradient, get_args(PlanGradient))
        _check_choice("ranking", self.ranking, get_args(Level))
        _check_choice("sinkhorn_level", self.sinkhorn_level, get_args(Level))
        for name in ("sequential_log_temperature", "sinkhorn_temperature", "sinkhorn_epsilon"):
            if not getattr(self, name) > 0:
                raise UsageError(name, got=getattr(self, name), expected="a positive number")
        for name in ("absolute_difference_weight", "sequential_log_weight", "sinkhorn_weight", "sinkhorn_tolerance"):
            if not getattr(self, name) >= 0:
                raise UsageError(name, got=getattr(self, name), expected="a number of at least 0")
        for name, least in (("top_k", 0), ("sinkhorn_iterations", 1), ("chunk_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(name, got=value, expected=f"an integer of at least {least}")
        self._check_combination()

    def _check_combination(self) -> None:
        if self.ranking == "token" and self.matching != "fast":
            raise UsageError(
                "matching",
                got=self.matching,
                expected="'fast' with ranking='token'",
                fix="sorting is the best matching",
            )
        if self.sinkhorn_level == "token" and not self.top_k:
            raise UsageError("top_k", got=self.top_k, expected="a truncation with sinkhorn_level='token'")
        if self.formulation == "paper":
            return
        published = {
            "sequential_log_temperature": (1.0,),
            "sinkhorn_iterations": (AUTHORS_ITERATIONS, 20),
            "sinkhorn_tolerance": (0.0,),
            "plan_gradient": ("unrolled",),
            "ranking": ("sequence",),
            "sinkhorn_level": ("sequence",),
            "matching": ("fast", "greedy"),
        }
        for name, values in published.items():
            if getattr(self, name) not in values:
                expected = " or ".join(map(str, values)) + " with formulation='authors', as in the published code"
                raise UsageError(name, got=getattr(self, name), expected=expected)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        expected = "one of " + ", ".join(choices)
        raise UsageError(name, got=value, expected=expected, fix=did_you_mean(str(value), choices))
