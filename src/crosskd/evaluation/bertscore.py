"""BERTScore (Zhang et al. 2020) through the optional ``bert-score`` package."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from crosskd.errors import UsageError
from crosskd.evaluation.checks import check_references, mean

DEFAULT_MODEL = "roberta-large"


def bert_score_settings(model: str | None = None, layer: int | None = None) -> dict[str, str | int]:
    """Which model and layer BERTScore uses: what a score must be reported with.

    Args:
        model: Hub id or local folder of an encoder; None takes :data:`DEFAULT_MODEL`.
        layer: Number of layers to run; None takes the one that ``bert-score`` recommends for the model.

    Returns:
        ``model``, ``layer`` and ``version`` of ``bert-score``.

    Raises:
        UsageError: ``bert-score`` is not installed, or it knows no layer for ``model`` and none was given.
    """
    package = _package()
    name = model or DEFAULT_MODEL
    if layer is None:
        layer = package.utils.model2layers.get(name)
    if layer is None:
        count = _layer_count(name)
        raise UsageError(
            f"bert-score recommends no layer for {name}",
            fix=f"give one, from 1 to {count}" if count else "give one",
        )
    return {"model": name, "layer": layer, "version": str(package.__version__)}


def bert_score_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    model: str | None = None,
    layer: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
) -> dict[str, list[float]]:
    """BERTScore of each prediction, the best over its references, neither weighted by idf nor rescaled.

    Args:
        predictions: N texts. One without any letter or sign scores 0.
        references: N sequences of at least one reference each.
        model: As for :func:`bert_score_settings`.
        layer: As for :func:`bert_score_settings`.
        batch_size: Texts encoded at once.
        device: Where the encoder runs; None takes the first GPU, or the CPU.

    Returns:
        ``precision``, ``recall`` and ``f1``, each with N scores, cut to [0, 1] (cosines stray beyond by rounding).

    Raises:
        UsageError: As for :func:`bert_score_settings` and :func:`crosskd.evaluation.metrics.f1_scores`.
    """
    check_references(predictions, references)
    settings = bert_score_settings(model, layer)
    scores = {name: [0.0] * len(predictions) for name in ("precision", "recall", "f1")}
    # bert-score has no embedding for an empty text, and fails on it with current tokenizers.
    pairs = [
        (index, prediction, full)
        for index, (prediction, several) in enumerate(zip(predictions, references, strict=True))
        if prediction.strip() and (full := [reference for reference in several if reference.strip()])
    ]
    if not pairs:
        return scores
    measured = _package().score(
        [prediction for _, prediction, _ in pairs],
        [full for _, _, full in pairs],
        model_type=settings["model"],
        num_layers=settings["layer"],
        batch_size=batch_size,
        device=device,
    )
    for name, values in zip(scores, measured, strict=True):
        for (index, _, _), value in zip(pairs, values.tolist(), strict=True):
            scores[name][index] = min(max(float(value), 0.0), 1.0)
    return scores


def bert_score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    model: str | None = None,
    layer: int | None = None,
) -> dict[str, float]:
    """Means of :func:`bert_score_scores`: ``precision``, ``recall`` and ``f1``, each in [0, 1].

    Report it with :func:`bert_score_settings`: scores of different encoders or layers cannot be compared.
    """
    scores = bert_score_scores(predictions, references, model=model, layer=layer)
    return {name: mean(values) for name, values in scores.items()}


def _package() -> ModuleType:
    try:
        return importlib.import_module("bert_score")
    except ImportError as error:
        raise UsageError(
            "BERTScore needs the package bert-score", fix='install the extra: pip install "crosskd[bert-score]"'
        ) from error


def _layer_count(name: str) -> int | None:
    if not Path(name).is_dir():
        return None
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(name), "num_hidden_layers", None)
