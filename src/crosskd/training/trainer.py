"""A `transformers.Trainer` whose loss joins cross-entropy with what a teacher of another tokenizer says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer

from crosskd.losses.base import IGNORED_LABEL, StudentAnswers
from crosskd.losses.cross_entropy import answer_cross_entropy
from crosskd.losses.mined import MinED
from crosskd.losses.targets import TeacherTargets, targets_from_logits
from crosskd.models.adapters import merged_copy
from crosskd.models.answer_logits import answer_logits
from crosskd.models.card import CardFacts, write_card
from crosskd.teacher.cache import TargetCache
from crosskd.training.aligner import for_tokenizers
from crosskd.training.config import DistillationConfig
from crosskd.training.examples import is_tokenized
from crosskd.training.inputs import Examples, as_dataset, collator, tokenized
from crosskd.training.participants import ModelSource, check_cache, gather_participants
from crosskd.training.records import MetricsFile, card_facts, write_records
from crosskd.training.student import trained_model
from crosskd.training.term_log import TermLog


class DistillationTrainer(Trainer):
    """Train a student on answers, with a teacher's view of the same answers.

    The loss of a step is Eq. 21 of arXiv 2412.14528, ``cross_entropy + distillation_weight * distillation``, summed
    over tokens and divided by the answer tokens of the student in the global batch (end-of-sequence tokens included),
    so that gradient accumulation and data parallelism leave it as it is. Every term is logged, divided likewise.

    Args:
        model: The student: hub id, folder, GGUF file, what `load_model` returned, or a model (with
            ``processing_class``). By name it is loaded in float32.
        teacher: The teacher, likewise. It is never trained and never saved. Not needed with ``teacher_cache`` nor by
            methods that ask no teacher.
        args: Settings; None takes the paper's.
        train_dataset: Examples with ``id``, ``title``, ``context``, ``question`` and ``answers`` (see `load_examples`);
            or tokens of your own making, a `datasets.Dataset` with lists of ids in ``student_prompt_ids`` and
            ``student_answer_ids`` and, for a live teacher, ``teacher_prompt_ids`` and ``teacher_answer_ids`` (those
            without an end-of-sequence token). Tokens are used as they are; prompts and lengths are then yours.
        eval_dataset: Examples whose loss is reported; with a cache, which holds the training examples only, that is
            their cross-entropy.
        processing_class: The student's tokenizer, where ``model`` brings none.
        teacher_processing_class: The teacher's tokenizer, where ``teacher`` brings none.
        teacher_cache: Folder written by ``crosskd cache`` for these very training examples.
        sources: What ``resolved_config.yaml`` and the model card call ``student``, ``teacher``, ``data`` and so on,
            where they came by name (``crosskd distill`` does).
        options: Passed to `transformers.Trainer` (``callbacks``, ``optimizers``, ...).

    Raises:
        UsageError: A teacher is missing, the two models are the same folder, an example is too long or has no answer,
            or the cache belongs to other data or another prompt.
    """

    args: DistillationConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        model: ModelSource,
        teacher: ModelSource | None = None,
        args: DistillationConfig | None = None,
        train_dataset: Examples | None = None,
        eval_dataset: Examples | None = None,
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        teacher_processing_class: PreTrainedTokenizerBase | None = None,
        teacher_cache: str | Path | TargetCache | None = None,
        sources: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        args = args or DistillationConfig(output_dir="crosskd-student")
        self.method = args.create_method()
        self.sources = dict(sources or {})
        cache = TargetCache.open(teacher_cache) if isinstance(teacher_cache, str | Path) else teacher_cache
        tokenizers = (processing_class, teacher_processing_class)
        self.participants = gather_participants(args, self.method, model, teacher, cache, tokenizers)
        self._train_examples = as_dataset(train_dataset, args)
        check_cache(args, self.participants, self.method.request(), self._text_examples)
        aligner = None
        if isinstance(self.method, MinED):
            tokenizer = self.participants.student.tokenizer
            self.method, aligner = for_tokenizers(self.method, tokenizer, self.participants.teacher_vocabulary())
        super().__init__(
            model=trained_model(self.participants.student.model, args),
            args=args,
            train_dataset=tokenized(self._train_examples, args, self.participants, training=True),
            eval_dataset=tokenized(as_dataset(eval_dataset, args), args, self.participants, training=False),
            processing_class=self.participants.student.tokenizer,
            data_collator=collator(self.participants, aligner),
            **options,
        )
        # compute_loss divides by the answer tokens of the whole accumulated, global batch
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False  # labels stand in columns of their own, none is shifted away
        self.label_names = ["labels"]
        self.terms = TermLog()
        self.add_callback(MetricsFile())
        self.teacher_model = self._frozen_teacher()

    @property
    def _text_examples(self) -> Dataset | None:
        """Training examples as text, for their hash; None where they came as tokens."""
        return None if is_tokenized(self._train_examples) else self._train_examples

    def _frozen_teacher(self) -> nn.Module | None:
        if self.participants.teacher is None:
            return None
        frozen = self.participants.teacher.model.requires_grad_(False).eval()
        return self.accelerator.prepare_model(frozen, evaluation_mode=True)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Write ``resolved_config.yaml`` and ``provenance.json``, then train; see `transformers.Trainer.train`."""
        if self.is_world_process_zero():
            write_records(self.args, self.participants, self._text_examples, self.sources)
        return super().train(*arguments, **options)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Eq. 21 over the answer tokens of the global batch; see the class."""
        labels = inputs["labels"]
        logits = answer_logits(model, inputs, labels.shape[1])
        targets = self._targets(inputs)
        student = StudentAnswers(logits, labels, inputs["distilled"], inputs.get("alignment"))
        with torch.autocast(logits.device.type, enabled=False):  # the losses choose their precision themselves
            if targets is None and self.method.needs_teacher:
                terms = {"cross_entropy": answer_cross_entropy(logits, labels)}  # evaluation beside a cache
            else:
                terms = self.method.terms(student, targets)
        total = terms["cross_entropy"]
        if "distillation" in terms:
            total = total + self.args.distillation_weight * terms["distillation"]
        tokens = _answer_tokens(labels, num_items_in_batch)
        if model.training:
            self.terms.add(terms, tokens, self.state.global_step)
        loss = total / tokens * self._process_factor(num_items_in_batch)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def _targets(self, inputs: Mapping[str, Any]) -> TeacherTargets | None:
        """Targets of a batch, read from the cache by the collator or asked of the live teacher."""
        request = self.method.request()
        if request is None:
            return None
        if "targets" in inputs:
            return inputs["targets"].to(inputs["labels"].device)
        if self.teacher_model is None:
            return None
        labels = inputs["teacher"]["labels"]
        with torch.no_grad():
            logits = answer_logits(self.teacher_model, inputs["teacher"], labels.shape[1])
        mask = labels != IGNORED_LABEL
        return targets_from_logits(logits, mask, request, labels.masked_fill(~mask, 0))

    def _process_factor(self, num_items_in_batch: Tensor | int | None) -> int:
        """Data parallelism averages gradients over processes; the sum that Eq. 21 wants is that many times larger."""
        if num_items_in_batch is None or not self.args.average_tokens_across_devices:
            return 1
        return self.accelerator.num_processes if self.args.n_gpu <= 1 else self.args.n_gpu

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms of the loss, averaged over the steps since the last time; see `transformers.Trainer.log`."""
        if "loss" in logs:
            logs = {**logs, **self.terms.average(self.accelerator, self.state.global_step)}
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student, its tokenizer and its model card; see `transformers.Trainer.save_model`.

        With ``merge_adapter`` checkpoints hold the adapter, and the student saved at the end is whole.
        """
        with self._merged(self.args.merge_adapter and not _internal_call):
            super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            write_card(Path(output_dir or str(self.args.output_dir)), self._card())

    @contextmanager
    def _merged(self, merge: bool) -> Iterator[None]:
        """Put a copy with its adapter merged in the model's place."""
        trained = self.model
        if merge:
            self.model = merged_copy(self.accelerator.unwrap_model(trained))
        try:
            yield
        finally:
            self.model = trained

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Write our model card where `transformers.Trainer` would write its own."""
        if self.is_world_process_zero():
            write_card(Path(str(self.args.output_dir)), self._card())

    def _card(self) -> CardFacts:
        examples = 0 if self._train_examples is None else len(self._train_examples)
        data = str(self.sources.get("data", "given in Python"))
        own_tokens = is_tokenized(self._train_examples)
        return card_facts(self.args, self.participants, data, examples, own_tokens=own_tokens)


def _answer_tokens(labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Answer tokens that the loss is divided by: of the global batch, or of this one where that is not known."""
    if num_items_in_batch is None:
        return (labels != IGNORED_LABEL).sum().clamp_min(1)
    # DataParallel repeats the count once a device
    return torch.as_tensor(num_items_in_batch, device=labels.device).reshape(-1)[0].clamp_min(1)
