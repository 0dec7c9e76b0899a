"""The whole way of a recipe, verb by verb."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from crosskd.cli.steps import Step, run_step
from crosskd.errors import UsageError
from crosskd.evaluation.results import Evaluation
from crosskd.files import check_output_folder, prepare_output_folder, read_json, write_json, write_text
from crosskd.recipes.grid import METRICS, Recipe
from crosskd.recipes.text import command_line, recipe_text

RECIPE_FILE = "recipe.yaml"
BEGUN_FILE = "run.json"


@dataclass(frozen=True)
class RunSettings:
    """How a recipe is run.

    Attributes:
        data: What `crosskd prepare` reads.
        folder: Where everything is written.
        tiny: Whether tiny random models stand in for the recipe's.
        split: The split to score.
        limit: Most examples of each split; None keeps all.
        max_steps: Most training steps; None trains as long as the recipe says.
        max_new_tokens: Longest answer; None leaves it to the verbs.
        loading: Flags that loading a model may need: ``--trust_remote_code``, ``--allow_pickle``.
    """

    data: str
    folder: Path
    tiny: bool = False
    split: str = "validation"
    limit: int | None = None
    max_steps: int | None = None
    max_new_tokens: int | None = None
    loading: tuple[str, ...] = ()

    @property
    def scores(self) -> Path:
        """The folder of the scores."""
        return self.folder / "scores" / self.split

    def record(self, recipe: Recipe) -> dict[str, Any]:
        """What must be the same when a run is resumed."""
        names = ("data", "tiny", "limit", "max_steps", "max_new_tokens")
        return {"recipe": recipe.name, **{name: getattr(self, name) for name in names}}

    @property
    def is_shortened(self) -> bool:
        """Whether the scores cannot be compared with published ones."""
        return self.tiny or self.limit is not None or self.max_steps is not None or self.max_new_tokens is not None


def run_recipe(recipe: Recipe, settings: RunSettings, *, resume: bool = False, overwrite: bool = False) -> Table:
    """Run the verbs that are not finished, and put the score beside the published one.

    Raises:
        UsageError: A verb failed, the data have no such split to score, or the folder holds another run.
    """
    check_output_folder(settings.folder, overwrite=overwrite, resume=resume)
    if not overwrite:
        _check_begun(recipe, settings)
    folder = prepare_output_folder(settings.folder, overwrite=overwrite, resume=resume)
    write_json(folder / BEGUN_FILE, settings.record(recipe))
    write_text(folder / RECIPE_FILE, recipe_text(recipe))
    prepare, *others = recipe_steps(recipe, settings)
    run_step(prepare, resume=resume)
    _check_split(settings)
    for step in others:
        run_step(step, resume=resume)
    return _scores(recipe, settings)


def recipe_steps(recipe: Recipe, settings: RunSettings) -> list[Step]:
    """The command lines of a recipe, in order."""
    data, answered, student = (settings.folder / name for name in ("data", "answered", "student"))
    about, loading = recipe.about, list(settings.loading)
    longest = _given(max_new_tokens=settings.max_new_tokens)
    prepare = {**about["prepare"], "data": settings.data, "output": data, **_given(limit=settings.limit)}
    steps = [Step("prepare the data", command_line("prepare", prepare), data / "prepare_summary.json")]
    if "answer" in about:
        answer = {**about["answer"], "data": data, "output": answered, **longest}
        if settings.tiny:
            from crosskd.models.tiny import tiny_stand_in  # transformers

            answer["teacher"] = tiny_stand_in(answer["teacher"], "teacher")
        steps.append(Step("let the teacher answer", command_line("answer", answer) + loading, None, resumable=True))
    distill = {"config": settings.folder / RECIPE_FILE, "data": answered if "answer" in about else data}
    distill |= {"output_dir": student, **_given(max_steps=settings.max_steps)}
    distill |= {"model_override": "tiny"} if settings.tiny else {}
    words = command_line("distill", distill) + loading
    steps.append(Step("train the student", words, student / "trainer_state.json", resumable=True))
    evaluate = {**about["evaluate"], "model": student, "data": data, "split": settings.split}
    evaluate |= {"output": settings.scores, "name": recipe.name, **longest}
    return [
        *steps,
        Step("score the student", command_line("evaluate", evaluate), settings.scores / "scores.json", resumable=True),
    ]


def _check_begun(recipe: Recipe, settings: RunSettings) -> None:
    """A folder that is resumed must hold the same run, or old results would pass for new ones."""
    file = settings.folder / BEGUN_FILE
    if not file.exists():
        return
    begun, now = read_json(file), settings.record(recipe)
    for name, value in now.items():
        if begun.get(name) != value:
            raise UsageError(
                f"--resume {settings.folder}",
                got=f"a run whose {name} is {begun.get(name)!r}, not {value!r}",
                fix="give the same flags, --overwrite, or another folder",
            )


def _given(**flags: Any) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _check_split(settings: RunSettings) -> None:
    """Say that there is nothing to score before hours of training."""
    from crosskd.data.prepare import load_splits  # datasets

    splits = [str(name) for name in load_splits(settings.folder / "data")]
    if settings.split not in splits:
        raise UsageError(
            "split to score",
            got=settings.split,
            expected=f"one that the data have: {', '.join(splits)}",
            fix=f"give --resume and --split {'validation' if 'validation' in splits else splits[-1]}",
        )


def _scores(recipe: Recipe, settings: RunSettings) -> Table:
    metric = METRICS[recipe.metric]
    evaluation = Evaluation.load(settings.scores)
    about: Mapping[str, Any] = recipe.about
    table = Table("", metric, title=recipe.name, title_justify="left")
    table.add_row("this run", f"{100 * evaluation.scores[recipe.metric]:.2f}")
    table.add_row("published", f"{recipe.score:.2f}")
    table.add_row("published, teacher", f"{about['teacher']['published_score']:.2f}")
    if "untouched_student" in about:
        table.add_row("published, untouched student", f"{about['untouched_student']['published_score']:.2f}")
    return table
