"""Names of scores: in files, in tables, in tasks; and which to show first."""

from __future__ import annotations

from collections.abc import Sequence

from crosskd.errors import UsageError, did_you_mean
from crosskd.evaluation.results import Evaluation

#: Every score by its name in ``scores.json``, with its heading in tables.
HEADINGS = {
    "f1": "F1",
    "exact_match": "EM",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "bert_score_precision": "BERTScore precision",
    "bert_score_recall": "BERTScore recall",
    "bert_score_f1": "BERTScore",
}
#: Words that tasks and flags may use for one of them.
SHORT_NAMES = {"rouge": "rougeLsum", "bert_score": "bert_score_f1"}

_USUAL = "best of the references"  # what `Evaluation.computed_by` says of ROUGE unless it was asked for another
_ALL = "all references"  # and of F1 and exact match, where it says nothing
_SHOWN = ("f1", "exact_match", "rougeLsum", "bert_score_f1")


def score_name(name: str) -> str:
    """The name in ``scores.json`` of a score, which may be a short name.

    Raises:
        UsageError: There is no such score.

    Example:
        >>> score_name("rouge")
        'rougeLsum'
    """
    full = SHORT_NAMES.get(name, name)
    if full not in HEADINGS:
        raise UsageError("metric", got=name, expected="the name of a score", fix=did_you_mean(name, HEADINGS))
    return full


def shown_scores(evaluations: Sequence[Evaluation]) -> list[str]:
    """Scores that a table of ``evaluations`` shows: the metrics of the first one's task, in their order.

    F1, exact match and ROUGE-Lsum where the task is not known, or has none that was computed; BERTScore is among them
    where any evaluation has it.
    """
    told = evaluations[0].settings.get("metrics") if evaluations else None
    preferred = [full for name in told or () if (full := SHORT_NAMES.get(name, name)) in _SHOWN]
    measured = any("bert_score_f1" in each.scores for each in evaluations)
    found = [name for name in preferred if name != "bert_score_f1" or measured] or [*_SHOWN[:3]]
    return list(dict.fromkeys([*found, "bert_score_f1"] if measured else found))


def made_alike(metric: str, evaluations: Sequence[Evaluation]) -> bool:
    """Whether the scores of all evaluations that have this one were computed in the same way."""
    return len({each.computed_by(metric) for each in evaluations if metric in each.scores}) <= 1


def how_computed(evaluations: Sequence[Evaluation]) -> str:
    """What a table must say of its columns: nothing, or a sentence for each that could be computed in several ways.

    ROUGE is worth a word where it is the mean over the references, or without stemmer, and F1 and exact match where
    only the first reference counts; BERTScore always.
    """
    columns = {"F1 and EM": "f1", "ROUGE": "rougeLsum", "BERTScore": "bert_score_f1"}
    notes = [_note(label, metric, evaluations) for label, metric in columns.items()]
    return " ".join(note for note in notes if note)


def _note(label: str, metric: str, evaluations: Sequence[Evaluation]) -> str:
    ways: dict[str, list[str]] = {}
    for each in evaluations:
        if metric in each.scores:
            ways.setdefault(each.computed_by(metric), []).append(each.name)
    if len(ways) > 1:
        listed = "; ".join(f"{way or _ALL} ({', '.join(names)})" for way, names in ways.items())
        return f"{label} {'are' if ' and ' in label else 'is'} not comparable: {listed}."
    way = next(iter(ways), _USUAL)
    return "" if way in ("", _USUAL) else f"{label}: {way}."
