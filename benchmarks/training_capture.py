"""Capturing targets against a dense forward of the same prompts, and the size of the cache on disk."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from datasets import Dataset
from gpu_measures import default_device, synchronize
from training_steps import BATCH, SHOTS, TASK, all_logits, padded

from crosskd.losses import TeacherTargets, create_method
from crosskd.models.load import LoadedModel
from crosskd.teacher.cache import TargetCache
from crosskd.teacher.run import TeacherRun

SHARD_SIZE = 512  # the default of `crosskd cache`


class Capture:
    """All targets of the data, captured in turns with dense forwards of some of the same prompts.

    Args:
        loaded: The teacher.
        examples: The data.
        turns: Parts that the data are captured in. Each computes the shared prefix again, and checks it.
        dense_examples: Prompts of each part that go through the dense forward, which takes seconds each.
    """

    def __init__(self, loaded: LoadedModel, examples: Dataset, *, turns: int, dense_examples: int) -> None:
        self.run = TeacherRun(loaded, TASK, number_few_shot=SHOTS)
        self.examples = examples
        request = create_method("multilevel_ot").request()
        assert request is not None
        self.request = request
        self.targets: list[TeacherTargets] = []
        self.seconds: list[float] = []  # per example, one value a turn
        self.dense_seconds: list[float] = []
        for turn in range(turns):
            rows = range(turn * len(examples) // turns, (turn + 1) * len(examples) // turns)
            self.seconds.append(self._capture(rows))
            self.dense_seconds.append(self._dense(rows[:dense_examples]))

    def _capture(self, rows: range) -> float:
        started = time.perf_counter()
        part = self.examples.select(rows)
        self.targets += self.run.targets(part, self.request, dtype=torch.float16, batch_size=BATCH)
        synchronize(default_device())
        return (time.perf_counter() - started) / len(rows)

    @torch.no_grad()
    def _dense(self, rows: range) -> float:
        examples = [dict(self.examples[i]) for i in rows]
        tokenized = [self.run.side.tokenize(example, example["answers"][0]) for example in examples]
        started = time.perf_counter()
        for start in range(0, len(tokenized), BATCH):
            all_logits(self.run.loaded.model, padded(tokenized[start : start + BATCH]))
        synchronize(default_device())
        return (time.perf_counter() - started) / len(rows)

    def save(self, folder: Path) -> None:
        """Write the cache as `crosskd cache` does."""
        identity = self.run.identity(self.examples, self.request, torch.float16, SHARD_SIZE)
        cache = TargetCache.create(folder, identity)
        cache.fill(lambda rows: [self.targets[i] for i in rows], cache.problems())

    @property
    def answer_tokens(self) -> int:
        """Answer tokens of the teacher whose targets the cache holds."""
        return sum(int(target.mask.sum()) for target in self.targets)


def disk_rows(capture: Capture, folder: Path) -> list[dict[str, object]]:
    """Bytes on disk, all files of the cache included: 130 a token and 300 an example are allowed."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    tokens, examples = capture.answer_tokens, len(capture.examples)
    name = f"cache on disk, k = 50, {examples} examples, {tokens:,} answer tokens"
    return [
        {"what": name, "value": size, "unit": "bytes"},
        {"what": "cache on disk, an answer token", "value": size / tokens, "unit": "bytes"},
        {"what": "cache on disk, an example", "value": size / examples, "unit": "bytes"},
        {
            "what": "cache on disk / (130 bytes an answer token + 300 an example)",
            "value": size / (130 * tokens + 300 * examples),
            "unit": "ratio",
            "reach": "<= 1",
        },
    ]
