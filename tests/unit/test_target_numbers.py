"""Numbers of targets on their way through data loaders and trainers that cast tensors or have no float64."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from crosskd.losses import StudentAnswers, TargetRequest, TeacherTargets, create_method, targets_from_logits
from crosskd.teacher.cache import TargetCache
from crosskd.teacher.identity import request_fields

TEMPERATURES = (1.7, 0.1 + 0.2)  # neither is a float32, let alone a bfloat16
REQUEST = TargetRequest(top_k=4, temperatures=TEMPERATURES, top_entries=3, entry_ids=True)


def targets_of(index: int) -> TeacherTargets:
    logits = torch.randn(1, 2 + index, 9, generator=torch.Generator().manual_seed(index))
    return targets_from_logits(logits, torch.ones(logits.shape[:2], dtype=torch.bool), REQUEST)


def cache_of(folder: Path) -> TargetCache:
    identity = {"teacher": "t", "examples": 4, "shard_size": 2, **request_fields(REQUEST)}
    cache = TargetCache.create(folder, identity)
    cache.fill(lambda rows: [targets_of(index) for index in rows], cache.problems())
    return TargetCache.open(folder)


def collate(rows: list[dict[str, object]]) -> dict[str, object]:
    return {"labels": torch.zeros(len(rows), 3, dtype=torch.long), "targets": TeacherTargets.stack(rows)}


def assert_whole(targets: TeacherTargets) -> None:
    assert targets.temperatures == tuple(sorted(TEMPERATURES))
    assert all(type(number) is float for number in targets.temperatures)
    assert type(targets.vocabulary_size) is int
    assert targets.vocabulary_size == 9
    assert targets.log_normalizers is not None
    assert targets.log_normalizers.dtype == torch.float32


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_and_accelerate_move_targets_whole(workers: int, tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "c")
    loader = DataLoader(cache, batch_size=2, collate_fn=collate, num_workers=workers)  # pyright: ignore[reportArgumentType]
    batches = [send_to_device(batch, torch.device("cpu"), non_blocking=True) for batch in loader]
    assert len(batches) == 2
    for start, batch in zip((0, 2), batches, strict=True):
        targets = batch["targets"]
        assert_whole(targets)
        expected = TeacherTargets.stack([targets_of(start), targets_of(start + 1)])
        for name, value in expected.tensors().items():
            torch.testing.assert_close(getattr(targets, name), value, rtol=0, atol=0)


def test_a_trainer_that_casts_floating_inputs_leaves_targets_alone(tmp_path: Path) -> None:
    """What `transformers.Trainer` does to a batch under DeepSpeed: every floating tensor of it becomes bfloat16."""

    def prepared(data: object) -> object:
        if isinstance(data, dict):
            return {name: prepared(value) for name, value in data.items()}
        if isinstance(data, Tensor):
            return data.to(torch.bfloat16) if data.is_floating_point() else data
        return data

    cache = cache_of(tmp_path / "c")
    batch = prepared({**collate([cache[0], cache[1]]), "other": torch.ones(2)})
    assert batch["other"].dtype == torch.bfloat16  # pyright: ignore[reportIndexIssue]
    assert_whole(batch["targets"])  # pyright: ignore[reportIndexIssue]


def test_targets_go_to_a_device_without_float64(tmp_path: Path) -> None:
    """MPS refuses float64: no tensor of a float32 cache may have it."""
    cache = cache_of(tmp_path / "c")
    targets = TeacherTargets.stack([cache[index] for index in range(4)])
    assert all(value.dtype != torch.float64 for value in targets.tensors().values())
    assert_whole(targets.to("meta"))
    assert all(value.is_meta for value in targets.to("meta", non_blocking=True).tensors().values())


def test_pinning_and_pickling_keep_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda value: pinned.append(value) or value)
    targets = targets_of(1)
    assert_whole(targets.pin_memory())
    assert len(pinned) == len(targets.tensors())
    assert_whole(pickle.loads(pickle.dumps(targets)))


class _Syncs(TorchDispatchMode):
    """Counts values read back from tensors: each would stop a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_cached_step_reads_no_number_back(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "c")
    method = create_method("uld", top_entries=3)
    batch = collate([cache[0], cache[1]])
    labels = torch.tensor([[1, 2, 3], [1, 2, -100]])
    student = StudentAnswers(torch.randn(2, 3, 11), labels, labels != -100)
    with _Syncs() as syncs:
        targets = batch["targets"].to("cpu")  # pyright: ignore[reportAttributeAccessIssue]
        method.terms(student, targets)
    assert syncs.count == 0
