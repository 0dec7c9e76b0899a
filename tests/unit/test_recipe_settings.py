"""All 130 recipes: their methods' settings are the published ones, and they score as the published script scores."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from crosskd.cli.distill import DistillArguments
from crosskd.cli.evaluate import EvaluateArguments
from crosskd.cli.parsing import VerbParser
from crosskd.evaluation.metrics import ROUGE_TYPES
from crosskd.evaluation.scoring import score
from crosskd.losses.base import DistillationMethod
from crosskd.losses.mined import MinED
from crosskd.losses.multilevel_ot import MultiLevelOT
from crosskd.losses.registry import METHODS
from crosskd.losses.uld import ULD
from crosskd.published.benchmark_scores import published_scores
from crosskd.recipes.grid import Recipe, find_recipe, recipes
from crosskd.recipes.text import command_line, recipe_text
from crosskd.text.tasks import load_task
from crosskd.training.config import DistillationConfig

# Wan et al.'s code: ten entries, nearest entry however far, warped tokens, renormalized. ULD's Eq. 7: all entries.
MINED = {"top_entries": 10, "edit_distance_cutoff": 1.0, "alignment": "dtw", "remainder": "dropped"}
ULD_PUBLISHED = {"top_entries": 0}
# Section 5 of arXiv 2412.14528 where no table varies it
MULTILEVEL_OT: dict[str, Any] = {
    "top_k": 50, "matching": "fast", "formulation": "paper", "ranking": "sequence", "plan_gradient": "unrolled",
    "absolute_difference_weight": 1.0, "sequential_log_weight": 0.1, "sequential_log_temperature": 1.0,
    "sinkhorn_weight": 0.1, "sinkhorn_temperature": 2.0, "sinkhorn_epsilon": 0.1, "sinkhorn_iterations": 20,
    "sinkhorn_level": "sequence",
}  # fmt: skip
VARIED: dict[str, dict[str, Any]] = {
    "ad-sequence": {"top_k": 0, "sequential_log_weight": 0.0, "sinkhorn_weight": 0.0},
    "ad-truncated": {"sequential_log_weight": 0.0, "sinkhorn_weight": 0.0},
    "ad-sl": {"sinkhorn_weight": 0.0},
    "ad-sd": {"sequential_log_weight": 0.0},
    "sl-sd": {"absolute_difference_weight": 0.0},
    "sinkhorn-token": {"sinkhorn_level": "token"},
    **{f"iterations-{n}": {"sinkhorn_iterations": n} for n in (5, 10, 20, 50, 100)},
    **{f"columns-{k}": {"top_k": k} for k in (5, 20, 50, 100, 1000)},
}
METHOD_OF = {"ce": "sft", "raw_text": "seqkd", "ad-token": "uld", "sft": "sft", "seqkd": "seqkd", "uld": "uld"}
METHOD_OF |= {"mined": "mined"}

Trained = dict[str, tuple[DistillationConfig, DistillationMethod]]


def trained(recipe: Recipe) -> tuple[DistillationConfig, DistillationMethod]:
    """What `crosskd distill` makes of the recipe's file."""
    flags = yaml.safe_load(recipe_text(recipe))
    words = [f"--{n}={json.dumps(v) if isinstance(v, dict) else v}" for n, v in flags.items() if n != "about"]
    _, config = VerbParser("distill", "", [DistillArguments, DistillationConfig]).parse(words)
    return config, config.create_method()


@pytest.fixture(scope="module")
def made() -> Trained:
    return {name: trained(recipe) for name, recipe in recipes().items()}


def differences(method: DistillationMethod, expected: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(method, name) for name, value in expected.items() if getattr(method, name) != value}


def test_every_method_has_its_published_settings(
    made: dict[str, tuple[DistillationConfig, DistillationMethod]],
) -> None:
    counts = dict.fromkeys(METHODS, 0)
    for name, (config, method) in made.items():
        setting = recipes()[name].setting
        assert method.name == METHOD_OF.get(setting, "multilevel_ot"), name
        counts[method.name] += 1
        expected: dict[str, Any] = {}
        if isinstance(method, MinED):
            expected = MINED
        elif isinstance(method, ULD):
            expected = ULD_PUBLISHED
        elif isinstance(method, MultiLevelOT):
            expected = MULTILEVEL_OT | VARIED.get(setting, {})
        assert differences(method, expected) == {}, name
        assert config.distillation_weight == 0.15
    assert sum(counts.values()) == 130
    assert min(counts.values()) > 0


def test_a_weight_that_is_not_known_is_said_to_be_so() -> None:
    for recipe in recipes().values():
        notes = " ".join(recipe.about["notes"])
        assert ("is not known to us; MultiLevelOT's is taken" in notes) == (recipe.flags["method"] in ("uld", "mined"))


def test_every_recipe_scores_as_the_published_script() -> None:
    parser = VerbParser("evaluate", "", [EvaluateArguments])
    for recipe in recipes().values():
        (flags,) = parser.parse(command_line("evaluate", recipe.about["evaluate"])[1:])
        assert (flags.rouge_variant, flags.rouge_aggregate) == ("plain", "best"), recipe.name
        # the script takes the first of QED's answers, FairytaleQA's one, and of DialogSum's summaries the best
        assert flags.references == ("all" if recipe.data == "dialogsum" else "first"), recipe.name
        assert (flags.number_few_shot, flags.max_new_tokens) == (0, 150), recipe.name
        assert (flags.prompt_style, flags.bert_score_model) == ("auto", None), recipe.name
        # the score that stands beside the published one is among the task's
        task = load_task(flags.task)
        assert any(recipe.metric.startswith(metric) for metric in task.metrics), recipe.name


@pytest.mark.parametrize("data", ["qed", "fairytaleqa", "dialogsum"])
def test_the_same_answers_get_the_same_number(data: str) -> None:
    recipe = find_recipe(f"table1/opt-350m/{data}/multilevel_ot")
    (flags,) = VerbParser("evaluate", "", [EvaluateArguments]).parse(
        command_line("evaluate", recipe.about["evaluate"])[1:]
    )
    predictions = ["He walked to the station. She waits.", "the dogs", "Rome, in Italy", ""]
    references = [["She waited. He walks to a station."], ["dog", "A dog!"], ["in Rome"], ["Oslo"]]
    found = score(predictions, references, rouge_aggregate=flags.rouge_aggregate, rouge_variant=flags.rouge_variant)
    published = published_scores(predictions, references, {})
    assert round(100 * found[recipe.metric], 2) == published[recipe.metric]
    assert {name: round(100 * found[name], 2) for name in ROUGE_TYPES} == {
        name: published[name] for name in ROUGE_TYPES
    }
