"""How the answers of an evaluation are scored: settled before the first is generated."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crosskd.errors import UsageError
from crosskd.evaluation.bertscore import BertScorer, check_bert_score
from crosskd.evaluation.checks import mean
from crosskd.evaluation.metrics import ROUGE_VARIANTS, Aggregate, References, RougeVariant, exact_match, f1, rouge
from crosskd.evaluation.results import Prediction
from crosskd.text.tasks import Task

logger = logging.getLogger(__name__)


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    rouge_aggregate: Aggregate = "best",
    rouge_variant: RougeVariant = "standard",
) -> dict[str, float]:
    """All scores that need no further model: ``f1``, ``exact_match`` and the four of ROUGE, each in [0, 1]."""
    return {
        "f1": f1(predictions, references),
        "exact_match": exact_match(predictions, references),
        **rouge(predictions, references, aggregate=rouge_aggregate, **ROUGE_VARIANTS[rouge_variant]),
    }


@dataclass(frozen=True)
class Scoring:
    """What is computed of each answer.

    Attributes:
        metrics: The task's, the most telling first.
        rouge_aggregate: Over the references of an example, for ROUGE.
        rouge_variant: ROUGE with stemmer and sentences (``"standard"``), or without both (``"plain"``).
        references: Whether ``"all"`` references of an example count, or the ``"first"`` alone.
        encoder: BERTScore's, or None where it is left out.
    """

    metrics: tuple[str, ...]
    rouge_aggregate: Aggregate
    rouge_variant: RougeVariant
    references: References
    encoder: BertScorer | None

    @classmethod
    def prepare(
        cls,
        task: Task,
        rouge_aggregate: Aggregate,
        rouge_variant: RougeVariant,
        references: References,
        bert_score_model: str | None,
        bert_score_layer: int | None,
    ) -> Scoring:
        """Check what was asked for, and load BERTScore's encoder if there is one.

        Raises:
            UsageError: An unknown choice, a layer without an encoder, or an encoder that BERTScore cannot
                use.
        """
        if rouge_aggregate not in ("best", "mean"):
            raise UsageError("rouge_aggregate", got=rouge_aggregate, expected='"best" or "mean"')
        if rouge_variant not in ROUGE_VARIANTS:
            raise UsageError("rouge_variant", got=rouge_variant, expected='"standard" or "plain"')
        if references not in ("all", "first"):
            raise UsageError("references", got=references, expected='"all" or "first"')
        check_bert_score(bert_score_model, bert_score_layer)
        if bert_score_model is None:
            if "bert_score" in task.metrics:
                logger.warning("Task %s lists bert_score, which is computed with --bert_score_model only.", task.name)
            return cls(task.metrics, rouge_aggregate, rouge_variant, references, None)
        return cls(
            task.metrics, rouge_aggregate, rouge_variant, references, BertScorer(bert_score_model, bert_score_layer)
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What a score must be reported with."""
        return {
            "metrics": list(self.metrics),
            "rouge_aggregate": self.rouge_aggregate,
            "rouge_variant": self.rouge_variant,
            "references": self.references,
            "bert_score": None if self.encoder is None else self.encoder.settings,
        }

    def apply(
        self, examples: Sequence[Mapping[str, Any]], answers: Sequence[str]
    ) -> tuple[list[Prediction], dict[str, float]]:
        """Score the answer to each example.

        Args:
            examples: N mappings with ``answers`` and perhaps ``id`` and ``question``.
            answers: N texts.

        Returns:
            N predictions, and the means of the scores.
        """
        most = 1 if self.references == "first" else None
        references = [list(example["answers"])[:most] for example in examples]
        scores = score(answers, references, rouge_aggregate=self.rouge_aggregate, rouge_variant=self.rouge_variant)
        measured = {} if self.encoder is None else self.encoder.scores(answers, references)
        costly = {f"bert_score_{part}": values for part, values in measured.items()}
        predictions = [
            Prediction(
                str(example.get("id", index)),
                example.get("question") or "",
                references[index],
                answers[index],
                {name: values[index] for name, values in costly.items()},
            )
            for index, example in enumerate(examples)
        ]
        return predictions, scores | {name: mean(values) for name, values in costly.items()}
