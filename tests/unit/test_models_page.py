"""docs/models.md tells what is so: its table is compared with what each family's model does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crosskd.evaluation.generation import generate_answers
from crosskd.losses.targets import TargetRequest
from crosskd.models.answer_logits import forward_arguments
from crosskd.models.load import LoadedModel
from crosskd.teacher.capture import capture_targets
from helpers_families import EXAMPLES, FAMILIES, builder_of, tiny, tokenized

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def measured(name: str) -> tuple[str, ...]:
    """A line of the table in docs/models.md, from what the family's model does."""
    family, loaded, builder = FAMILIES[name], tiny(name), builder_of(name)
    accepted = forward_arguments(loaded.model)
    shared = builder.shared_prefix_ids
    prompts = [builder.build(example).ids for example in EXAMPLES]
    options: dict[str, Any] = {"shared_prefix": shared, "batch_size": 2}
    generation = reuses(
        loaded, shared, lambda: generate_answers(loaded.model, loaded.tokenizer, prompts, max_new_tokens=1, **options)
    )
    if family.encoder_decoder:
        capture = "no teacher"
    else:
        examples = tokenized(name, append_eos=False)
        capture = reuses(
            loaded, shared, lambda: capture_targets(loaded.model, examples, TargetRequest(top_k=5), **options)
        )
    return (
        family.models,
        f"`{type(loaded.model).__name__}`",
        f"tiny random; {family.ran} for real" if family.ran else "tiny random",
        yes("position_ids" in accepted),
        yes("logits_to_keep" in accepted),
        capture,
        generation,
        family.system,
    )


def yes(found: bool) -> str:
    return "yes" if found else "no"


def reuses(loaded: LoadedModel, shared: list[int], run: Callable[[], object]) -> str:
    """Whether a run computes the shared tokens once and the last batch without them."""
    widths: list[tuple[int, int]] = []

    def note(_: object, __: object, inputs: dict[str, Any]) -> None:
        ids = inputs.get("input_ids")
        widths.append(tuple((inputs["decoder_input_ids"] if ids is None else ids).shape))

    watch = loaded.model.register_forward_pre_hook(note, with_kwargs=True)
    run()
    watch.remove()
    return yes((1, len(shared)) in widths and widths[-1][1] < len(shared))


def documented() -> list[tuple[str, ...]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").split("\n") if line.startswith("| ")]
    rows = [tuple(cell.strip() for cell in line.strip("| ").split(" | ")) for line in lines]
    first = next(index for index, row in enumerate(rows) if row[0] == "Family")
    return rows[first + 2 : first + 2 + len(FAMILIES)]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_of_models_tells_what_they_do(name: str) -> None:
    row = measured(name)
    found = next((line for line in documented() if line[0] == row[0]), None)
    assert found == row, "| " + " | ".join(row) + " |"


def test_the_table_of_models_has_a_line_for_each_family_and_no_more() -> None:
    assert [row[0] for row in documented()] == [family.models for family in FAMILIES.values()]
