"""A teacher's answers to a data set: written in shards, resumed after the last whole one, assembled at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, DatasetDict

from crosskd import __version__
from crosskd.data.prepare import SUMMARY_FILE
from crosskd.data.quiet import without_progress_bars
from crosskd.errors import UsageError
from crosskd.files import read_json, read_jsonl, write_json, write_jsonl
from crosskd.models.limits import check_token_ids, longest_prompt
from crosskd.teacher.backends import AnswerBackend
from crosskd.teacher.decoding import Decoding
from crosskd.teacher.identity import check_identity, data_sha256, model_fields, prompt_sha256, tokenizer_sha256
from crosskd.text.prompts import PromptBuilder, PromptStyle
from crosskd.text.tasks import load_task

WORK_FOLDER = ".answers"
ANSWER_SUMMARY = "answer_summary.json"
_IDENTITY = "identity.json"
_COLUMN = "teacher_answer"


class TeacherAnswers:
    """A teacher with its prompts, asked for answers.

    Args:
        backend: The teacher.
        task: Name of a task, or a YAML file.
        decoding: How tokens are chosen.
        number_few_shot: Shots in the prompt.
        prompt_style: ``"auto"``, ``"plain"`` or ``"chat"``.
        max_length: Longest prompt and answer together, in tokens; None takes the model's limit. Longer contexts lose
            their front.

    Raises:
        UsageError: The prompt cannot be built (see `PromptBuilder`), or no room is left for it.
    """

    def __init__(
        self,
        backend: AnswerBackend,
        task: str,
        decoding: Decoding,
        *,
        number_few_shot: int = 5,
        prompt_style: PromptStyle = "auto",
        max_length: int | None = None,
    ) -> None:
        self.backend = backend
        self.task = load_task(task)
        self.decoding = decoding
        self.builder = PromptBuilder(
            backend.tokenizer,
            self.task,
            number_few_shot=number_few_shot,
            style=prompt_style,
            append_eos=backend.config.is_encoder_decoder,
        )
        self.longest_prompt = longest_prompt(backend.config, backend.tokenizer, max_length, decoding.max_new_tokens)
        self._prompts = {"number_few_shot": number_few_shot, "prompt_style": prompt_style}

    def check(self, examples: Dataset) -> None:
        """Refuse examples with tokens that the teacher has no embeddings for, before it is asked for any answer.

        Only a tokenizer with more entries than the model has embeddings can give such tokens; others are not asked.

        Raises:
            UsageError: Names the first such example.
        """
        embeddings = getattr(self.backend.config.get_text_config(decoder=True), "vocab_size", None)
        if embeddings is not None and len(self.backend.tokenizer) > embeddings:
            rows = ((row["id"], self.builder.build(row, max_tokens=self.longest_prompt)) for row in _rows(examples))
            named = ((f"prompt of example {name!r}", prompt.ids) for name, prompt in rows)
            check_token_ids(named, embeddings, self.backend.teacher)

    def answer(self, examples: Dataset, advance: Callable[[int], None] | None = None) -> list[dict[str, Any]]:
        """For each example its ``id``, ``teacher_answer`` and ``context_tokens_dropped``."""
        prompts = [self.builder.build(example, max_tokens=self.longest_prompt) for example in _rows(examples)]
        answers = self.backend.answers(
            [prompt.ids for prompt in prompts],
            self.decoding,
            shared_prefix=self.builder.shared_prefix_ids,
            advance=advance,
        )
        return [
            {"id": name, _COLUMN: answer, "context_tokens_dropped": prompt.context_tokens_dropped}
            for name, answer, prompt in zip(examples["id"], answers, prompts, strict=True)
        ]

    def identity(self, examples: Dataset, split: str, shard_size: int) -> dict[str, Any]:
        """All that decides what the answers are; the batch size is not part of it (rounding apart)."""
        revision = getattr(self.backend.config, "_commit_hash", None)
        return {
            "teacher": self.backend.teacher,
            "teacher_revision": revision,
            **model_fields(self.backend.teacher, revision),
            "teacher_dtype": self.backend.dtype,
            "teacher_quantization": self.backend.quantization,
            "backend": self.backend.name,
            "tokenizer_sha256": tokenizer_sha256(self.backend.tokenizer),
            "task": self.task.name,
            "prompt_sha256": prompt_sha256(self.task, self._prompts["number_few_shot"]),
            **self._prompts,
            "longest_prompt": self.longest_prompt,
            **asdict(self.decoding),
            "split": split,
            "data_sha256": data_sha256(examples, "labels"),
            "examples": len(examples),
            "shard_size": shard_size,
            "crosskd_version": __version__,
        }


@dataclass(frozen=True)
class AnswerFolder:
    """The folder in which answers are collected, under ``.answers``, and assembled.

    Attributes:
        folder: Where the answered data set will be written.
        identity: What the answers are made from; it guards what an earlier run left.
    """

    folder: Path
    identity: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any]) -> AnswerFolder:
        """Start, or go on with what an earlier run of the same identity left.

        Raises:
            UsageError: The folder holds answers made from something else; names every field that differs.
        """
        path = folder / WORK_FOLDER / _IDENTITY
        if path.is_file():
            check_identity(read_json(path), identity, f"--output {folder}")
        else:
            write_json(path, dict(identity))
        return cls(folder, dict(identity))

    @property
    def finished(self) -> bool:
        """Whether the answered data set is whole."""
        return (self.folder / ANSWER_SUMMARY).is_file()

    def missing(self) -> list[int]:
        """Shards that are not written yet."""
        return [shard for shard in range(self._shard_count) if not self._path(shard).is_file()]

    def examples_of(self, shard: int) -> range:
        """The examples whose answers a shard holds."""
        size = self.identity["shard_size"]
        return range(shard * size, min((shard + 1) * size, self.identity["examples"]))

    def write(self, shard: int, rows: list[dict[str, Any]]) -> None:
        """Write a shard; it is there whole or not at all."""
        write_jsonl(self._path(shard), rows)

    def rows(self, examples: Dataset) -> list[dict[str, Any]]:
        """What all shards hold, in the order of the examples.

        Raises:
            UsageError: A shard is damaged (named).
        """
        rows: list[dict[str, Any]] = []
        for shard in range(self._shard_count):
            written = read_jsonl(self._path(shard))
            wanted = [examples[index]["id"] for index in self.examples_of(shard)]
            if [row.get("id") for row in written] != wanted or any(_COLUMN not in row for row in written):
                raise UsageError(
                    f"{self._path(shard)}", got="other examples than it should hold", fix="delete it and --resume"
                )
            rows += written
        return rows

    def assemble(self, splits: DatasetDict, form: Literal["arrow", "jsonl"], prepared: Path | None) -> dict[str, Any]:
        """Put the answers beside their examples, and move all splits into place.

        Args:
            splits: The examples; those of the answered split get the column ``teacher_answer``.
            form: ``"arrow"`` (what `load_examples` reads) or ``"jsonl"`` (a file a split, which ``prepare`` reads).
            prepared: A folder whose summary of `prepare` is copied, or None.

        Returns:
            The summary that is written to ``answer_summary.json``: the identity, and how many answers are empty and
            how many contexts were shortened.
        """
        split = self.identity["split"]
        rows = self.rows(splits[split])
        summary = {
            **self.identity,
            "empty_answers": sum(not row[_COLUMN].strip() for row in rows),
            "truncated_examples": sum(row["context_tokens_dropped"] > 0 for row in rows),
        }
        plain = splits[split].select_columns([name for name in splits[split].column_names if name != _COLUMN])
        answered = plain.add_column(_COLUMN, [row[_COLUMN] for row in rows])  # pyright: ignore[reportCallIssue]
        beside = self.folder / WORK_FOLDER / "assembled"
        shutil.rmtree(beside, ignore_errors=True)
        _save(DatasetDict({**splits, split: answered}), beside, form)
        if prepared is not None and (prepared / SUMMARY_FILE).is_file():
            shutil.copyfile(prepared / SUMMARY_FILE, beside / SUMMARY_FILE)
        write_json(beside / ANSWER_SUMMARY, summary)
        for unfinished in (self.folder / WORK_FOLDER).glob(".*.part"):
            unfinished.unlink()  # an earlier run was killed while it wrote
        _move_into(beside, self.folder)
        return summary

    @property
    def _shard_count(self) -> int:
        return -(-self.identity["examples"] // self.identity["shard_size"])

    def _path(self, shard: int) -> Path:
        return self.folder / WORK_FOLDER / f"{shard:05d}.jsonl"


def _rows(examples: Dataset) -> list[Mapping[str, Any]]:
    return [dict(example) for example in examples]  # pyright: ignore[reportArgumentType, reportCallIssue]


def _save(splits: DatasetDict, folder: Path, form: str) -> None:
    if form == "jsonl":
        for name, dataset in splits.items():
            write_jsonl(folder / f"{name}.jsonl", _rows(dataset))
        return
    with without_progress_bars():
        splits.save_to_disk(str(folder))


def _move_into(source: Path, folder: Path) -> None:
    """Move what ``source`` holds, so that the files which say that the rest is whole come last."""
    last = ("dataset_dict.json", ANSWER_SUMMARY)
    entries = sorted(source.iterdir(), key=lambda path: last.index(path.name) + 1 if path.name in last else 0)
    for entry in entries:
        target = folder / entry.name
        if target.is_dir():
            shutil.rmtree(target)  # an earlier run was killed between moves
        entry.replace(target)
    shutil.rmtree(source)
