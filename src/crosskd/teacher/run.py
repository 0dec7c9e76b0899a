"""A teacher with its prompts: from examples to targets, and to the identity of what it made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset

from crosskd import __version__
from crosskd.losses.targets import TargetRequest, TeacherTargets
from crosskd.models.limits import check_token_ids, context_length, embedding_rows
from crosskd.models.load import LoadedModel
from crosskd.models.quantization import quantization_of
from crosskd.teacher.capture import capture_targets
from crosskd.teacher.identity import data_sha256, model_fields, prompt_sha256, request_fields, tokenizer_sha256
from crosskd.text.prompts import PromptBuilder, PromptStyle
from crosskd.text.sides import Side, supervised_answer
from crosskd.text.tasks import load_task


class TeacherRun:
    """A loaded teacher, ready to be asked about the answers of examples.

    Args:
        loaded: The teacher.
        task: Name of a task, or a YAML file.
        number_few_shot: Shots in its prompt.
        prompt_style: ``"auto"``, ``"plain"`` or ``"chat"``.
        max_length: Longest prompt and answer, in tokens; None takes the model's limit.
        supervision: Whose answers: ``"labels"`` or ``"teacher"``.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        task: str,
        *,
        number_few_shot: int,
        prompt_style: PromptStyle = "auto",
        max_length: int | None = None,
        supervision: str = "labels",
    ) -> None:
        self.loaded = loaded
        self.task = load_task(task)
        self.number_few_shot = number_few_shot
        self.prompt_style = prompt_style
        self.supervision = supervision
        builder = PromptBuilder(loaded.tokenizer, self.task, number_few_shot=number_few_shot, style=prompt_style)
        limit = context_length(loaded.model.config, loaded.tokenizer, max_length)
        self.side = Side("teacher", builder, append_eos=False, max_length=limit)

    def check(self, examples: Sequence[Mapping[str, Any]] | Dataset) -> None:
        """Refuse examples with tokens that the teacher has no embeddings for, before any target is computed.

        Only a tokenizer with more entries than the model has embeddings can give such tokens; others are not asked.

        Raises:
            UsageError: Names the first such example.
        """
        embeddings = embedding_rows(self.loaded.model)
        if len(self.loaded.tokenizer) > embeddings:
            check_token_ids(self._token_rows(examples), embeddings, self.loaded.name)

    def _token_rows(self, examples: Iterable[Any]) -> Iterator[tuple[str, list[int]]]:
        for row in examples:
            tokens = self.side.tokenize(row, supervised_answer(row, self.supervision))
            yield f"teacher's example {row['id']!r}", [*tokens.prompt_ids, *tokens.answer_ids]

    def targets(
        self,
        examples: Sequence[Mapping[str, Any]] | Dataset,
        request: TargetRequest,
        *,
        dtype: torch.dtype | None = None,
        batch_size: int = 8,
        advance: Callable[[int], None] | None = None,
    ) -> list[TeacherTargets]:
        """Targets of each example; see `capture_targets`."""
        rows = [dict(example) for example in examples]
        tokenized = [self.side.tokenize(row, supervised_answer(row, self.supervision)) for row in rows]
        return capture_targets(
            self.loaded.model,
            tokenized,
            request,
            batch_size=batch_size,
            shared_prefix=self.side.builder.shared_prefix_ids,
            dtype=dtype,
            advance=advance,
            names=[str(row["id"]) for row in rows],
        )

    def identity(
        self, examples: Dataset, request: TargetRequest, dtype: torch.dtype, shard_size: int
    ) -> dict[str, Any]:
        """All that decides what a cache of these targets holds; see `crosskd.teacher.identity`."""
        revision = getattr(self.loaded.model.config, "_commit_hash", None)
        return {
            "teacher": self.loaded.name,
            "teacher_revision": revision,
            **model_fields(self.loaded.name, revision),
            "teacher_dtype": str(self.loaded.model.dtype),
            "teacher_quantization": quantization_of(self.loaded.model),
            "tokenizer_sha256": tokenizer_sha256(self.loaded.tokenizer),
            "task": self.task.name,
            "prompt_sha256": prompt_sha256(self.task, self.number_few_shot),
            "number_few_shot": self.number_few_shot,
            "teacher_prompt_style": self.prompt_style,
            "teacher_max_length": self.side.max_length,
            "supervision": self.supervision,
            "data_sha256": data_sha256(examples, self.supervision),
            "examples": len(examples),
            "shard_size": shard_size,
            "target_dtype": str(dtype),
            **request_fields(request),
            "crosskd_version": __version__,
        }
