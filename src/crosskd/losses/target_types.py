"""What a teacher says about its answers: all that any loss needs, a few bytes a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from crosskd.errors import UsageError

# Fields without a token axis, and those that are numbers. Numbers never become tensors: what moves a batch to its
# device may cast tensors (DeepSpeed: to bfloat16) or lack float64 (MPS), and reading one back is a sync a step.
PER_SEQUENCE = ("column_ids",)
NUMBERS = ("temperatures", "vocabulary_size", "ranked_with")
_ALWAYS = ("mask", "temperatures", "vocabulary_size")


def _most(first: int | None, second: int | None) -> int | None:
    """The larger of two counts, where 0 stands for all there are and None for nothing."""
    counts = [count for count in (first, second) if count is not None]
    if not counts:
        return None
    return 0 if 0 in counts else max(counts)


@dataclass(frozen=True)
class TargetRequest:
    """What a method asks of the teacher. Requests of several methods merge with ``|`` into one that serves them all.

    Attributes:
        top_k: Columns of each sequence to keep, in the order of their summed probability; 0 keeps all, None asks for
            none. A method that wants fewer than the targets hold takes the first ones.
        temperatures: Temperatures other than 1 at which probabilities will be wanted.
        top_entries: Largest entries of each single token to keep, sorted; 0 keeps all, None asks for none.
        entry_ids: Whether the vocabulary ids of those entries are needed too.
        answer_tokens: Whether the ids and log-probabilities of the answer's own tokens are needed.
        standardized: Divide the logits of a token by their standard deviation and rank once for the whole batch, as the
            authors' published code does (``formulation="authors"``). Such targets belong to their batch.
    """

    top_k: int | None = None
    temperatures: tuple[float, ...] = ()
    top_entries: int | None = None
    entry_ids: bool = False
    answer_tokens: bool = False
    standardized: bool = False

    def __or__(self, other: TargetRequest) -> TargetRequest:
        """One request that serves both methods."""
        if self.standardized != other.standardized:
            raise UsageError(
                "formulation",
                got="'authors' together with a method that needs plain logits",
                expected="methods whose targets can be shared",
                fix="make separate targets for formulation='authors'",
            )
        return TargetRequest(
            top_k=_most(self.top_k, other.top_k),
            temperatures=tuple(sorted({*self.temperatures, *other.temperatures})),
            top_entries=_most(self.top_entries, other.top_entries),
            entry_ids=self.entry_ids or other.entry_ids,
            answer_tokens=self.answer_tokens or other.answer_tokens,
            standardized=self.standardized,
        )


@dataclass(frozen=True)
class TeacherTargets:
    """Targets of a batch; every tensor leads with B, so that a batch stacks, slices and shards.

    Log-probabilities and not logits are kept: they are small, so that half precision holds them well. In float16 a
    log-probability is off by at most ``|log p| / 2048`` (and 3e-8), so a probability by ``p |log p| / 2048``: less than
    1.8e-4, and the probabilities of one token together by at most 1/2048 of its entropy in nats.

    Attributes:
        mask: (B, T) bool, true on answer tokens.
        temperatures: Temperatures of ``log_normalizers``, in order.
        vocabulary_size: The teacher's V.
        column_ids: (B, k) int32, ranked columns of each sequence.
        column_log_probabilities: (B, T, k), their log-probabilities at temperature 1.
        log_normalizers: (B, T, n): the log-probability at ``temperatures[i]`` is
            ``log_probability / temperatures[i] - log_normalizers[..., i]``. Float32 even in half-precision targets.
        entry_log_probabilities: (B, T, m), the largest log-probabilities of each token at temperature 1, descending.
        entry_ids: (B, T, m) int32, their vocabulary ids.
        entry_tail: (B, T), the probability outside of the m entries; 0 where m = V.
        answer_ids: (B, T) int64, the answer's own tokens.
        answer_log_probabilities: (B, T), their log-probabilities at temperature 1.
        ranked_with: How many sequences shared the ranking, only in standardized targets; else None.
    """

    mask: Bool[Tensor, "B T"]
    temperatures: tuple[float, ...] = ()
    vocabulary_size: int = 0
    column_ids: Int[Tensor, "B k"] | None = None
    column_log_probabilities: Float[Tensor, "B T k"] | None = None
    log_normalizers: Float[Tensor, "B T n"] | None = None
    entry_log_probabilities: Float[Tensor, "B T m"] | None = None
    entry_ids: Int[Tensor, "B T m"] | None = None
    entry_tail: Float[Tensor, "B T"] | None = None
    answer_ids: Int[Tensor, "B T"] | None = None
    answer_log_probabilities: Float[Tensor, "B T"] | None = None
    ranked_with: int | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by field name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to_dict(self) -> dict[str, Any]:
        """Fields by name: tensors, each leading with B, and plain numbers. ``from_dict`` reads it back."""
        return {**self.tensors(), **{name: getattr(self, name) for name in NUMBERS}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TeacherTargets:
        """Read what ``to_dict`` wrote. One example without the axis B (a ``mask`` of shape (T,)) is given B = 1.

        Raises:
            UsageError: A name that targets do not have, or one of those missing that all have.
        """
        known = {field.name for field in fields(cls)}
        needed = set(_ALWAYS)
        if not needed <= values.keys() <= known:
            raise UsageError(
                "teacher targets",
                got=", ".join(sorted(values)),
                expected=f"{', '.join(sorted(needed))}, and some of {', '.join(sorted(known - needed))}",
            )
        if values["mask"].ndim == 1:
            values = {name: value if name in NUMBERS else value.unsqueeze(0) for name, value in values.items()}
        return cls(**values)

    @classmethod
    def stack(cls, examples: Sequence[TeacherTargets | Mapping[str, Any]]) -> TeacherTargets:
        """One batch of several targets (or of their dictionaries, see ``from_dict``), padded to the longest answer.

        Raises:
            UsageError: No example, examples that hold different things (made for different requests or teachers), or
                standardized ones that were not ranked together.
        """
        parts = [part if isinstance(part, TeacherTargets) else cls.from_dict(part) for part in examples]
        if not parts:
            raise UsageError("teacher targets", got="no example", expected="at least one")
        _check_ranked_together(parts)
        contents = {(part.temperatures, part.vocabulary_size, *part.tensors()) for part in parts}
        if len(contents) > 1:
            raise UsageError(
                "teacher targets",
                got=f"examples of {len(contents)} kinds",
                expected="examples made by one teacher for one request",
                fix="write the cache again",
            )
        longest = max(part.mask.shape[1] for part in parts)
        columns: dict[str, list[Tensor]] = {name: [] for name in parts[0].tensors()}
        for part in parts:
            for name, value in part.tensors().items():
                columns[name].append(value if name in PER_SEQUENCE else _pad_tokens(value, longest))
        return replace(parts[0], **{name: torch.cat(values) for name, values in columns.items()})

    def example(self, index: int) -> TeacherTargets:
        """Sequence ``index`` alone (B = 1), its padding cut off."""
        batch = self.mask.shape[0]
        if not -batch <= index < batch:
            raise UsageError("index", got=index, expected=f"an example in [0, {batch})")
        index %= batch
        tokens = int((self.mask[index] * torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)).amax())
        values = {name: value[index : index + 1] for name, value in self.tensors().items()}
        return replace(
            self, **{name: value if name in PER_SEQUENCE else value[:, :tokens] for name, value in values.items()}
        )

    def to(
        self,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> TeacherTargets:
        """Move to ``device`` and store log-probabilities as ``dtype`` (float16 halves a cache; see the class).

        ``log_normalizers`` and ``entry_tail`` keep at least float32: two or three numbers a token. Without ``dtype``
        every tensor keeps its own. A batch carries targets as this object and not as a dictionary: data loaders move
        it through this method, and nothing that casts the floating tensors of a batch sees it.
        """
        tensors = self.tensors()
        if dtype is not None:
            tensors = {name: _narrow(name, value, dtype) for name, value in tensors.items()}
        return replace(self, **{name: value.to(device, non_blocking=non_blocking) for name, value in tensors.items()})

    def pin_memory(self) -> TeacherTargets:
        """Put the tensors into page-locked memory, from which they are copied faster; data loaders call it."""
        return replace(self, **{name: value.pin_memory() for name, value in self.tensors().items()})


def _check_ranked_together(parts: Sequence[TeacherTargets]) -> None:
    """Refuse standardized targets of different batches: they are looked at here, so that no step has to."""
    ranked = [part for part in parts if part.ranked_with is not None]
    if not ranked:
        return
    ids = torch.cat([part.column_ids for part in ranked if part.column_ids is not None])
    sizes = sorted({part.ranked_with for part in parts}, key=str)
    if len(sizes) > 1 or bool((ids != ids[:1]).any()):
        raise UsageError(
            "teacher targets",
            got=f"examples ranked in batches of {' and '.join(map(str, sizes))}, which differ",
            expected="examples of one batch: formulation='authors' ranks over the batch",
            fix="distil with a live teacher, or use formulation='paper'",
        )


def _pad_tokens(value: Tensor, tokens: int) -> Tensor:
    """Pad the token axis (axis 1) with zeros, or False, to ``tokens``."""
    return pad(value, (0, 0) * (value.ndim - 2) + (0, tokens - value.shape[1]))


def _narrow(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating tensor in ``dtype``, without letting a log-probability run into minus infinity."""
    if not value.is_floating_point():
        return value
    if not name.endswith("log_probabilities"):
        return value.to(torch.promote_types(dtype, torch.float32))
    return value.clamp(min=torch.finfo(dtype).min).to(dtype)
