"""Files from strangers: nothing in them is executed, nothing is written outside, and what is quoted is escaped."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from crosskd.cli.main import main
from helpers_bad_input import LINES, TASK, prediction, scores, snapshot
from helpers_data import ROWS

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>`|&{{7*7}}"
FEW = ["--number_few_shot", "0"]


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (self.marker, "executed")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that is there once something was executed."""
    return tmp_path / "executed"


@pytest.fixture
def trap(marker: Path) -> bytes:
    """A pickle that writes the marker, which it is seen to do."""
    content = pickle.dumps(Trap(marker))
    pickle.loads(content)
    assert marker.read_text() == "executed"
    marker.unlink()
    return content


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here" / "inner"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def models(here: Path, student_folder: Path, teacher_folder: Path, data_folder: Path) -> Path:
    for name, source in (("student", student_folder), ("teacher", teacher_folder), ("data", data_folder)):
        shutil.copytree(source, here / name)
    return here


def result(words: list[str]) -> object:
    """The exit code, or the error that a library had; neither matters here."""
    try:
        return main(words)
    except Exception as error:
        return error


VERBS_WITH_MODELS = {
    "inspect": ["inspect", "teacher", "student", "--data", "data", *FEW],
    "answer": ["answer", "--teacher", "teacher", "--data", "data", "--output", "out", "--max_new_tokens", "2", *FEW],
    "cache": ["cache", "--teacher", "teacher", "--data", "data", "--output", "out", "--methods", "uld", *FEW],
    "distill": [
        "distill", "--student", "student", "--teacher", "teacher", "--data", "data", "--output_dir", "out",
        "--method", "uld", "--max_steps", "1", *FEW,
    ],
    "evaluate": ["evaluate", "--model", "student", "--data", "data", "--output", "out", "--max_new_tokens", "2"],
}  # fmt: skip
PICKLES = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "data.pkl", "vocab.pkl")
DATA = ("rows.pkl", "rows.pt", "rows.npy", "rows.arrow", "rows.parquet", "rows.json", "rows.csv")
VERBS = ("prepare", "inspect", "answer", "cache", "distill", "evaluate", "compare", "report", "env", "demo")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- pickles


@pytest.mark.parametrize("verb", VERBS_WITH_MODELS)
def test_pickles_beside_safetensors_are_not_read(verb: str, models: Path, trap: bytes, marker: Path) -> None:
    for folder in ("student", "teacher", "data", "data/train"):
        for name in PICKLES:
            (models / folder / name).write_bytes(trap)
    assert main(VERBS_WITH_MODELS[verb]) == 0
    assert not marker.exists()


@pytest.mark.parametrize("verb", [verb for verb in VERBS_WITH_MODELS if verb != "inspect"])
@pytest.mark.parametrize("allowed", [False, True])
def test_pickled_weights_need_a_flag_and_execute_nothing_with_it(
    verb: str, allowed: bool, models: Path, trap: bytes, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("student", "teacher"):
        (models / folder / "model.safetensors").unlink()
        (models / folder / "pytorch_model.bin").write_bytes(trap)
    before = snapshot(models)
    assert main([*VERBS_WITH_MODELS[verb], *(["--allow_pickle"] if allowed else [])]) == 2
    assert allowed or "--allow_pickle" in capsys.readouterr().err
    assert not marker.exists()
    assert snapshot(models) == before


def test_a_pickled_adapter_executes_nothing(models: Path, trap: bytes, marker: Path) -> None:
    adapter = models / "adapter"
    adapter.mkdir()
    base = str(models / "student")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": 2}
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": ["q_proj"]}))
    (adapter / "adapter_model.bin").write_bytes(trap)
    for more in ([], ["--allow_pickle"]):
        words = ["evaluate", "--model", "adapter", "--data", "data", "--output", "out", *more]
        assert result(words) != 0
        assert not marker.exists()
        assert not (models / "out").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_checkpoint_from_a_stranger_executes_nothing(name: str, models: Path, trap: bytes, marker: Path) -> None:
    words = ["distill", "--student", "student", "--data", "data", "--output_dir", "out", "--method", "sft"]
    words += ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2"]
    assert main(words) == 0
    shutil.rmtree(models / "out" / "checkpoint-4")
    for left in ("trainer_state.json", "model.safetensors"):  # as a kill after step 2 leaves it
        (models / "out" / left).unlink(missing_ok=True)
    (models / "out" / "checkpoint-2" / name).write_bytes(trap)
    result([*words, "--resume"])
    assert not marker.exists()


def test_a_cache_from_a_stranger_executes_nothing(models: Path, trap: bytes, marker: Path) -> None:
    assert main(["cache", *VERBS_WITH_MODELS["cache"][1:6], "cache", *VERBS_WITH_MODELS["cache"][7:]]) == 0
    for name in ("targets-00000.pt", "targets-00001.bin", "identity.pkl"):
        (models / "cache" / name).write_bytes(trap)
    words = ["distill", "--student", "student", "--data", "data", "--output_dir", "out", "--method", "uld"]
    assert main([*words, "--teacher_cache", "cache", "--max_steps", "1", *FEW]) == 0
    (models / "cache" / "targets-00000.safetensors").write_bytes(trap)
    assert main([*words, "--teacher_cache", "cache", "--max_steps", "1", "--overwrite", *FEW]) == 2
    assert not marker.exists()


@pytest.mark.parametrize("name", DATA)
def test_data_that_are_a_pickle_execute_nothing(name: str, here: Path, trap: bytes, marker: Path) -> None:
    (here / name).write_bytes(trap)
    assert main(["prepare", "--data", name, "--output", "out"]) == 2
    assert not marker.exists()
    assert names_in(here) == [name]


def test_results_that_are_a_pickle_execute_nothing(here: Path, trap: bytes, marker: Path) -> None:
    for name in ("scores.json", "predictions.jsonl", "metrics.jsonl", "provenance.json", "results.pkl"):
        for folder in ("one", "other"):
            (here / folder).mkdir(exist_ok=True)
            (here / folder / name).write_bytes(trap)
    assert main(["report", "one", "other", "--output", "page.html"]) == 2
    assert main(["compare", "one", "other"]) == 2
    assert not marker.exists()


# --- code beside models, templates, YAML


@pytest.mark.parametrize("verb", VERBS_WITH_MODELS)
def test_code_beside_a_model_is_not_run(verb: str, models: Path, marker: Path) -> None:
    for folder in ("student", "teacher"):
        place = models / folder
        (place / "evil.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).write_text('executed')\n")
        for name, classes in (
            ("config.json", {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}),
            ("tokenizer_config.json", {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}),
        ):
            record = json.loads((place / name).read_text())
            (place / name).write_text(json.dumps({**record, "auto_map": classes}))
    result(VERBS_WITH_MODELS[verb])
    assert not marker.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{{{ cycler.__init__.__globals__.os.system('touch {}') }}}}",
        "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{% include '{}' %}}",
        "{{{{ messages.__init__.__globals__['__builtins__']['open']('{}', 'w') }}}}",
    ],
)
def test_a_chat_template_can_execute_nothing(
    template: str, models: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (models / "student" / "chat_template.jinja").write_text(template.format(marker))
    assert main([*VERBS_WITH_MODELS["evaluate"], "--prompt_style", "chat"]) == 2
    assert "template" in capsys.readouterr().err
    assert not marker.exists()


TAGS = [
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/new:os.system ['touch {}']",
    "!!python/name:os.system {}",
    "!!python/module:os {}",
]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("verb", VERBS)
def test_yaml_makes_no_objects(
    verb: str, tag: str, here: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "flags.yaml").write_text(f"seed: {tag.format(marker)}\n")
    assert main([verb, "--config", "flags.yaml"]) == 2
    assert "could not determine a constructor" in capsys.readouterr().err
    assert not marker.exists()


@pytest.mark.parametrize("tag", TAGS)
def test_tasks_and_recipes_make_no_objects(
    tag: str, here: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "rows.jsonl").write_text(LINES)
    (here / "task.yaml").write_text(TASK + f"name: {tag.format(marker)}\n")
    assert main(["prepare", "--data", "rows.jsonl", "--task", "task.yaml", "--output", "out"]) == 2
    assert main(["recipes", "list", "--config", "task.yaml"]) == 2
    assert capsys.readouterr().err.count("could not determine a constructor") == 2
    assert not marker.exists()


# --- paths that climb


CLIMBING = ["../../outside", "..", "/tmp/crosskd-outside", "a/../../../outside", "..\\outside"]


@pytest.mark.parametrize("name", CLIMBING)
def test_names_of_splits_do_not_lead_out(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "rows.json").write_text(json.dumps({"train": ROWS, name: ROWS}))
    before = snapshot(here.parent.parent)
    assert main(["prepare", "--data", "rows.json", "--output", "out"]) == 2
    assert "expected a name without slashes" in capsys.readouterr().err
    (here / "rows.jsonl").write_text(LINES)
    assert main(["prepare", "--data", "rows.jsonl", "--split", name, "--output", "out"]) == 2
    (here / "rows.jsonl").unlink()
    assert snapshot(here.parent.parent) == before
    assert not Path("/tmp/crosskd-outside").exists()


@pytest.mark.parametrize("name", ["../outside", ".."])
@pytest.mark.parametrize("form", ["arrow", "jsonl"])
def test_splits_of_saved_examples_do_not_lead_out(name: str, form: str, models: Path) -> None:
    shutil.copytree(models / "data" / "train", models / "outside")
    (models / "data" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", name]}))
    before = snapshot(models.parent)
    assert main([*VERBS_WITH_MODELS["answer"], "--format", form]) == 2
    assert main(["prepare", "--data", "data", "--output", "out"]) == 2
    assert snapshot(models.parent) == before


@pytest.mark.parametrize("name", CLIMBING)
def test_ids_and_names_do_not_lead_out(name: str, models: Path) -> None:
    rows = [{**row, "id": name, "title": name, "teacher_answer": name} for row in ROWS]
    (models / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (models / "task.yaml").write_text(TASK + f"name: '{name}'\n")
    outside = {path for path in snapshot(models.parent.parent) if not path.startswith(str(models))}
    task = ["--task", "task.yaml"]
    assert main(["prepare", "--data", "rows.jsonl", "--output", "out/data", *task]) == 0
    data = ["--data", "out/data", "--split", "train", *task, *FEW]
    assert main(["answer", "--teacher", "teacher", *data, "--output", "out/answers", "--max_new_tokens", "2"]) == 0
    words = ["evaluate", "--model", "student", *data, "--max_new_tokens", "2"]
    for run in ("one", "other"):
        assert main([*words, "--output", f"out/{run}", "--name", f"{name} {run}"]) == 0
    assert main(["report", "out/one", "out/other", "--output", "out/page.html", "--baseline", f"{name} one"]) == 0
    assert main(["compare", "out/one", "out/other", "--examples", "2", "--output", "out/table.tex"]) == 0
    assert {path for path in snapshot(models.parent.parent) if not path.startswith(str(models))} == outside
    assert {path.name for path in models.iterdir()} == {"student", "teacher", "data", "rows.jsonl", "task.yaml", "out"}
    assert not Path("/tmp/crosskd-outside").exists()


@pytest.mark.parametrize("name", CLIMBING)
def test_recipes_and_splits_to_score_do_not_lead_out(name: str, here: Path) -> None:
    assert main(["recipes", "show", name]) == 2
    assert main(["recipes", "copy", name, "--output", "out.yaml"]) == 2
    assert main(["recipes", "run", name, "--output", "out"]) == 2
    words = ["recipes", "run", "table1/opt-350m/qed/sft", "--data", "sample:qed", "--model_override", "tiny"]
    assert main([*words, "--limit", "2", "--output", "out", "--split", name]) == 2
    assert not (here / "out" / "scores").exists()
    assert names_in(here) == ["out"]
    assert names_in(here.parent) == ["inner"]


# --- markup in texts


class Page(HTMLParser):
    """The tags of a page and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


def test_markup_in_any_field_stays_text(here: Path) -> None:
    metrics = json.dumps({"step": 1, EVIL: 2.0, "loss": 1.0}) + "\n" + json.dumps({"step": 2, EVIL: 1.0, "loss": 0.5})
    for folder, name in (("one", EVIL + " untouched"), ("other", EVIL)):
        place = here / f"<b>{folder}"
        place.mkdir()
        row = {"id": EVIL, "question": EVIL, "answers": [EVIL, EVIL + "2"], "prediction": EVIL + folder}
        (place / "predictions.jsonl").write_text(prediction(**row))
        encoder = {"model": EVIL, "layer": 1, "version": EVIL}
        values = {"f1": 1.0, "exact_match": 0.0, "rougeLsum": 0.5, "bert_score_f1": 0.5, EVIL: 1.0}
        settings = {"model": EVIL, "bert_score": encoder, "rouge_aggregate": EVIL, "finished": EVIL}
        record = scores(name=name, task=EVIL, scores=values, settings=settings, crosskd_version=EVIL)
        (place / "scores.json").write_text(record)
        (place / "metrics.jsonl").write_text(metrics)
        (place / "provenance.json").write_text(json.dumps({EVIL: {EVIL: EVIL}, "command": EVIL, "list": [EVIL]}))
    assert main(["report", ".", "--output", "page.html", "--title", EVIL]) == 0
    text = (here / "page.html").read_text()
    page = Page(text)
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "link", "a", "form", "base"}
    assert not {name for name in page.attributes if name.startswith("on") or name == "src"}
    assert "{{7*7}}" in text  # no template of ours read it
    assert "default-src 'none'" in text
    for ending in ("md", "tex", "csv"):
        assert main(["report", ".", "--output", f"table.{ending}"]) == 0
    assert "<script" not in (here / "table.md").read_text()
    words = ["compare", "<b>one", "<b>other", "--metrics", "f1"]
    assert main([*words, "--output", "differences.md"]) == 0
    assert "<script" not in (here / "differences.md").read_text()


def test_a_line_break_in_a_name_does_not_end_the_comment_of_a_table(here: Path) -> None:
    (here / "run").mkdir()
    (here / "run" / "scores.json").write_text(scores(task="a\n\\input{/etc/passwd}", name="m\n\\input{x}"))
    assert main(["report", "run", "--output", "table.tex"]) == 0
    lines = (here / "table.tex").read_text().splitlines()
    assert not [line for line in lines if line.startswith("\\input")]
    assert [line for line in lines if "etc/passwd" in line] == [lines[0]]
    assert lines[0].startswith("% ")


def test_markup_in_a_model_card_stays_text(models: Path) -> None:
    odd = "it`s <script>alert(1)<"
    shutil.copytree(models / "data", models / odd)
    (models / "task.yaml").write_text(TASK + f"name: {json.dumps(EVIL)}\n")
    words = ["distill", "--student", "student", f"--data={odd}", "--output_dir", "run", "--method", "sft"]
    assert main([*words, "--max_steps", "1", "--task", "task.yaml"]) == 0
    words = ["evaluate", "--model", "run", f"--data={odd}", "--output", "scores", "--max_new_tokens", "2"]
    assert main([*words, "--task", "task.yaml", "--name", EVIL]) == 0
    card = (models / "run" / "README.md").read_text()
    outside_of_code = "".join(card.split("`")[::2])
    assert "<script" not in outside_of_code
    assert "<img" not in outside_of_code
    assert f"{4} examples of it`s &lt;script&gt;" in card
