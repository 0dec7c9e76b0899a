"""Two tokenizers compared: what they share, how they cut a user's data, and how long answers come out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from crosskd.errors import UsageError
from crosskd.text.alignment import Vocabulary, align_tokens, read_vocabulary
from crosskd.text.prompts import token_ids
from crosskd.text.sides import Side, supervised_answer
from crosskd.text.tokenizer_habits import Habits, describe_habits, show_piece

QUANTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class Spread:
    """Mean, ends and quantiles (in per cent) of some numbers."""

    mean: float
    least: float
    most: float
    quantiles: dict[str, float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one number."""
        found = np.percentile(values, QUANTILES).tolist()
        names = (str(percent) for percent in QUANTILES)
        return cls(float(np.mean(values)), float(min(values)), float(max(values)), dict(zip(names, found, strict=True)))


@dataclass(frozen=True)
class TokenizerUse:
    """One tokenizer, and what it makes of the data.

    Attributes:
        entries: Entries of its vocabulary, added ones included.
        added: Of those, entries added to the model's own (special tokens, placeholders).
        habits: How it treats digits, spaces and the like.
        tokens_per_word: Tokens of contexts, questions and answers for each word (what white space separates).
        characters_per_token: Their characters for each token.
        unknown_tokens: Share of their tokens that are the unknown token.
        answer_tokens: Tokens of an answer, without the end-of-sequence token.
        sequence_tokens: Tokens of prompt and answer together, after the front of long contexts was dropped.
        shared_prompt_tokens: Tokens with which every prompt begins.
        limit: Longest sequence, in tokens; None for no limit.
        shortened: Examples whose context loses its front to fit.
        misfits: Examples that do not fit even without context.
    """

    entries: int
    added: int
    habits: Habits
    tokens_per_word: float
    characters_per_token: float
    unknown_tokens: float
    answer_tokens: Spread
    sequence_tokens: Spread
    shared_prompt_tokens: int
    limit: int | None
    shortened: int
    misfits: int


@dataclass(frozen=True)
class Overlap:
    """Entries that both vocabularies have, with equal text. Shares are in [0, 1].

    Attributes:
        entries: How many texts both have.
        teacher_share: Of the teacher's texts, those that the student has too.
        student_share: The other way round.
        teacher_share_in_use: The same, each entry counted as often as it occurs in contexts, questions and answers.
        student_share_in_use: The other way round.
        teacher_share_in_answers: The same, in answers only.
        student_share_in_answers: The other way round.
        identical: Whether both have the same texts at the same ids.
    """

    entries: int
    teacher_share: float
    student_share: float
    teacher_share_in_use: float
    student_share_in_use: float
    teacher_share_in_answers: float
    student_share_in_answers: float
    identical: bool


@dataclass(frozen=True)
class SideBySide:
    """An answer in both tokenizations; white space is made visible.

    Attributes:
        id: Of the example.
        question: Its question.
        answer: The answer's text.
        teacher: Pieces of the teacher.
        student: Pieces of the student.
        alignment: For each of the student's pieces the index of the teacher's piece that MinED pairs it with, or -1.
    """

    id: str
    question: str
    answer: str
    teacher: list[str]
    student: list[str]
    alignment: list[int]


@dataclass(frozen=True)
class TokenizerComparison:
    """What `compare_tokenizers` found.

    Attributes:
        examples: Examples looked at.
        teacher: The teacher's tokenizer on them.
        student: The student's.
        overlap: What the vocabularies share.
        answer_ratio: Teacher tokens for each student token of an answer.
        unequal_answers: Share of the answers that have unequal lengths.
        example: One answer in both.
    """

    examples: int
    teacher: TokenizerUse
    student: TokenizerUse
    overlap: Overlap
    answer_ratio: Spread
    unequal_answers: float
    example: SideBySide

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of numbers and texts, ready for JSON."""
        return asdict(self)


def compare_tokenizers(
    teacher: Side, student: Side, examples: Sequence[Mapping[str, Any]], *, supervision: str = "labels"
) -> TokenizerComparison:
    """Compare the tokenizers of two sides on examples, which are read just as training reads them.

    Args:
        teacher: Prompts of the teacher, in its tokenizer.
        student: Prompts of the student.
        examples: Rows of prepared data, at least one.
        supervision: Whose answers: ``"labels"`` or ``"teacher"``.

    Raises:
        UsageError: No example, or none that fits both sides; an answer is missing.
    """
    if not examples:
        raise UsageError("examples", got="none", expected="at least one")
    answers = [supervised_answer(example, supervision) for example in examples]
    texts = [str(example.get(name) or "") for example in examples for name in ("context", "question")]
    readings = [_Reading.of(side, examples, answers, [*texts, *answers]) for side in (teacher, student)]
    both = [i for i, lengths in enumerate(zip(*(reading.answers for reading in readings), strict=True)) if all(lengths)]
    if not both:
        raise _nothing_fits(readings)
    lengths = [[len(reading.answers[i]) for i in both] for reading in readings]
    ratios = [first / second for first, second in zip(*lengths, strict=True)]
    shown = next((i for i in both if readings[0].pieces(i) != readings[1].pieces(i)), both[0])
    return TokenizerComparison(
        examples=len(examples),
        teacher=readings[0].use(both),
        student=readings[1].use(both),
        overlap=_overlap(*readings),
        answer_ratio=Spread.of(ratios),
        unequal_answers=sum(ratio != 1 for ratio in ratios) / len(ratios),
        example=_side_by_side(examples[shown], answers[shown], readings[0].pieces(shown), readings[1].pieces(shown)),
    )


@dataclass
class _Reading:
    """All tokens of one side."""

    side: Side
    vocabulary: Vocabulary
    counts: Counter[int]  # of token ids, in all texts
    words: int
    characters: int
    answers: list[list[int]] = field(default_factory=list)  # [] where the example does not fit
    lengths: list[int] = field(default_factory=list)
    shortened: int = 0

    @classmethod
    def of(
        cls, side: Side, examples: Sequence[Mapping[str, Any]], answers: Sequence[str], texts: Sequence[str]
    ) -> _Reading:
        tokenizer = side.builder.tokenizer
        counts = Counter(token for text in texts for token in token_ids(tokenizer, text))
        reading = cls(
            side, read_vocabulary(tokenizer), counts, sum(len(text.split()) for text in texts), sum(map(len, texts))
        )
        for example, answer in zip(examples, answers, strict=True):
            reading._add(example, answer)
        return reading

    def _add(self, example: Mapping[str, Any], answer: str) -> None:
        try:
            tokenized = self.side.tokenize(example, answer)
        except UsageError:
            if self.side.max_length is None:
                raise
            self.answers.append([])
            self.lengths.append(0)
            return
        ids = tokenized.answer_ids
        self.answers.append(ids[:-1] if self.side.append_eos else ids)
        self.lengths.append(len(tokenized.prompt_ids) + len(ids))
        self.shortened += tokenized.context_tokens_dropped > 0

    def pieces(self, index: int) -> list[str]:
        return self.vocabulary.texts(self.answers[index])

    def use(self, fitting: Sequence[int]) -> TokenizerUse:
        tokenizer = self.side.builder.tokenizer
        total = max(1, self.counts.total())
        return TokenizerUse(
            entries=len(self.vocabulary.pieces),
            added=len(self.vocabulary.added),
            habits=describe_habits(tokenizer, self.vocabulary),
            tokens_per_word=total / max(1, self.words),
            characters_per_token=self.characters / total,
            unknown_tokens=self.counts[self.vocabulary.roles.get("unk", -1)] / total,
            answer_tokens=Spread.of([len(self.answers[i]) for i in fitting]),
            sequence_tokens=Spread.of([self.lengths[i] for i in fitting]),
            shared_prompt_tokens=len(self.side.builder.shared_prefix_ids),
            limit=self.side.max_length,
            shortened=self.shortened,
            misfits=sum(not ids for ids in self.answers),
        )


def _nothing_fits(readings: Sequence[_Reading]) -> UsageError:
    full = [reading.side for reading in readings if not any(reading.answers)]
    limits = " and ".join(f"the {side.name}'s {side.max_length} tokens" for side in full or [r.side for r in readings])
    return UsageError(
        f"{len(readings[0].answers)} examples",
        got=f"none that fits {limits}",
        expected="prompts and answers within the limit",
        fix="use fewer shots (--number_few_shot) or other data",
    )


def _overlap(teacher: _Reading, student: _Reading) -> Overlap:
    teacher_texts, student_texts = ({*reading.vocabulary.pieces} - {""} for reading in (teacher, student))
    in_answers = [Counter(token for ids in reading.answers for token in ids) for reading in (teacher, student)]
    common = teacher_texts & student_texts
    return Overlap(
        entries=len(common),
        teacher_share=len(common) / max(1, len(teacher_texts)),
        student_share=len(common) / max(1, len(student_texts)),
        teacher_share_in_use=_share(teacher.counts, teacher.vocabulary, common),
        student_share_in_use=_share(student.counts, student.vocabulary, common),
        teacher_share_in_answers=_share(in_answers[0], teacher.vocabulary, common),
        student_share_in_answers=_share(in_answers[1], student.vocabulary, common),
        identical=teacher.vocabulary.pieces == student.vocabulary.pieces,
    )


def _share(counts: Counter[int], vocabulary: Vocabulary, common: Iterable[str]) -> float:
    shared = sum(count for token, count in counts.items() if vocabulary.pieces[token] in common)
    return shared / max(1, counts.total())


def _side_by_side(
    example: Mapping[str, Any], answer: str, teacher: Sequence[str], student: Sequence[str]
) -> SideBySide:
    return SideBySide(
        id=str(example.get("id") or ""),
        question=str(example.get("question") or ""),
        answer=answer.strip(),
        teacher=[show_piece(piece) for piece in teacher],
        student=[show_piece(piece) for piece in student],
        alignment=align_tokens(student, teacher),
    )
