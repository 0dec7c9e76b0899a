"""BERTScore (Zhang et al. 2020) through the optional ``bert-score`` package."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from crosskd.errors import UsageError, first_line
from crosskd.evaluation.checks import check_references, mean

if TYPE_CHECKING:
    from transformers.configuration_utils import PreTrainedConfig

DEFAULT_MODEL = "roberta-large"
PARTS = ("precision", "recall", "f1")

_T5 = frozenset({"t5", "mt5", "umt5"})
_NO_LIMIT = 10**9  # tokenizers that know no limit say 10**30, which does not fit into their own integers
_LONGEST = 10**6


def bert_score_settings(model: str | None = None, layer: int | None = None) -> dict[str, str | int]:
    """Which model and layer BERTScore uses: what a score must be reported with.

    Reads the encoder's configuration, not its weights.

    Args:
        model: Hub id or local folder of an encoder; None takes :data:`DEFAULT_MODEL`.
        layer: Number of layers to run; None takes the one that ``bert-score`` recommends for the model.

    Returns:
        ``model``, ``layer`` and ``version`` of ``bert-score``.

    Raises:
        UsageError: ``bert-score`` is not installed, there is no such encoder, it has fewer layers, or ``bert-score``
            knows no layer for it and none was given.
    """
    package = _package()
    name = model or DEFAULT_MODEL
    config = _config(name)
    count: int | None = getattr(config.get_text_config(), "num_hidden_layers", None)
    if layer is None:
        layer = package.utils.model2layers.get(name)
        if layer is None:
            advice = _layers_to_give(name, count, package.utils.model2layers)
            raise UsageError(f"bert-score recommends no layer for {name}", fix=advice)
    if layer < 1 or (count is not None and layer > count):
        raise UsageError(
            f"--bert_score_layer for {name}", got=layer, expected=f"from 1 to {count}" if count else "at least 1"
        )
    return {"model": name, "layer": layer, "version": importlib.metadata.version("bert-score")}


def check_bert_score(model: str | None, layer: int | None) -> None:
    """Make sure, without loading anything, that BERTScore is either left out or can be computed.

    Raises:
        UsageError: A layer without an encoder, or as for `bert_score_settings`.
    """
    if model is not None:
        bert_score_settings(model, layer)
    elif layer is not None:
        raise UsageError("--bert_score_layer", got=layer, fix="give --bert_score_model too")


class BertScorer:
    """An encoder, loaded and tried out: whatever is wrong with it shows before anything is scored.

    It rests on the CPU between calls of :meth:`scores`, so that it can be loaded before a language model generates.

    Args:
        model: As for :func:`bert_score_settings`.
        layer: As for :func:`bert_score_settings`.
        batch_size: Texts encoded at once.
        device: Where the encoder runs; None takes the first GPU, or the CPU.

    Attributes:
        settings: What :func:`bert_score_settings` returns.

    Raises:
        UsageError: As for :func:`bert_score_settings`, or ``bert-score`` cannot work with the encoder.
    """

    def __init__(
        self, model: str | None = None, layer: int | None = None, *, batch_size: int = 64, device: str | None = None
    ) -> None:
        self.settings = bert_score_settings(model, layer)
        self._batch_size = batch_size
        self._device = device or _first_device()
        name = str(self.settings["model"])
        try:
            self._scorer = _load(name, int(self.settings["layer"]))
            self._scorer.score(["a trial"], [["a trial"]])
        except Exception as error:  # whatever bert-score meets in a model that it was not made for
            reason = first_line(error)
            raise UsageError(f"bert-score cannot work with {name}", got=f"{type(error).__name__}: {reason}") from error

    def scores(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
        """BERTScore of each prediction, the best over its references, neither weighted by idf nor rescaled.

        Args:
            predictions: N texts. One without any letter or sign scores 0.
            references: N sequences of at least one reference each.

        Returns:
            ``precision``, ``recall`` and ``f1``, each with N scores, cut to [0, 1] (cosines stray beyond by rounding).

        Raises:
            UsageError: As for :func:`crosskd.evaluation.metrics.f1_scores`.
        """
        check_references(predictions, references)
        scores = {name: [0.0] * len(predictions) for name in PARTS}
        # bert-score has no embedding for an empty text, and fails on it with current tokenizers.
        pairs = [
            (index, prediction, full)
            for index, (prediction, several) in enumerate(zip(predictions, references, strict=True))
            if prediction.strip() and (full := [reference for reference in several if reference.strip()])
        ]
        if not pairs:
            return scores
        measured = self._measure([prediction for _, prediction, _ in pairs], [full for _, _, full in pairs])
        for name, values in zip(PARTS, measured, strict=True):
            for (index, _, _), value in zip(pairs, values, strict=True):
                scores[name][index] = min(max(value, 0.0), 1.0)
        return scores

    def _measure(self, predictions: list[str], references: list[list[str]]) -> list[list[float]]:
        self._move(self._device)
        measured = self._scorer.score(predictions, references, batch_size=self._batch_size)
        self._move("cpu")
        return [values.tolist() for values in measured]

    def _move(self, device: str) -> None:
        self._scorer._model.to(device)
        self._scorer.device = device


def bert_score_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    model: str | None = None,
    layer: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
) -> dict[str, list[float]]:
    """Load a :class:`BertScorer`, which describes the arguments, and return its :meth:`~BertScorer.scores`."""
    check_references(predictions, references)
    return BertScorer(model, layer, batch_size=batch_size, device=device).scores(predictions, references)


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


def _config(name: str) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        missing = "no configuration of a model there, or no connection to the hub"
        got = missing if isinstance(error, OSError) else first_line(error)
        raise UsageError(f"--bert_score_model {name}", got=got, expected="a hub id or folder of an encoder") from error
    # bert-score goes by the name: it would read any other model as a T5 with random weights, and only log it.
    if "t5" in name and config.model_type not in _T5:
        raise UsageError(
            f"--bert_score_model {name}",
            got=f"a model of type {config.model_type}",
            fix="move or rename its folder: bert-score takes every name with t5 in it for a T5",
        )
    return config


def _layers_to_give(name: str, count: int | None, recommended: Mapping[str, int]) -> str:
    """What to do where no layer is known; a folder named as a known model gets that model's layer suggested."""
    advice = f"give one, from 1 to {count}" if count else "give one"
    known = {known.split("/")[-1]: (known, layer) for known, layer in recommended.items()}
    if Path(name).name in known:
        model, layer = known[Path(name).name]
        advice += f" (for {model} it recommends {layer})"
    return f"{advice}, with --bert_score_layer"


def _load(name: str, layer: int) -> Any:
    from transformers import AutoConfig, AutoTokenizer, GPT2Tokenizer, RobertaTokenizer

    # A name that starts with "scibert" is a download to bert-score, also where it is a folder.
    source = f"./{name}" if name.startswith("scibert") and Path(name).is_dir() else name
    scorer = _package().BERTScorer(model_type=source, num_layers=layer, device="cpu")
    if isinstance(scorer._tokenizer, GPT2Tokenizer | RobertaTokenizer):
        # bert-score asks for the space when it encodes, which tokenizers obey only when they are made: without it
        # RoBERTa reads the first word of every text as if it went on from another.
        scorer._tokenizer = AutoTokenizer.from_pretrained(source, add_prefix_space=True)
    if scorer._tokenizer.model_max_length > _NO_LIMIT:
        scorer._tokenizer.model_max_length = _longest_text(AutoConfig.from_pretrained(source))
    return scorer


def _longest_text(config: PreTrainedConfig) -> int:
    positions: int | None = getattr(config, "max_position_embeddings", None)
    # RoBERTa and its kin count positions from the padding id on.
    return positions - (getattr(config, "pad_token_id", None) or 0) - 1 if positions else _LONGEST


def _first_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
