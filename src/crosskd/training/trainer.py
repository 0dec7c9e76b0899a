"""A `transformers.Trainer` whose loss joins cross-entropy with what a teacher of another tokenizer says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput

from crosskd.errors import UsageError
from crosskd.losses.base import IGNORED_LABEL, StudentAnswers
from crosskd.losses.cross_entropy import answer_cross_entropy
from crosskd.losses.mined import MinED
from crosskd.losses.targets import TeacherTargets, targets_from_logits
from crosskd.models.adapters import merged_copy
from crosskd.models.answer_logits import answer_logits
from crosskd.models.card import CardFacts, write_card
from crosskd.models.output_layer import FusedOutputLayer
from crosskd.teacher.cache import TargetCache
from crosskd.training.aligner import for_tokenizers
from crosskd.training.config import DistillationConfig
from crosskd.training.examples import is_tokenized
from crosskd.training.half_precision import frozen_teacher, keep_logits_half
from crosskd.training.inputs import Examples, as_dataset, collator, evaluation_set, evaluation_sets, tokenized
from crosskd.training.nonfinite import NonFiniteGuard
from crosskd.training.participants import ModelSource, check_cache, gather_participants
from crosskd.training.records import MetricsFile, card_facts, write_records
from crosskd.training.resumable import ResumableTrainer
from crosskd.training.resuming import check_contents, check_settings
from crosskd.training.run_files import has_begun
from crosskd.training.student import trained_model
from crosskd.training.validation import TokenMean, answer_scores, check_best_metric, without_repeats


class DistillationTrainer(ResumableTrainer):
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
        eval_dataset: Examples whose loss is reported, or several sets by name. ``eval_loss`` is the cross-entropy an
            answer token of the data's labels, for every method, live or cached, so that runs can be compared by it.
            With ``predict_with_generate`` the student's answers are scored, too.
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
        eval_dataset: Examples | Mapping[str, Examples] | None = None,
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        teacher_processing_class: PreTrainedTokenizerBase | None = None,
        teacher_cache: str | Path | TargetCache | None = None,
        sources: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        args = args or DistillationConfig(output_dir="crosskd-student")
        refuse_options(options)
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
        trained = trained_model(self.participants.student.model, args)
        super().__init__(
            model=trained,
            args=args,
            train_dataset=tokenized(self._train_examples, args, self.participants, training=True),
            eval_dataset=evaluation_sets(eval_dataset, args, self.participants),
            processing_class=self.participants.student.tokenizer,
            data_collator=collator(self.participants, aligner),
            **options,
        )
        check_best_metric(self.args, self.eval_dataset, self.compute_metrics)
        # compute_loss divides by the answer tokens of the whole accumulated, global batch
        self.model_accepts_loss_kwargs = True
        self.label_names = ["labels"]
        self._fused = FusedOutputLayer(trained) if args.fused_output_layer else None
        self.guard = NonFiniteGuard(self.accelerator, self._begin_step, self._drop_step)
        self._token_mean = TokenMean()
        for callback in (MetricsFile(), self.guard):
            self.add_callback(callback)
        live = self.participants.teacher
        self.teacher_model = None if live is None else frozen_teacher(live.model, self.accelerator)

    @property
    def _text_examples(self) -> Dataset | None:
        """Training examples as text, for their hash; None where they came as tokens."""
        return None if is_tokenized(self._train_examples) else self._train_examples

    def create_accelerator_and_postprocess(self) -> None:
        """See `transformers.Trainer`; logits stay half, and a batch is copied while a GPU computes."""
        super().create_accelerator_and_postprocess()
        keep_logits_half(self.accelerator)
        if self.args.device.type == "cuda" and self.args.dataloader_pin_memory:
            self.accelerator.dataloader_config.non_blocking = True

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> Any:
        """Write ``resolved_config.yaml`` and ``provenance.json``, then train; see `ResumableTrainer.train`.

        Raises:
            UsageError: The run to resume is not the one in the output folder; names what differs.
            TrainingFailed: A loss or gradient was not finite; see ``on_nonfinite``.
        """
        folder = Path(str(self.args.output_dir))
        if resume_from_checkpoint and has_begun(folder):
            check_settings(folder, self.args, self.sources)
            check_contents(folder, self.args, self.participants, self._text_examples)
        elif self.is_world_process_zero():
            write_records(self.args, self.participants, self._text_examples, self.sources)
        return super().train(resume_from_checkpoint, *arguments, **options)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Eq. 21 over the answer tokens of the global batch; see the class."""
        labels = inputs["labels"]
        targets = self._targets(inputs)
        tokens = count_answer_tokens([inputs]) if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        # DataParallel repeats the count once a device
        tokens = tokens.to(labels.device).reshape(-1)[0].clamp_min(1)
        compute = partial(self._loss_and_terms, inputs=inputs, targets=targets, tokens=tokens)
        if self._fused is not None:
            loss, terms = self._fused.loss(model, inputs, labels.shape[1], compute)
            outputs = {"loss": loss}
        else:
            logits = answer_logits(model, inputs, labels.shape[1])
            loss, terms = compute(logits)
            outputs = {"loss": loss, "logits": logits}
        if model.training:
            self.terms.add(terms, tokens, self.state.global_step)
            self.guard.note(terms, inputs.get("ids", ()))
        return (loss, outputs) if return_outputs else loss

    def _loss_and_terms(
        self, logits: Tensor, inputs: Mapping[str, Any], targets: TeacherTargets | None, tokens: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        student = StudentAnswers(logits, inputs["labels"], inputs["distilled"], inputs.get("alignment"))
        with torch.autocast(logits.device.type, enabled=False):  # the losses choose their precision themselves
            terms = self.method.terms(student, targets)
        total = terms["cross_entropy"]
        if self.method.needs_teacher:
            total = total + self.args.distillation_weight * terms["distillation"]
        # gradients are averaged over processes; the sum that Eq. 21 wants is that many times larger
        return total / tokens * self.accelerator.num_processes, terms

    def _begin_step(self) -> None:
        self._loss_before_step = self._tr_loss.clone()

    def _drop_step(self) -> None:
        """Take the step under way out of what is logged: its terms, its loss, and its place in their mean."""
        self.terms.drop()
        self._tr_loss.copy_(self._loss_before_step)
        self._globalstep_last_logged += 1

    def _targets(self, inputs: Mapping[str, Any]) -> TeacherTargets | None:
        """Targets of a batch, read from the cache by the collator or asked of the live teacher."""
        request = self.method.request()
        if request is None:
            return None
        if "targets" in inputs:
            return inputs["targets"].to(inputs["labels"].device, non_blocking=True)
        assert self.teacher_model is not None
        labels = inputs["teacher"]["labels"]
        with torch.no_grad():
            logits = answer_logits(self.teacher_model, inputs["teacher"], labels.shape[1])
        mask = labels != IGNORED_LABEL
        return targets_from_logits(logits, mask, request, labels.masked_fill(~mask, 0))

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        """Answer tokens of all micro-batches of a step, of all processes: what the loss is divided by.

        ``average_tokens_across_devices`` makes no difference: dividing by each process's own count would weigh a token
        by the batch that it happens to be in.
        """
        if not batch_samples:
            return None
        count = count_answer_tokens(batch_samples).to(device)
        if self.accelerator.num_processes > 1:
            count = self.accelerator.reduce(count, reduction="sum")
        return count  # pyright: ignore[reportReturnType]

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        """Examples that are not trained on keep their order (`predict`), also where training groups by length."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batches of examples whose loss is reported; they may come as text, as for `evaluate`."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = evaluation_set(eval_dataset, self.args, self.participants)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Batches of the examples of `predict`, which may come as text."""
        examples: Any = evaluation_set(test_dataset, self.args, self.participants)
        return super().get_test_dataloader(examples)

    def evaluation_loop(self, dataloader: DataLoader, *arguments: Any, **options: Any) -> EvalLoopOutput:
        """The loss is cross-entropy an answer token, whatever the method and the batch size; see the class."""
        self._token_mean = TokenMean()
        output = super().evaluation_loop(dataloader, *arguments, **options)
        assert output.metrics is not None
        prefix = options.get("metric_key_prefix", "eval")
        output.metrics[f"{prefix}_loss"] = self._token_mean.value()
        if self.args.predict_with_generate:
            student: Any = self.accelerator.unwrap_model(self.model)
            examples: Any = dataloader.dataset
            scores = answer_scores(student, examples, self.participants.sides[0], self.args, self.accelerator)
            output.metrics.update({f"{prefix}_{name}": value for name, value in scores.items()})
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Cross-entropy of a batch, its answer logits (B, A, V) and labels (B, A): logits t predict label t."""
        inputs = self._prepare_inputs(inputs)  # pyright: ignore[reportAssignmentType]
        labels = inputs["labels"]
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = answer_logits(model, inputs, labels.shape[1])
        counted = without_repeats(labels, self.accelerator)
        with torch.autocast(logits.device.type, enabled=False):
            loss = self._token_mean.add(answer_cross_entropy(logits, counted), counted)
        return (loss, None, None) if prediction_loss_only else (loss, logits.detach(), labels)

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


def refuse_options(options: Mapping[str, Any]) -> None:
    """Refuse arguments of `transformers.Trainer` that this trainer would not ask."""
    instead = {
        "compute_loss_func": "a method of your own (docs/methods)", "model_init": "model=",
        "data_collator": "tokens of your own making in train_dataset",
    }  # fmt: skip
    for name, better in instead.items():
        if options.get(name) is not None:
            raise UsageError(
                f"{name}=", got=str(options[name]), expected=f"none: the trainer has its own; use {better}"
            )


def count_answer_tokens(batches: Sequence[Mapping[str, Any]]) -> Tensor:
    """Labels that are not ignored, in all of some batches: a scalar, int64."""
    return torch.stack([(batch["labels"] != IGNORED_LABEL).sum() for batch in batches]).sum()
