"""What is known to hurt distillation between two tokenizers, said in sentences with a remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from crosskd.text.compare_tokenizers import TokenizerComparison, TokenizerUse

LONGEST_EVALUATED_ANSWER = 150  # default of `crosskd evaluate --max_new_tokens`
_LEAST_OVERLAP = 0.5
_RATIOS = (0.75, 1.33)
_UNEQUAL = 0.5
_UNKNOWN = 0.001


@dataclass(frozen=True)
class Finding:
    """A warning.

    Attributes:
        code: Its name, for scripts.
        text: What is so, why it matters and what helps.
    """

    code: str
    text: str


def find_trouble(comparison: TokenizerComparison, outputs: Mapping[str, int] | None = None) -> list[Finding]:
    """Warn of what is known to hurt, the gravest first.

    Args:
        comparison: What `crosskd.text.compare_tokenizers` found.
        outputs: Vocabulary entries that the models of ``"teacher"`` and ``"student"`` have, where that is known.

    Returns:
        Warnings; an empty list where there is nothing to say.
    """
    return [
        *_missing(comparison, outputs or {}),
        *_lengths(comparison),
        *_cuts(comparison),
        *_overlap(comparison),
        *_special_tokens(comparison),
    ]


def _sides(comparison: TokenizerComparison) -> tuple[tuple[str, TokenizerUse], ...]:
    return ("teacher", comparison.teacher), ("student", comparison.student)


def _missing(comparison: TokenizerComparison, outputs: Mapping[str, int]) -> Iterator[Finding]:
    for name, use in _sides(comparison):
        if outputs.get(name, use.entries) < use.entries:
            yield Finding(
                f"{name}_embeddings_missing",
                f"The {name}'s tokenizer has {use.entries:,} entries and its model only {outputs[name]:,}: a token "
                "beyond them stops a run. Is it the tokenizer of another model?",
            )


def _lengths(comparison: TokenizerComparison) -> Iterator[Finding]:
    for name, use in _sides(comparison):
        if use.misfits:
            yield Finding(
                f"{name}_too_long",
                f"{use.misfits} of {comparison.examples} examples do not fit the {name}'s {use.limit} tokens even "
                "without context, and stop a run: use fewer shots, or drop them in `crosskd prepare`.",
            )
        if use.shortened:
            yield Finding(
                f"{name}_context_cut",
                f"{use.shortened} of {comparison.examples} examples lose the front of their context to fit the "
                f"{name}'s {use.limit} tokens: the answer may stand there.",
            )
    longest = int(comparison.student.answer_tokens.most)
    if longest >= LONGEST_EVALUATED_ANSWER:
        yield Finding(
            "answers_over_generation_limit",
            f"The longest answer has {longest} student tokens; `crosskd evaluate` stops at {LONGEST_EVALUATED_ANSWER} "
            "unless --max_new_tokens is raised.",
        )
    ratio = comparison.answer_ratio.mean
    if not _RATIOS[0] <= ratio <= _RATIOS[1]:
        longer = "teacher" if ratio > 1 else "student"
        yield Finding(
            "answer_ratio",
            f"Answers have {ratio:.2f} teacher tokens for each student token. uld and multilevel_ot pair tokens by "
            f"position, so the {longer}'s last tokens stay without a partner, and pairs drift apart; mined aligns "
            "by text.",
        )
    elif comparison.unequal_answers > _UNEQUAL:
        yield Finding(
            "unequal_answers",
            f"{comparison.unequal_answers:.0%} of the answers have unequal lengths. uld and multilevel_ot pair tokens "
            "by position, which drifts apart where they do; mined aligns by text.",
        )


def _cuts(comparison: TokenizerComparison) -> Iterator[Finding]:
    teacher, student = comparison.teacher.habits, comparison.student.habits
    if teacher.digits != student.digits:
        yield Finding(
            "digits",
            f"Numbers are cut differently (teacher: {teacher.number}, student: {student.number}): from the first "
            "number on, tokens at one position no longer stand for the same text. mined aligns by text.",
        )
    for name, use in _sides(comparison):
        habits = use.habits
        if not habits.keeps_case:
            yield Finding(
                f"{name}_folds_case",
                f"The {name}'s tokenizer does not tell capital from small letters: it cannot "
                + ("write names as the labels have them." if name == "student" else "say how names are written."),
            )
        if not habits.keeps_line_breaks:
            yield Finding(
                f"{name}_loses_line_breaks",
                f"The {name}'s tokenizer turns line breaks into spaces: it sees prompts without their lines.",
            )
        if use.unknown_tokens > _UNKNOWN:
            yield Finding(
                f"{name}_unknown_tokens",
                f"{use.unknown_tokens:.1%} of the {name}'s tokens are {habits.unknown.split()[-1]}: its vocabulary "
                "lacks characters of these data.",
            )


def _overlap(comparison: TokenizerComparison) -> Iterator[Finding]:
    if comparison.overlap.identical:
        yield Finding(
            "identical_tokenizers",
            "Both have the same vocabulary: token-by-token divergence (plain KL) compares the two directly and is the "
            "better loss here.",
        )
    share = comparison.overlap.teacher_share_in_answers
    if share < _LEAST_OVERLAP:
        yield Finding(
            "low_overlap",
            f"Only {share:.0%} of the teacher's answer tokens are entries of the student too: mined, which needs "
            "them, gets little signal. uld and multilevel_ot do not ask for equal entries.",
        )


def _special_tokens(comparison: TokenizerComparison) -> Iterator[Finding]:
    templates = [name for name, use in _sides(comparison) if use.habits.chat_template]
    if len(templates) == 1:
        other = "student" if templates[0] == "teacher" else "teacher"
        yield Finding(
            "one_chat_template",
            f"Only the {templates[0]} has a chat template, so the {other} reads plain prompts. "
            f"--{templates[0]}_prompt_style plain gives both the same text.",
        )
    same = [name for name, use in _sides(comparison) if use.habits.pad == use.habits.eos]
    if same:
        yield Finding(
            "pad_is_eos",
            f"Padding is the end-of-sequence token ({' and '.join(same)}). crosskd masks by length and is not "
            "affected; a trainer that masks by token id would never teach the end of an answer.",
        )
