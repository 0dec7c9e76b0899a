"""The report: one file, everything escaped, nothing fetched; tables for terminal and papers."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from crosskd.errors import UsageError
from crosskd.evaluation.results import Evaluation, Prediction
from crosskd.report.build import build_report, build_tables
from crosskd.report.collect import TrainingLog, collect
from crosskd.report.curves import loss_curves
from crosskd.report.predictions import prediction_cards
from crosskd.report.tables import csv_table, latex_table, markdown_table, results_table

EVIL = "\"'><script>alert(1)</script> & so on"


def evaluation(name: str, right: int, *, total: int = 30, task: str = "qa", finished: str = "", start: int = 0):
    rows = [
        Prediction(
            f"q{index + start}", f"question {index}?", [f"answer {index}"], f"answer {index}" if index < right else "no"
        )
        for index in range(total)
    ]
    share = right / total
    scores = {"f1": share, "exact_match": share, "rougeLsum": share}
    return Evaluation(name, task, scores, rows, total, 12.4, settings={"finished": finished} if finished else {})


@pytest.fixture
def runs(tmp_path) -> Path:
    root = tmp_path / "runs"
    evaluation("the teacher", 25, finished="2026-01-01T00:00").save(root / "scores" / "a_teacher")
    evaluation("student, untouched", 5, finished="2026-01-02T00:00").save(root / "scores" / "z_untouched")
    evaluation("student, SFT", 20, finished="2026-01-03T00:00").save(root / "scores" / "b_sft")
    for name, terms in (("sft", {}), ("ot", {"sinkhorn": 2.0})):
        (root / name).mkdir()
        lines = [
            {"step": step, "loss": 3.0 / step, "distillation": 0.0, "learning_rate": 1.0, **terms} for step in (1, 2)
        ]
        text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 2, "train_loss": 1.0}])
        (root / name / "metrics.jsonl").write_text(text + '{"step": 3, "lo')
        record = {"command": f"crosskd distill --name {EVIL}", "machine": {"cores": 2}, "versions": {"torch": "2.6"}}
        (root / name / "provenance.json").write_text(json.dumps(record))
    return root


class Page(HTMLParser):
    """Tags with their attributes, ids, and the visible text; checks that tags are closed in order."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data


def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_page_holds_all_parts(runs, tmp_path):
    path = build_report([runs], tmp_path / "out" / "report.html", title="My report")
    assert path == tmp_path / "out" / "report.html"
    shown = words(page(path).text)
    assert "My report" in shown
    table = shown[shown.index("Results") : shown.index("Difference to")]
    assert table.index("the teacher") < table.index("student, untouched") < table.index("student, SFT")
    assert "83.33" in table
    assert "16.67" in table
    assert "30 examples" in table
    assert "baseline" in table
    assert "Loss curves" in shown
    assert shown.count("question ") == 10
    assert "machine, cores" in shown


def test_differences_are_paired_and_signed(runs, tmp_path):
    evaluation("student, other data", 5, start=100, finished="2026-01-04").save(runs / "scores" / "other")
    evaluation("student, broken", 0, finished="2026-01-05").save(runs / "scores" / "broken")
    shown = words(page(build_report([runs], tmp_path / "report.html")).text)
    part = shown[shown.index("Difference to student, untouched") :]
    assert "student, SFT +50.00 +33.33 to +66.67" in part
    assert "student, broken −16.67" in part
    assert "10,000 resamples of the 30 examples" in part
    assert shown.count("Difference to") == 1  # other data: a table of its own, nothing to compare with


def test_the_baseline_can_be_named(runs, tmp_path):
    shown = words(page(build_report([runs], tmp_path / "report.html", baseline="the teacher")).text)
    assert "Difference to the teacher" in shown
    with pytest.raises(UsageError, match="did you mean 'the teacher'"):
        build_report([runs], tmp_path / "report.html", baseline="the teachr")


def test_an_evaluation_without_predictions_has_no_difference(runs, tmp_path):
    (runs / "scores" / "b_sft" / "predictions.jsonl").unlink()
    shown = words(page(build_report([runs], tmp_path / "report.html")).text)
    assert "student, SFT" in shown
    assert "student, SFT +50.00" not in shown


def test_same_ids_with_other_references_are_named_as_unpaired(runs, tmp_path):
    other = evaluation("student, odd", 5)
    rows = [Prediction(each.id, each.question, ["something else"], "no") for each in other.predictions]
    Evaluation("student, odd", "qa", other.scores, rows, 30, 1.0).save(runs / "scores" / "odd")
    shown = words(page(build_report([runs], tmp_path / "report.html")).text)
    assert "so without a difference: student, odd." in shown


def with_encoder(each: Evaluation, encoder: str, score: float) -> Evaluation:
    rows = [dataclasses.replace(row, scores={"bert_score_f1": score}) for row in each.predictions]
    settings = {**each.settings, "bert_score": {"model": encoder, "layer": 7, "version": "0.3.13"}}
    scores = {**each.scores, "bert_score_f1": score}
    return dataclasses.replace(each, predictions=rows, scores=scores, settings=settings)


def test_bert_score_has_a_column_where_any_evaluation_has_it(runs, tmp_path):
    assert "BERTScore" not in page(build_report([runs], tmp_path / "report.html")).text
    for name, score in (("z_untouched", 0.5), ("b_sft", 0.625)):
        with_encoder(Evaluation.load(runs / "scores" / name), "my/encoder", score).save(runs / "scores" / name)
    shown = words(page(build_report([runs], tmp_path / "report.html")).text)
    assert "ROUGE-LsumBERTScoreExamples" in shown
    assert "the teacher83.3383.3383.33–30" in shown
    assert "BERTScore: my/encoder, layer 7, bert-score 0.3.13." in shown
    assert "+12.50 +12.50 to +12.50" in shown


def test_scores_of_different_encoders_are_not_compared(runs, tmp_path):
    for name, encoder in (("z_untouched", "one"), ("b_sft", "two")):
        with_encoder(Evaluation.load(runs / "scores" / name), encoder, 0.99).save(runs / "scores" / name)
    text = build_report([runs], tmp_path / "report.html").read_text()
    shown = words(Page(text).text)
    assert "BERTScore is not comparable: one, layer 7, bert-score 0.3.13 (student, untouched); two" in shown
    assert "99.00" in shown
    assert 'class="best">99.00' not in text
    assert re.search(r"student, SFT \+50.00 \S+ to \S+ \+50.00 \S+ to \S+ \+50.00 \S+ to \S+ –", shown)


def test_the_tasks_most_telling_score_comes_first(runs, tmp_path):
    for folder in (runs / "scores").iterdir():
        each = Evaluation.load(folder)
        dataclasses.replace(each, settings={**each.settings, "metrics": ["rouge", "f1"]}).save(folder)
    shown = words(page(build_report([runs], tmp_path / "report.html")).text)
    assert "ModelROUGE-LsumF1Examples" in shown
    assert "its ROUGE-Lsum on that example" in shown


def test_tables_alone(runs, tmp_path):
    evaluation("summarizer", 3, task="summary").save(runs / "scores" / "other")
    text = build_tables([runs], tmp_path / "results.md").read_text()
    assert text.count("| model | F1 |") == 2
    assert "Task qa, 30 examples." in text
    assert "Task summary, 30 examples." in text
    assert build_tables([runs], tmp_path / "results.tex").read_text().count(r"\midrule") == 2
    rows = list(csv.DictReader(build_tables([runs], tmp_path / "results.csv").read_text().splitlines()))
    assert [row["task"] for row in rows].count("summary") == 1
    assert len(rows) == 4
    with pytest.raises(UsageError, match=r"expected .md, .tex, .csv"):
        build_tables([runs], tmp_path / "results.docx")
    with pytest.raises(UsageError, match="there is no evaluation below"):
        build_tables([runs / "ot"], tmp_path / "none.csv")


def test_everything_quoted_is_escaped(runs, tmp_path):
    evil = Evaluation(EVIL, EVIL, {"f1": 0.5}, [Prediction(EVIL, EVIL, [EVIL, EVIL], EVIL)], 1, 1.0)
    evil.save(runs / "evil")
    (runs / "<b>run").mkdir()
    (runs / "<b>run" / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, EVIL: 2.0}) + "\n")
    found = page(build_report([runs], tmp_path / "report.html", title=EVIL))
    assert not {"script", "b>run"} & {tag for tag, _ in found.tags}
    assert [tag for tag, _ in found.tags].count("b") == len([1 for tag, _ in found.tags if tag == "figcaption"])
    assert found.text.count(EVIL) > 6
    assert "<b>run" in found.text


def test_nothing_is_fetched_and_nothing_runs(runs, tmp_path):
    path = build_report([runs], tmp_path / "report.html")
    found = page(path)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in found.tags}
    for _, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")]
        links = [attributes.get(name) for name in ("src", "href", "xlink:href")]
        assert all(link.startswith("#") for link in links if link)
    text = path.read_text()
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_folders_give_the_same_page(runs, tmp_path):
    first = build_report([runs], tmp_path / "one.html").read_text()
    assert first == build_report([runs, runs / "scores"], tmp_path / "two.html").read_text()


def test_a_page_without_evaluations_or_without_training(runs, tmp_path):
    shown = page(build_report([runs / "ot"], tmp_path / "training.html")).text
    assert "Loss curves" in shown
    assert "Results" not in shown
    shown = page(build_report([runs / "scores"], tmp_path / "scores.html")).text
    assert "Results" in shown
    assert "Loss curves" not in shown


def test_collecting(runs):
    found = collect([runs])
    assert [log.name for log in found.logs] == ["ot", "sft"]
    assert found.logs[0].terms == {"loss": ([1.0, 2.0], [3.0, 1.5]), "sinkhorn": ([1.0, 2.0], [2.0, 2.0])}
    assert set(found.logs[1].terms) == {"loss"}  # distillation is 0 throughout, the rest is no loss
    assert [name for name, _ in found.provenance] == ["ot", "sft"]
    assert [log.name for log in collect([runs / "ot"]).logs] == ["ot"]


def test_numbers_that_are_none_are_left_out(tmp_path):
    rows = '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.5}\n{"step": 3, "loss": "x"}\n{"loss": 9.0}\n'
    (tmp_path / "metrics.jsonl").write_text(rows)
    assert collect([tmp_path]).logs[0].terms == {"loss": ([2.0], [1.5])}


def test_nothing_to_report(tmp_path):
    with pytest.raises(UsageError, match="nothing to report in"):
        build_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(UsageError, match="there is no folder"):
        build_report([tmp_path / "absent"], tmp_path / "report.html")
    (tmp_path / "scores.json").write_text("{")
    with pytest.raises(UsageError, match=r"scores\.json is not JSON"):
        build_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_output_must_be_a_file(runs, tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        build_report([runs], tmp_path)


def test_curves_have_one_line_a_run_in_its_colour():
    steps = [float(step) for step in range(20)]
    logs = [TrainingLog(name, {"loss": (steps, steps)}) for name in ("one", "two")]
    logs.append(TrainingLog("three", {"sinkhorn": (steps, steps), "own_term": (steps, steps)}))
    curves = loss_curves(logs)
    assert [curve.title for curve in curves] == ["Loss", "Sinkhorn distance", "Own term"]
    assert [set(re.findall(r"series-\d", curve.svg)) for curve in curves] == [
        {"series-1", "series-2"},
        {"series-3"},
        {"series-3"},
    ]
    assert ">optimizer step</text>" in curves[0].svg
    assert "#0000" not in curves[0].svg
    assert not re.search(r"<svg[^>]* width=", curves[0].svg)


def test_long_runs_are_thinned_to_means():
    steps = [float(step) for step in range(100_000)]
    curve = loss_curves([TrainingLog("long", {"loss": (steps, [1.0, 3.0] * 50_000)})])[0]
    assert len(curve.svg) < 40_000


def test_cards_are_spread_over_the_examples():
    first, second = evaluation("one", 10, total=20), evaluation("two", 20, total=20)
    cards = prediction_cards([first, second])
    assert [card.id for card in cards] == [f"q{index}" for index in range(0, 20, 2)]
    assert [answer.model for answer in cards[-1].answers] == ["one", "two"]
    assert [(answer.score, answer.exact) for answer in cards[-1].answers] == [(0.0, False), (1.0, True)]
    assert len(prediction_cards([evaluation("few", 1, total=3)])) == 3


def test_summaries_are_scored_by_rouge():
    summary = Prediction("s", "", ["They met in Rome."], "They meet in Rome.")
    (card,) = prediction_cards([Evaluation("one", "summary", {}, [summary], 1, 1.0)])
    assert card.metric == "ROUGE-Lsum"
    assert 0 < card.answers[0].score <= 1


def test_the_terminals_table():
    console = Console(width=100, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(results_table([evaluation("[red]teacher", 25), evaluation("student", 5)]))
    shown = capture.get()
    lines = [line.split() for line in shown.splitlines()]
    assert any({"F1", "EM", "ROUGE-Lsum", "examples", "seconds"} <= set(line) for line in lines)
    assert "[red]teacher" in shown
    assert "83.33" in shown
    assert "16.67" in shown


def test_markdown():
    assert markdown_table([evaluation("a|b", 15), Evaluation("bare", "qa", {}, [], 3, 0.4)]).splitlines() == [
        "| model | F1 | EM | ROUGE-Lsum | examples | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        r"| a\|b | 50.00 | 50.00 | 50.00 | 30 | 12 |",
        "| bare | – | – | – | 3 | 0 |",
    ]


def test_latex():
    lines = latex_table([evaluation("a_b & 50%", 15)]).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrr}"
    assert lines[4] == r"a\_b \& 50\% & 50.00 & 50.00 & 50.00 & 30 & 12 \\"


def test_csv_is_unrounded():
    third = evaluation('a "b", c', 10)
    rows = list(csv.DictReader(csv_table([third]).splitlines()))
    assert rows[0]["name"] == 'a "b", c'
    assert float(rows[0]["f1"]) == 1 / 3
    assert float(rows[0]["seconds"]) == 12.4
    assert rows[0]["rouge_aggregate"] == "best"
    assert not any(name.startswith("bert_score") for name in rows[0])
    rows = list(csv.DictReader(csv_table([third, with_encoder(third, "my/encoder", 0.25)]).splitlines()))
    assert [row["bert_score_f1"] for row in rows] == ["", "0.25"]
    assert [row["bert_score_model"] for row in rows] == ["", "my/encoder"]
