"""What a trainer reads: examples as they were given, their tokens, and the collator that makes batches of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crosskd.data.supervision import supervised_examples
from crosskd.errors import UsageError
from crosskd.models.limits import check_token_ids, embedding_rows
from crosskd.training.aligner import TokenAligner
from crosskd.training.config import DistillationConfig
from crosskd.training.examples import (
    DistillationCollator,
    check_tokenized,
    is_tokenized,
    tokenize_examples,
    with_lengths,
)
from crosskd.training.participants import Participants

Examples = Dataset | Sequence[Mapping[str, Any]]


def as_dataset(examples: Examples | None, config: DistillationConfig) -> Dataset | None:
    """Examples as a data set; of those that come as text, the ones that have the answer asked for."""
    if examples is None:
        return None
    dataset = examples if isinstance(examples, Dataset) else Dataset.from_list([dict(example) for example in examples])
    return dataset if is_tokenized(dataset) else supervised_examples(dataset, config.supervision)


def tokenized(
    examples: Dataset | None, config: DistillationConfig, participants: Participants, *, training: bool
) -> Dataset | None:
    """Tokens of examples; those that come as tokens are checked and used as they are.

    Raises:
        UsageError: A token has no embedding in the model that must read it.
    """
    if examples is None:
        return None
    rows = _tokens(examples, config, participants, training=training)
    for side, loaded in (("student", participants.student), ("teacher", participants.teacher)):
        if loaded is None or f"{side}_answer_ids" not in rows.column_names:
            continue
        embeddings = embedding_rows(loaded.model)
        if is_tokenized(examples) or len(loaded.tokenizer) > embeddings:  # else none can be too large
            parts = zip(rows[f"{side}_prompt_ids"], rows[f"{side}_answer_ids"], strict=True)
            ids = ((f"{side}'s example {i}", [*chain(*pair)]) for i, pair in enumerate(parts))
            check_token_ids(ids, embeddings, loaded.name)
    return rows


def _tokens(examples: Dataset, config: DistillationConfig, participants: Participants, *, training: bool) -> Dataset:
    if is_tokenized(examples):
        live, cached = participants.teacher is not None, participants.cache is not None
        check_tokenized(examples, training and live, training and cached)  # validation asks no teacher
        return with_lengths(examples)
    if config.length_column_name != "length":
        raise UsageError("--length_column_name", got=config.length_column_name, expected="length: so it is called here")
    if training:
        return tokenize_examples(examples, participants.sides, config.supervision, training=True)
    # validation is on the data's own labels where it has them, and no teacher is asked
    supervision = "labels" if _labelled(examples) else config.supervision
    return tokenize_examples(examples, participants.sides[:1], supervision, training=False)


def _labelled(examples: Dataset) -> bool:
    return all(answers and answers[0].strip() for answers in examples["answers"])


def evaluation_sets(
    given: Examples | Mapping[str, Examples] | None, config: DistillationConfig, participants: Participants
) -> Dataset | dict[str, Dataset] | None:
    """Tokens of the examples whose loss is reported: one set, or several by name."""
    if isinstance(given, Mapping):
        return {name: evaluation_set(rows, config, participants) for name, rows in given.items()}
    return None if given is None else evaluation_set(given, config, participants)


def evaluation_set(given: Examples, config: DistillationConfig, participants: Participants) -> Dataset:
    """Tokens of one such set; examples that have been through here already are returned as they are."""
    dataset = given if isinstance(given, Dataset) else Dataset.from_list([dict(example) for example in given])
    if not len(dataset):
        raise UsageError("evaluation examples", got="none", expected="at least one")
    made = tokenized(dataset, config, participants, training=False)
    assert made is not None
    if config.predict_with_generate and "answers" not in made.column_names:
        raise UsageError(
            "--predict_with_generate", got="evaluation examples that are tokens", expected="examples as text"
        )
    return made


def collator(participants: Participants, aligner: TokenAligner | None) -> DistillationCollator:
    """What makes batches for these models."""
    student = participants.student
    return DistillationCollator(
        student_end_id=_end_id(student.tokenizer),
        decoder_start_id=_decoder_start_id(student.model, student.tokenizer),
        live_teacher=participants.teacher is not None,
        cache=participants.cache,
        align=aligner,
    )


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    end = tokenizer.eos_token_id
    assert isinstance(end, int)  # `load_tokenizer` refuses a tokenizer without an end of sequence
    return end


def _decoder_start_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    if not model.config.is_encoder_decoder:
        return None
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise UsageError(
            f"student {model.name_or_path or type(model).__name__}",
            got="no decoder_start_token_id in its configuration",
            expected="the token with which its decoder starts (T5: its padding token)",
            fix=f"set it in config.json; the tokenizer's padding token is {tokenizer.pad_token_id}",
        )
    return int(start)
