"""Tasks: the built-in ones are whole, and a user's file is read or refused with its mistake named."""

from __future__ import annotations

import pytest

from crosskd.errors import UsageError
from crosskd.text.tasks import TASKS, Shot, Task, load_task

OWN = """
system: Name the colour.
format: |
  Title: {title}
  Text: {context}
  Colour:
shots:
  - {context: The sky is blue., answer: blue}
  - {title: Grass, context: Grass is green., answer: green}
metrics: [exact_match]
"""


def write(folder, text):
    path = folder / "colours.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_five_tasks_have_their_formats():
    assert set(TASKS) == {"qa", "qa_generative", "qa_medical", "summary_dialogue", "summary"}
    question = "Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:"
    assert TASKS["qa"].request_format == TASKS["qa_generative"].request_format == question
    assert TASKS["qa_medical"].request_format == "Medical paper: {context}\nQuestion: {question}\nAnswer:"
    assert TASKS["summary_dialogue"].request_format == "Dialogue: {context}\nSummary:"
    assert [TASKS[name].answer_cue for name in ("qa", "summary")] == ["Answer:", "Summary:"]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("qed", "qa"), ("QED", "qa"), ("fairytaleqa", "qa_generative"), ("FairytaleQA", "qa_generative"),
        ("DialogSum", "summary_dialogue"), ("pubmedqa", "qa_medical"), ("QA", "qa"),
    ],
)  # fmt: skip
def test_tasks_are_found_by_the_names_of_their_data_sets(name, task):
    assert load_task(name) is TASKS[task]


@pytest.mark.parametrize("name", TASKS)
def test_shots_fill_every_field_and_keep_the_limit_of_the_system_text(name):
    task = TASKS[name]
    limits = {"qa": 5, "qa_generative": 15}
    assert len(task.shots) >= 3
    for shot in task.shots:
        assert shot.answer.strip() == shot.answer != ""
        assert "\n" not in shot.answer  # generation is cut at the first line break
        assert all(getattr(shot, field) for field in task.fields)
        assert len(shot.answer.split()) <= limits.get(name, 40)
        if name == "qa":
            assert shot.answer in shot.context


def test_a_line_without_any_of_its_fields_is_left_out():
    task = TASKS["qa"]
    fields = {"context": "Ann lives in {Rome}.", "question": "Where is Ann?", "title": None, "id": "7"}
    assert task.request(fields) == "Context: Ann lives in {Rome}.\nQuestion: Where is Ann?\nAnswer:"
    assert task.request({**fields, "title": "Ann"}).startswith("Title: Ann\nContext: ")


def test_own_task_from_yaml(tmp_path):
    task = load_task(write(tmp_path, OWN))
    assert (task.name, task.system, task.metrics) == ("colours", "Name the colour.", ("exact_match",))
    assert (task.answer_cue, task.fields) == ("Colour:", ("title", "context"))
    assert task.shots == (Shot("The sky is blue.", "blue"), Shot("Grass is green.", "green", title="Grass"))
    assert task.request({"context": "Snow is white."}) == "Text: Snow is white.\nColour:"


def test_metrics_and_shots_may_be_left_out_and_braces_escaped(tmp_path):
    task = load_task(write(tmp_path, "name: mine\nsystem: ''\nformat: '{{\"text\": {context}}} Answer {{x}}:'"))
    assert (task.name, task.shots, task.metrics) == ("mine", (), ("f1", "exact_match", "rouge"))
    assert task.request({"context": "a"}) == '{"text": a} Answer {x}:'
    assert task.request({"context": "a"}).endswith(task.answer_cue)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("system:", "sytem:", r"unknown key 'sytem': did you mean 'system'\?"),
        ("system: Name the colour.", "", "has no 'system'"),
        ("{context}", "{contxt}", r"unknown placeholder \{contxt\}: did you mean 'context'\?"),
        ("{context}", "{context", "format: .*braces"),
        ("{context}", "{context.x}", "unknown placeholder"),
        ("  Colour:", "  {question}", "ends in a placeholder"),
        ("answer: blue", "anwser: blue", r"shot 1: unknown key 'anwser': did you mean 'answer'\?"),
        (", answer: blue", "", "shot 1 has no 'answer'"),
        ("context: Grass is green., ", "", "shot 2 has no 'context'"),
        ("answer: blue", "answer: [blue]", "shot 1: answer: got 'list'; expected text"),
        ("[exact_match]", "[exact_mach]", r"unknown metric 'exact_mach': did you mean 'exact_match'\?"),
        ("[exact_match]", "f1", "metrics: got 'str'; expected a list"),
        ("[exact_match]", "[]", "metrics: got 'none'; expected at least one of f1"),
        ("answer: blue", "answer: yes", r"shot 1: answer: got 'bool'; expected text \(put it in quotes\)"),
        ("metrics: [", "metrics: ]", r"line \d+ is not YAML"),
    ],
)
def test_mistakes_in_a_task_file_are_named(tmp_path, old, new, message):
    assert old in OWN
    text = OWN.replace(old, new)
    with pytest.raises(UsageError, match=message):
        load_task(write(tmp_path, text))


def test_other_files_and_names_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"unknown task 'summry'.*did you mean 'summary'\?"):
        load_task("summry")
    with pytest.raises(UsageError, match=r"unknown task 'FairyTale-QA'.*did you mean 'fairytaleqa'\?"):
        load_task("FairyTale-QA")
    with pytest.raises(UsageError, match=r"there is no task file .*none\.yaml"):
        load_task(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="got 'list'; expected a mapping"):
        load_task(write(tmp_path, "- a"))
    with pytest.raises(UsageError, match="has no placeholder"):
        load_task(write(tmp_path, "{system: a, format: 'Answer:'}"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UsageError, match="is not a text file"):
        load_task(tmp_path / "folder.yaml")
    (tmp_path / "colours.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a text file"):
        load_task(tmp_path / "colours.yaml")


def test_a_cue_that_does_not_end_the_format_is_refused():
    with pytest.raises(UsageError, match="answer_cue"):
        Task("t", "", "{context}\nAnswer:", answer_cue="Reply:")
