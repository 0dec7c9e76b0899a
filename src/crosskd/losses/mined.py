"""MinED: token alignment and vocabulary map by edit distance, then KL (Wan et al. 2024, arXiv 2401.10491)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from crosskd.errors import UsageError
from crosskd.losses.base import DistillationMethod, StudentAnswers, required_targets
from crosskd.losses.partition_pass import partition_pass
from crosskd.losses.registry import register
from crosskd.losses.targets import TargetRequest, TeacherTargets
from crosskd.losses.teacher_entries import checked_top_entries, largest_teacher_entries

Alignment = Literal["strict", "dtw"]
Remainder = Literal["kept", "dropped"]


@register
@dataclass(frozen=True)
class MinED(DistillationMethod):
    """Minimum-edit-distance distillation: KL from the teacher's mapped entries to the student's.

    For each student token with an aligned teacher token, with ``q_v`` the sum of the probabilities of the teacher's
    kept entries that map to student entry v, and ``r`` the probability of all its others (beyond the largest m, or
    without a match)::

        sum_v q_v log(q_v / s_v) + r log(r / s_rest),    s_rest = the student's probability outside of those v

    which is the KL divergence of "each mapped entry, or anything else". It needs no renormalization, is zero where the
    student agrees, and grows with m towards the KL on all mapped entries: what it leaves out is the KL inside the
    rest, weighted with r. Temperature 1; tokens without an aligned teacher token, and those whose teacher token has no
    kept entry with a match, contribute nothing.

    With ``remainder="dropped"`` there is no such outcome. Of the entries that map to one student entry only the most
    probable counts, and what is kept is renormalized::

        sum_v q_v log(q_v / s_v),    sum_v q_v = 1

    With ``alignment="dtw"`` a student token without a teacher learns its own label instead of nothing: the target is
    one-hot, and the divergence ``-log s_label``.

    Note:
        MinED as Wan et al. published it (FuseLLM's code) is ``MinED(top_entries=10, edit_distance_cutoff=1.0,
        alignment="dtw", remainder="dropped")``; docs/methods/mined.md lists what still differs. The defaults give
        a token no label as a teacher, and do not renormalize what may be a small part of a distribution to 1.

    Attributes:
        top_entries: m; None or 0 for all.
        edit_distance_cutoff: Normalized edit distance in (0, 1] below which an entry is a match; 1.0 is the published
            rule. Used by whoever makes the map.
        alignment: ``"strict"``, one student token to one teacher token at most (``align_tokens``), or ``"dtw"``
            (``align_by_warping``). Used by whoever aligns; here it decides what tokens without a teacher learn.
        remainder: Whether the teacher's probability beyond its mapped entries is ``"kept"`` as one more outcome, or
            ``"dropped"``.
        vocabulary_map: (V_t,) int64, student id of each teacher id, -1 for none; set with ``with_vocabulary_map``.
    """

    name: ClassVar[str] = "mined"
    needs_alignment: ClassVar[bool] = True

    top_entries: int | None = 200
    edit_distance_cutoff: float = 0.5
    alignment: Alignment | str = "strict"
    remainder: Remainder | str = "kept"
    vocabulary_map: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    # The map on each device that asked for it: some megabytes that no step should have to copy.
    _maps: dict[torch.device, Tensor] = field(
        default_factory=dict[torch.device, Tensor], init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        checked_top_entries(self.top_entries)
        if not 0 < self.edit_distance_cutoff <= 1:
            raise UsageError("edit_distance_cutoff", got=self.edit_distance_cutoff, expected="a distance in (0, 1]")
        for name, choices in (("alignment", get_args(Alignment)), ("remainder", get_args(Remainder))):
            if getattr(self, name) not in choices:
                raise UsageError(name, got=getattr(self, name), expected=" or ".join(choices))

    def with_vocabulary_map(self, vocabulary_map: Int[Tensor, " V_t"]) -> MinED:
        """This method for one pair of tokenizers.

        Args:
            vocabulary_map: (V_t,) int64 from ``crosskd.text.vocabulary_map.load_vocabulary_map``, on any device: the
                first call moves a copy to that of the targets, and the method keeps it there.
        """
        method = replace(self)
        object.__setattr__(method, "vocabulary_map", vocabulary_map.long())
        return method

    def request(self) -> TargetRequest:
        """The largest probabilities of each token, with their ids."""
        return TargetRequest(top_entries=self.top_entries or 0, entry_ids=True)

    def terms(self, student: StudentAnswers, targets: TeacherTargets | None) -> dict[str, Tensor]:
        """``cross_entropy``, ``distillation``, and what the teacher's aligned tokens lost.

        Returns:
            Also ``tail_mass``, the teacher's probability beyond the top entries, and ``unmapped_mass``, that of the top
            entries without a match; both summed over the aligned tokens. With ``alignment="dtw"`` also
            ``label_targets``: how many tokens learn their label.

        Raises:
            UsageError: No targets, no alignment, or no vocabulary map.
        """
        targets = required_targets(targets, self.name, "entry_log_probabilities", "entry_ids", "entry_tail")
        if student.alignment is None:
            raise UsageError(
                "alignment of mined", got="none", fix="pass StudentAnswers(alignment=...) from align_tokens"
            )
        if self.vocabulary_map is None:
            raise UsageError(
                "vocabulary map of mined", got="none", fix="call with_vocabulary_map(load_vocabulary_map(...))"
            )
        aligned, index = _aligned(student, targets)
        log_probabilities, tail = largest_teacher_entries(targets, self.top_entries)
        dtype = torch.promote_types(log_probabilities.dtype, torch.float32)
        probabilities = _take(log_probabilities, index).to(dtype).exp()
        assert targets.entry_ids is not None  # `required_targets` made sure
        teacher_ids = _take(targets.entry_ids[..., : probabilities.shape[-1]], index)
        mapped = self._map(teacher_ids.long(), student.logits.shape[-1])
        tail = _take(tail.unsqueeze(-1), index).squeeze(-1).to(dtype)
        unmapped = (probabilities * (mapped < 0)).sum(-1)
        left_out = {"tail_mass": tail, "unmapped_mass": unmapped}
        found = {name: mass.masked_fill(~aligned, 0).sum() for name, mass in left_out.items()}
        compared, rest = aligned & (mapped >= 0).any(-1), tail + unmapped
        if self.alignment == "dtw":
            alone = student.mask & ~compared
            probabilities, mapped = _with_labels(probabilities, mapped, student.labels, alone)
            compared, rest = student.mask, rest.masked_fill(alone, 0)
            found["label_targets"] = alone.to(dtype).sum()
        mass, ids, keep = merge_entries(probabilities, mapped, largest=self.remainder == "dropped")
        if self.remainder == "dropped":
            mass = mass / mass.sum(-1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
            rest = torch.zeros_like(rest)
        answers = partition_pass(student.logits, ids, keep, student.labels)
        losses = _divergence(mass, rest, answers.log_probabilities, answers.log_rest)
        distillation = losses.masked_fill(~compared, 0).sum()
        return {"cross_entropy": answers.cross_entropy, "distillation": distillation, **found}

    def _map(self, teacher_ids: Int[Tensor, "B T m"], student_vocabulary: int) -> Int[Tensor, "B T m"]:
        """Student ids of teacher ids, -1 for none; columns that only pad the teacher's logits have none."""
        table = self._map_on(teacher_ids.device)
        mapped = table[teacher_ids.clamp(max=table.shape[0] - 1)]
        known = (teacher_ids < table.shape[0]) & (mapped < student_vocabulary)
        return mapped.masked_fill(~known, -1)

    def _map_on(self, device: torch.device) -> Int[Tensor, " V_t"]:
        assert self.vocabulary_map is not None  # `terms` made sure
        if device not in self._maps:
            self._maps[device] = self.vocabulary_map.to(device)
        return self._maps[device]


def merge_entries(
    probabilities: Float[Tensor, "B T m"], mapped: Int[Tensor, "B T m"], *, largest: bool = False
) -> tuple[Float[Tensor, "B T m"], Int[Tensor, "B T m"], Bool[Tensor, "B T m"]]:
    """Add up the probabilities of entries that map to one student entry.

    Args:
        probabilities: (B, T, m) of the teacher's entries.
        mapped: (B, T, m) int64, their student ids, -1 for none.
        largest: Take the largest of them instead of their sum.

    Returns:
        (B, T, m) each: mass, 0 in slots that are not kept; student ids; and whether the slot is kept. The ids are those
        that ``partition_pass`` wants: each kept once, the other slots repeating a kept one. A token without any mapped
        entry keeps id 0 with a mass of zero.
    """
    last = torch.iinfo(mapped.dtype).max
    ids, order = mapped.masked_fill(mapped < 0, last).sort(dim=-1)
    probabilities = probabilities.gather(-1, order).masked_fill(ids == last, 0)
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[..., 1:] = (ids[..., 1:] != ids[..., :-1]) & (ids[..., 1:] != last)
    # Slot of each entry's group: the number of kept slots so far. Unmapped entries fall into the last group, with 0.
    group = keep.long().cumsum(-1) - 1
    masses = torch.zeros_like(probabilities).scatter_reduce_(-1, group, probabilities, "amax" if largest else "sum")
    mass = masses.gather(-1, group).masked_fill(~keep, 0)
    ids = torch.where(ids == last, ids[..., :1], ids)
    return mass, ids.masked_fill(ids == last, 0), keep


def _aligned(student: StudentAnswers, targets: TeacherTargets) -> tuple[Bool[Tensor, "B T_s"], Int[Tensor, "B T_s"]]:
    """Which student tokens have a teacher token, and its index; T_t, one past the last, where there is none."""
    assert student.alignment is not None  # `terms` made sure
    none = targets.mask.shape[1]
    inside = (student.alignment >= 0) & (student.alignment < none)
    index = student.alignment.masked_fill(~inside, none)
    return student.mask & pad(targets.mask, (0, 1)).gather(1, index), index


def _take(values: Tensor, index: Int[Tensor, "B T_s"]) -> Tensor:
    """Rows (B, T_s, m) of (B, T_t, m) values; zeros for the index T_t."""
    return pad(values, (0, 0, 0, 1)).gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _with_labels(
    probabilities: Float[Tensor, "B T m"],
    mapped: Int[Tensor, "B T m"],
    labels: Int[Tensor, "B T"],
    alone: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T m"], Int[Tensor, "B T m"]]:
    """Entries of the tokens that are ``alone`` replaced by one: their label, with probability 1."""
    first = torch.arange(mapped.shape[-1], device=mapped.device) == 0
    of_label = torch.where(first, labels.unsqueeze(-1), -1)
    alone = alone.unsqueeze(-1)
    return torch.where(alone, first.to(probabilities.dtype), probabilities), torch.where(alone, of_label, mapped)


def _divergence(
    mass: Float[Tensor, "B T m"],
    rest: Float[Tensor, "B T"],
    log_probabilities: Float[Tensor, "B T m"],
    log_rest: Float[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """KL divergence of each token; a rest for which the student has no entry left is left out."""
    rest = rest.masked_fill(log_rest == -torch.inf, 0)
    log_rest = log_rest.masked_fill(log_rest == -torch.inf, 0)
    entropies = torch.xlogy(mass, mass).sum(-1) + torch.xlogy(rest, rest)
    return entropies - (mass * log_probabilities).sum(-1) - rest * log_rest
