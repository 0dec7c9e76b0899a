"""How one tokenizer treats digits, spaces, line breaks, case and special tokens, found by asking it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from crosskd.text.alignment import Vocabulary
from crosskd.text.prompts import token_ids

DigitHabit = Literal["one by one", "groups of three from the left", "groups of three from the right", "learned pieces"]

# Numbers that no tokenizer has learned whole, of three lengths: groups of three begin at the left or at the right.
_NUMBERS = ("8907654", "31415926", "907658")
_SPACES = 16
_SIGNS = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class Habits:
    """Plain findings about a tokenizer; each text fits a cell of a table.

    Attributes:
        digits: How a number is cut.
        number: An example of it, pieces separated by ``|``.
        spaces: Where the space between two words goes.
        prefix_space: Whether a text is treated as if a space stood before it.
        space_runs: What becomes of several spaces.
        line_breaks: What becomes of line breaks.
        keeps_line_breaks: Whether they differ from spaces at all.
        keeps_case: Whether capital letters differ from small ones.
        keeps_accents: Whether accents are kept.
        unknown: What becomes of a character that the vocabulary lacks.
        before: Special tokens that the tokenizer puts before a text by itself.
        after: Likewise after it.
        bos: Beginning-of-sequence token; None without one.
        eos: End-of-sequence token.
        pad: Padding token.
        chat_template: Whether there is a chat template.
    """

    digits: DigitHabit
    number: str
    spaces: str
    prefix_space: bool
    space_runs: str
    line_breaks: str
    keeps_line_breaks: bool
    keeps_case: bool
    keeps_accents: bool
    unknown: str
    before: str
    after: str
    bos: str | None
    eos: str | None
    pad: str | None
    chat_template: bool


def describe_habits(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> Habits:
    """Ask a tokenizer for a few words, and see what it does.

    Args:
        tokenizer: A tokenizer of transformers.
        vocabulary: What `crosskd.text.alignment.read_vocabulary` reads of it.
    """

    def pieces(text: str) -> list[str]:
        return vocabulary.texts(token_ids(tokenizer, text))

    def same(first: str, second: str) -> bool:
        return token_ids(tokenizer, first) == token_ids(tokenizer, second)

    before, after = _added_around(tokenizer)
    return Habits(
        digits=_digit_habit([_number_pieces(pieces(f"in {number} of")) for number in _NUMBERS]),
        number="|".join(_number_pieces(pieces(f"in {_NUMBERS[0]} of"))),
        spaces=_space_habit(pieces("the end of the day and the night")),
        prefix_space=pieces("the")[:1] != [] and pieces("the")[0].startswith(" "),
        space_runs=_run_habit(pieces(f"the{' ' * _SPACES}end"), same("the        end", "the end")),
        line_breaks=_break_habit(pieces("the\n\nend"), same("the\nend", "the end")),
        keeps_line_breaks=not same("the\nend", "the end"),
        keeps_case=not same("THE End", "the end"),
        keeps_accents=not same("été", "ete"),
        unknown="becomes " + str(tokenizer.unk_token) if _loses_characters(tokenizer) else "spelled in bytes or parts",
        before=before,
        after=after,
        bos=_text(tokenizer.bos_token),
        eos=_text(tokenizer.eos_token),
        pad=_text(tokenizer.pad_token),
        chat_template=bool(getattr(tokenizer, "chat_template", None)),
    )


def show_piece(piece: str) -> str:
    """A piece with its white space made visible, and bytes that are no whole character as ``<E4>``."""
    return "".join(
        _SIGNS.get(letter, f"<{ord(letter) - 0xDC00:02X}>" if "\udc80" <= letter <= "\udcff" else letter)
        for letter in piece
    )


def _number_pieces(pieces: Sequence[str]) -> list[str]:
    stripped = (piece.strip().removeprefix("##") for piece in pieces)
    return [piece for piece in stripped if piece.isdigit()]


def _digit_habit(numbers: Sequence[Sequence[str]]) -> DigitHabit:
    sizes = [[len(piece) for piece in number] for number in numbers]
    if all(size == 1 for number in sizes for size in number):
        return "one by one"
    if all(number and number == _threes(sum(number)) for number in sizes):
        return "groups of three from the left"
    if all(number and number == _threes(sum(number))[::-1] for number in sizes):
        return "groups of three from the right"
    return "learned pieces"


def _threes(digits: int) -> list[int]:
    return [3] * (digits // 3) + ([digits % 3] if digits % 3 else [])


def _space_habit(pieces: Sequence[str]) -> str:
    inner = pieces[1:]
    if any(len(piece) > 1 and piece.startswith(" ") for piece in inner):
        return "part of the word after it"
    if " " in inner:
        return "a token of its own"
    if any(len(piece) > 1 and piece.endswith(" ") for piece in pieces):
        return "part of the word before it"
    return "dropped"


def _run_habit(pieces: Sequence[str], collapsed: bool) -> str:
    if collapsed:
        return "become one"
    longest = max((len(piece) for piece in pieces if piece and not piece.strip(" ")), default=1)
    return f"up to {longest} in a token" if longest > 1 else "a token each"


def _break_habit(pieces: Sequence[str], lost: bool) -> str:
    if lost:
        return "become spaces"
    return "two are one token" if any("\n\n" in piece for piece in pieces) else "a token each"


def _loses_characters(tokenizer: PreTrainedTokenizerBase) -> bool:
    unknown = tokenizer.unk_token_id
    return unknown is not None and unknown in token_ids(tokenizer, "\U00010384 \ua500")  # Ugaritic, Vai: rare scripts


def _added_around(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    plain = token_ids(tokenizer, "a")
    marked: list[int] = list(tokenizer("a", add_special_tokens=True)["input_ids"])  # pyright: ignore[reportArgumentType]
    for start in range(len(marked) - len(plain) + 1):
        if marked[start : start + len(plain)] == plain:
            around = (marked[:start], marked[start + len(plain) :])
            before, after = (" ".join(tokenizer.convert_ids_to_tokens(ids)) for ids in around)
            return before, after
    return "", ""


def _text(token: object) -> str | None:
    return None if token is None else str(token)
