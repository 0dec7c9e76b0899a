"""When a row of a batch has written enough: at its first line, at an end token, or because its logits are no numbers.

All of it happens on the device where the tokens are, and reads the newest token only. Nothing here waits for the device
while a model writes, but for tokenizers that `line_table` does not know.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

from crosskd.errors import UsageError
from crosskd.evaluation.line_ends import DONE, LINE_BREAK, START, LineTable, decode_answer, line_table

_NAMES_A_BREAK = re.compile(r"[\r\nĊč]|<0x0[AaDd]>")  # Ċ and č are the line breaks of byte-level BPE


class AnswerComplete(StoppingCriteria):
    """Finishes a row once its new text holds a line break after something else than white space, or at an end token.

    Where `line_table` knows the tokenizer this is four operations a token, none of which waits for the device. Where it
    does not, the newest tokens are read on the host, and a row is decoded from a token that may bring a line break on,
    until that shows in its text.

    Args:
        tokenizer: Of the model that writes; it is only read.
        start: Column of the first new token.
        ends: Tokens that end a row.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int, ends: Sequence[int] = ()) -> None:
        table = line_table(tokenizer)
        self._rows: _Rows = _DecodedRows(tokenizer, start, ends) if table is None else _FollowedRows(table, ends)
        self._read = start
        self.finished: Tensor | None = None
        """Which of the B rows were finished when it was asked last, a bool tensor (B,); None before."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - a tensor (B,), as the base class documents
        self, input_ids: Tensor, scores: object, **kwargs: Any
    ) -> Tensor:
        """Which of the B rows of ``input_ids`` (B, length) are finished, a bool tensor (B,)."""
        finished = self.finished
        for length in range(self._read + 1, input_ids.shape[1] + 1):
            finished = self._rows.read(input_ids[:, :length])
        if finished is None:
            finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        self._read, self.finished = input_ids.shape[1], finished
        return finished


class FiniteLogits(LogitsProcessor):
    """Remembers logits that are NaN or plus infinity, of which greedy decoding would make an answer all the same.

    Finished rows do not count: what the model makes of the padding behind them is of no interest. `NotFinite` ends the
    batch at once, `check` refuses it then: to raise an error at the token itself, the host would have to wait for the
    device at every token.

    Args:
        model_name: For the message.
        rows: Knows the rows that are finished; it is asked after each token.
    """

    def __init__(self, model_name: str, rows: AnswerComplete) -> None:
        self._model_name = model_name
        self._rows = rows
        self._largest: Tensor | None = None  # of each row, (B,); NaN once there was one

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - tensors, as the base class documents
        self, input_ids: Tensor, scores: Tensor
    ) -> Tensor:
        """``scores`` (B, V) as they are."""
        largest = scores.amax(-1)
        if self._rows.finished is not None:
            largest = largest.masked_fill(self._rows.finished, 0)
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)
        return scores

    def wrong(self, batch: Tensor) -> Tensor:
        """Whether there were such logits, a bool tensor () on the device of ``batch``."""
        if self._largest is None:
            return torch.zeros((), dtype=torch.bool, device=batch.device)
        return ~(self._largest < torch.inf).all()

    def check(self) -> None:
        """Raise `UsageError` if there were such logits; waits for the device."""
        if self._largest is not None and bool(self.wrong(self._largest)):
            raise UsageError(
                f"model {self._model_name!r}",
                got="logits that are NaN or infinite, from finite weights",
                expected="finite logits",
                fix="load it in float32 or bfloat16 (--dtype): its numbers may be too large for float16",
            )


class NotFinite(StoppingCriteria):
    """Finishes all rows once the logits of one of them were wrong.

    Args:
        logits: Looks at them.
    """

    def __init__(self, logits: FiniteLogits) -> None:
        self._logits = logits

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - a tensor (B,), as the base class documents
        self, input_ids: Tensor, scores: object, **kwargs: Any
    ) -> Tensor:
        """The same for all B rows of ``input_ids``, a bool tensor (B,)."""
        return self._logits.wrong(input_ids).expand(len(input_ids))


class _Rows(Protocol):
    def read(self, input_ids: Tensor) -> Tensor:
        """Which rows are finished by the last column of ``input_ids`` or were before, a bool tensor (B,)."""
        ...


class _FollowedRows:
    """Rows whose state is looked up in the table of their tokenizer."""

    def __init__(self, table: LineTable, ends: Sequence[int]) -> None:
        self._table = table
        self._ends = ends
        self._state: Tensor | None = None

    def read(self, input_ids: Tensor) -> Tensor:
        table = self._table.on(input_ids.device, self._ends)
        if self._state is None:
            self._state = torch.full((len(input_ids),), START, device=input_ids.device)
        newest = input_ids[:, -1].clamp(max=table.shape[1] - 1)
        self._state = table[self._state, newest].long()
        return self._state == DONE


class _BreakTokens:
    """Which tokens may bring a line break, for a tokenizer that has no table; each is decoded once, by itself.

    Those whose text has a line break, whose name is one, and those of which nothing is to be seen: decoders that strip
    their text show nothing of a line break by itself.

    Args:
        tokenizer: The tokenizer; it is only read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bool] = {}

    def __contains__(self, token: int) -> bool:
        if token not in self._known:
            text = decode_answer(self._tokenizer, [token])
            name = self._tokenizer.convert_ids_to_tokens(token)
            # names are bytes in the first Qwen models
            name = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
            self._known[token] = not text.strip() or _NAMES_A_BREAK.search(text + name) is not None
        return self._known[token]


class _DecodedRows:
    """Rows that are decoded when a token may have brought a line break."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int, ends: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._start = start
        self._ends = frozenset(ends)
        self._breaks = _BreakTokens(tokenizer)
        self._done: set[int] = set()
        # Decoders may hold a line break back until something follows it: rows are watched until their text changes.
        self._watched: dict[int, str] = {}

    def read(self, input_ids: Tensor) -> Tensor:
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if row in self._done:
                continue
            if token in self._ends:
                self._done.add(row)
            elif token in self._breaks:
                self._watched[row] = self._look(row, input_ids)
            elif row in self._watched and self._look(row, input_ids) != self._watched[row]:
                del self._watched[row]
        return torch.tensor([row in self._done for row in range(len(input_ids))], device=input_ids.device)

    def _look(self, row: int, input_ids: Tensor) -> str:
        text = decode_answer(self._tokenizer, input_ids[row, self._start :].tolist())
        if LINE_BREAK.search(text.lstrip()):
            self._done.add(row)
        return text
