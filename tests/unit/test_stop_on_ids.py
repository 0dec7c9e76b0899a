"""Rows are finished by their tokens' ids at the very token at which decoding their whole text would finish them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from crosskd.errors import UsageError
from crosskd.evaluation.generation import generate_answers
from crosskd.evaluation.line_ends import line_table
from crosskd.evaluation.stopping import AnswerComplete, FiniteLogits, NotFinite
from crosskd.teacher.sampling import SeededSampling
from helpers_families import FAMILIES, family_tokenizer
from helpers_models import tiny_model
from helpers_tokenizers import TOKENIZERS, byte_level_tokenizer, sentencepiece_tokenizer

SIGNS = ["a", " b", "\n", "\r", "\n\n", " \n", "\na", "a\n", "a\nb", " ", "\u3000", "\u2028", "é", "##\n", "##c"]


def of_words(decoder: decoders.Decoder | None, words: Sequence[str] = SIGNS) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(["</s>", *words]))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    if decoder is not None:
        backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def with_added(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Added tokens: byte-level decoders read those as bytes that they can; special ones are left out."""
    tokenizer.add_tokens(["é", "Ċ", "<br>\n", "中", " ", "\n \n", "x\u00a0"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|\n|>"]})  # pyright: ignore[reportArgumentType]
    return tokenizer


class Slow(PreTrainedTokenizer):
    """Written in Python, with a decoder that is nobody else's: it strips the text, and knows a sign for line breaks."""

    words = ("</s>", *SIGNS, "▃", "<pad>")

    def __init__(self) -> None:
        super().__init__(eos_token="</s>")

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def _convert_token_to_id(self, token: str) -> int:
        return self.words.index(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.words[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).replace("▃", "\n").strip()


class Replacing(PreTrainedTokenizerFast):
    """A subclass that decodes in a way of its own."""

    def _decode(self, token_ids: Any, **options: Any) -> str:
        return super()._decode(token_ids, **options).replace("a", "\n")


class Stripping(PreTrainedTokenizerFast):
    """A line break shows when something follows it."""

    def decode(self, token_ids: Any, *arguments: Any, **options: Any) -> str:
        return str(super().decode(token_ids, *arguments, **options)).strip("\n")


def odd_bytes() -> PreTrainedTokenizerFast:
    """Fallback bytes with spellings that count or do not, one made by a replacement; a token that becomes nothing."""
    words = ["<0x0a>", "<0x+A>", "<0x 1>", "<0xé>", "_0x0D>", "<0xC2>", "<0xA0>", "<0x20>", "<0xE2>", "<0x80>", "_"]
    chain = [
        decoders.Replace("_0", "<0"),
        decoders.Replace("_", ""),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    return of_words(decoders.Sequence(chain), [*words, *SIGNS])


FOLLOWED: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    **TOKENIZERS,
    **{name: lambda name=name: family_tokenizer(name) for name in FAMILIES},
    "byte_level with added tokens": lambda: with_added(byte_level_tokenizer()),
    "sentencepiece with added tokens": lambda: with_added(sentencepiece_tokenizer()),
    "odd bytes": odd_bytes,
    "spaces between": lambda: of_words(None),
    "fused": lambda: of_words(decoders.Fuse()),
    "metaspace": lambda: of_words(decoders.Metaspace(), [*SIGNS, "▁", "▁a", "▁\n"]),
}
DECODED: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "wordpiece": lambda: of_words(decoders.WordPiece()),
    "suffixes": lambda: of_words(decoders.BPEDecoder("</w>"), [*SIGNS, "a</w>", "a\n</w>"]),
    "pattern": lambda: of_words(decoders.Replace(Regex("é+"), "\n")),
    "slow": Slow,
    "replacing": lambda: Replacing(tokenizer_object=of_words(decoders.Fuse()).backend_tokenizer, eos_token="</s>"),
    "stripping": lambda: Stripping(tokenizer_object=of_words(decoders.Fuse()).backend_tokenizer, eos_token="</s>"),
}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    return {**FOLLOWED, **DECODED}[name]()


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def steps_by_text(tokenizer: PreTrainedTokenizerBase, row: Sequence[int]) -> list[bool]:
    """The oracle: whether the text of the first 1, 2, ... tokens, or of fewer, has a line."""
    has = [bool(re.search(r"[\r\n]", text_of(tokenizer, row[: n + 1]).lstrip())) for n in range(len(row))]
    return [any(has[: n + 1]) for n in range(len(row))]


def steps_by_ids(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], **options: Any) -> list[list[bool]]:
    prompt = torch.zeros(len(rows), 2, dtype=torch.long)
    ids = torch.cat([prompt, torch.tensor(rows)], 1)
    complete = AnswerComplete(tokenizer, 2, **options)
    assert not complete(prompt, ()).any()
    return torch.stack([complete(ids[:, :n], ()) for n in range(3, ids.shape[1] + 1)], 1).tolist()


@cache
def any_token(name: str) -> st.SearchStrategy[int]:
    """Ids, as often as any others those that decode to line breaks, to white space or to parts of characters."""
    tokenizer = tokenizer_of(name)
    every = range(len(tokenizer))
    texts = {token: text_of(tokenizer, [token]) for token in every}
    sets = [
        [token for token in every if re.search("[\r\n]", texts[token])],
        [token for token in every if not texts[token].strip()],
        [token for token in every if "�" in texts[token]],
    ]
    bytes_of_space = re.compile("[ÂâãáĢłħ¨©ļčĊĠ]|<0x(C2|E[123]|8[05]|A[0789]|9[AF]|0[AD]|20)>")
    names = tokenizer.convert_ids_to_tokens(list(every))
    sets.append([token for token in every if bytes_of_space.fullmatch(str(names[token]))])
    return st.one_of(st.sampled_from(every), *(st.sampled_from(ids) for ids in sets if ids))


@pytest.mark.parametrize("name", [*FOLLOWED, *DECODED])
def test_rows_finish_at_the_token_at_which_their_text_has_a_line(name: str) -> None:
    tokenizer = tokenizer_of(name)
    assert (line_table(tokenizer) is not None) == (name in FOLLOWED)
    drawn = {True: 0, False: 0}

    @settings(max_examples=150)
    @given(data=st.data(), length=st.integers(1, 7))
    def check(data: st.DataObject, length: int) -> None:
        row = st.lists(any_token(name), min_size=length, max_size=length)
        rows = data.draw(st.lists(row, min_size=1, max_size=3))
        expected = [steps_by_text(tokenizer, row) for row in rows]
        assert steps_by_ids(tokenizer, rows) == expected
        for steps in expected:
            drawn[steps[-1]] += 1

    check()
    assert drawn[False] > 10
    # nothing that T5's tokenizers write is a line break, but for those trained on texts with line breaks
    assert drawn[True] > 10 or name in ("t5", "mt5")


def ids_of(tokenizer: PreTrainedTokenizerBase, *names: str) -> list[int]:
    ids = [int(tokenizer.convert_tokens_to_ids(name)) for name in names]  # pyright: ignore[reportArgumentType]
    assert tokenizer.convert_ids_to_tokens(ids) == list(names)
    return ids


@pytest.mark.parametrize(
    ("kind", "names", "step"),
    [
        ("byte_level", ["Ċ", "Ġ", "a", "Ċ"], 4),
        ("byte_level", ["č", "Ċ", "Ġ"], None),
        ("byte_level", ["Â", "ł", "Ċ", "a"], None),  # a no-break space of two tokens is white space
        ("byte_level", ["Â", "Ċ"], 2),  # half of it is a replacement character
        ("byte_level", ["â", "Ģ", "¨", "Ċ"], None),
        ("byte_level", ["â", "Ģ", "°", "Ċ"], 4),
        ("byte_level", ["Ċ", "<s>", "Ċ", "<|turn|>", "a", "</s>", "č"], 7),  # special tokens are left out
        ("sentencepiece", ["▁", "<0x0A>", "a", "<0x0A>"], 4),
        ("sentencepiece", ["a", "<0xC3>", "<0x0A>", "a"], None),  # no UTF-8: replacement characters for both
        ("sentencepiece", ["a", "<0xC3>", "<0xA9>", "<0x0A>"], 4),
        ("sentencepiece", ["<0x0A>", "<0xC3>", "a", "<0x0D>"], 4),
        ("sentencepiece", ["<0xC2>", "<0xA0>", "<0x0A>", "<0xE3>", "<0x80>", "<0x80>", "<0x0A>"], None),
        ("sentencepiece", ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "<0x0A>"], 5),
        ("sentencepiece", ["<0xED>", "<0xA0>", "<0x80>", "<0x0A>"], None),  # a surrogate is no character
    ],
)
def test_what_a_table_knows_of_bytes(kind: str, names: list[str], step: int | None) -> None:
    tokenizer = TOKENIZERS[kind]()
    row = ids_of(tokenizer, *names)
    expected = [step is not None and n >= step for n in range(1, len(row) + 1)]
    assert steps_by_ids(tokenizer, [row]) == [expected]
    assert steps_by_text(tokenizer, row) == expected


def test_ids_that_the_tokenizer_lacks_change_nothing() -> None:
    tokenizer = byte_level_tokenizer()
    a, line = ids_of(tokenizer, "a", "Ċ")
    beyond = len(tokenizer) + 3
    assert steps_by_ids(tokenizer, [[beyond, a, beyond, line, beyond]]) == [[False, False, False, True, True]]


@pytest.mark.parametrize("name", ["byte_level", "wordpiece"])
def test_end_tokens_finish_a_row_too(name: str) -> None:
    tokenizer = tokenizer_of(name)
    a, end, other = tokenizer.convert_tokens_to_ids(["a", "</s>", "b" if name == "byte_level" else " b"])
    ends = [end, len(tokenizer) + 40]  # models name tokens that their tokenizer lacks
    rows = [[a, end, a], [a, a, ends[1]], [a, a, other]]
    assert steps_by_ids(tokenizer, rows, ends=ends) == [[False, True, True], [False, False, True], [False] * 3]
    assert steps_by_ids(tokenizer, rows) == [[False] * 3] * 3


def test_the_table_is_made_once_and_again_for_tokens_that_are_added() -> None:
    tokenizer = byte_level_tokenizer()
    table = line_table(tokenizer)
    assert line_table(tokenizer) is table
    tokenizer.add_tokens(["over\nthere"])
    assert line_table(tokenizer) is not table
    added = len(tokenizer) - 1
    assert steps_by_ids(tokenizer, [[added]]) == [[True]]


# --- how often something is decoded


def count_decodes(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    calls: list[list[int]] = []
    decode = tokenizer.decode

    def counted(ids: list[int], **options: Any) -> Any:
        calls.append(list(ids))
        return decode(ids, **options)

    monkeypatch.setattr(tokenizer, "decode", counted)
    return calls


def test_nothing_is_decoded_where_there_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level_tokenizer()
    a, line = ids_of(tokenizer, "a", "Ċ")
    calls = count_decodes(tokenizer, monkeypatch)
    steps_by_ids(tokenizer, [[a] * 30 + [line], [line] * 31])
    assert calls == []


def test_rows_are_decoded_where_a_token_may_bring_a_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = of_words(decoders.WordPiece())
    a, line = ids_of(tokenizer, "a", "\n")
    calls = count_decodes(tokenizer, monkeypatch)
    rows = [[a] * 30, [line, *[a] * 29], [a] * 20 + [line] * 10]
    assert [sum(steps) for steps in steps_by_ids(tokenizer, rows)] == [0, 0, 10]
    assert sorted(call for call in calls if len(call) == 1) == sorted([[a], [line], [line]])  # asked once, and a row
    # the line break in front is looked at again with what follows it, the other has its line
    assert [call for call in calls if len(call) > 1] == [[line, a], [a] * 20 + [line]]


def test_answers_are_decoded_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level_tokenizer()
    calls = count_decodes(tokenizer, monkeypatch)
    answers = generate_answers(tiny_model("llama"), tokenizer, [[5, 6], [7], [8, 9, 10]], max_new_tokens=20)
    assert len(calls) == 3
    assert any(answers)


# --- the host never waits; a tensor on the device meta cannot be read by it


def test_no_numbers_are_read_while_a_model_writes() -> None:
    tokenizer = byte_level_tokenizer()
    rows = AnswerComplete(tokenizer, 3, [2])
    logits, drawing = FiniteLogits("x", rows), SeededSampling(range(4), 0.7, 0.9)
    not_finite = NotFinite(logits)
    ids = torch.empty(4, 3, dtype=torch.long, device="meta")
    with torch.device("meta"):
        for _ in range(70):
            scores = drawing(ids, logits(ids, torch.empty(4, len(tokenizer))))
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
            done = rows(ids, ()) | not_finite(ids, ())
    assert done.shape == (4,)
    assert done.device.type == "meta"
    with pytest.raises(Exception, match="meta"):
        logits.check()


# --- logits that are not finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("step", [0, 2])
def test_one_bad_row_ends_the_batch_and_is_refused_then(value: float, step: int) -> None:
    rows = AnswerComplete(byte_level_tokenizer(), 1)
    logits = FiniteLogits("name", rows)
    stops = NotFinite(logits)
    ids = torch.full((3, 1), 70)
    for number in range(3):
        scores = torch.full((3, 9), -torch.inf)
        scores[:, 4] = 1.0
        scores[1, 2] = value if number == step else 0.0
        assert torch.equal(logits(ids, scores), scores) or value != value
        ids = torch.cat([ids, torch.full((3, 1), 70)], 1)
        assert not rows(ids, ()).any()
        assert stops(ids, ()).tolist() == [number >= step] * 3
    with pytest.raises(UsageError, match=r"model 'name'.*logits that are NaN or infinite"):
        logits.check()


def test_finished_rows_may_have_any_logits() -> None:
    tokenizer = byte_level_tokenizer()
    a, line, end = ids_of(tokenizer, "a", "Ċ", "</s>")
    rows = AnswerComplete(tokenizer, 1, [end])
    logits = FiniteLogits("name", rows)
    ids = torch.tensor([[a, a, line], [a, end, a], [a, a, a]])
    bad = torch.tensor([[torch.nan, 0.0], [torch.inf, 0.0], [0.0, -torch.inf]])
    logits(ids[:, :1], torch.zeros(3, 2))
    rows(ids, ())
    logits(ids, bad)
    assert not NotFinite(logits)(ids, ()).any()
    logits.check()


def test_a_model_is_not_asked_for_more_after_logits_that_are_not_finite() -> None:
    model = tiny_model("llama")
    passes = []

    def overflow(_: object, inputs: object, output: Any) -> Any:
        passes.append(1)
        if len(passes) == 3:
            output.logits[1, -1, 7] = torch.nan
        return output

    model.register_forward_hook(overflow)
    model.generation_config.eos_token_id = None
    with pytest.raises(UsageError, match="logits that are NaN or infinite"):
        generate_answers(model, byte_level_tokenizer(), [[5, 6], [5, 7]], max_new_tokens=100)
    assert len(passes) == 3


# --- draws


def drawn_by_hand(scores: torch.Tensor, uniform: float, temperature: float, top_p: float) -> int:
    """One row's token, by the definition; the most probable tokens come first where ``top_p`` is below 1."""
    weights = (scores.double() / temperature).softmax(-1).tolist()
    order = list(range(len(weights)))
    if top_p < 1:
        order.sort(key=lambda token: -weights[token])
        kept, before = [], 0.0
        for token in order:
            if before >= top_p:
                break
            kept.append(token)
            before += weights[token]
        order = kept
    left = uniform * sum(weights[token] for token in order)
    for token in order:
        left -= weights[token]
        if left < 0:
            return token
    return order[-1]


@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_draws_are_those_of_one_number_a_token(top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens than numbers are drawn at once, and some scores are equal."""
    generator = torch.Generator().manual_seed(0)
    steps = (2 * torch.randn(150, 3, 40, generator=generator)).bfloat16().float()
    seeds = [5, 6, 2**62]
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    expected = [
        [
            drawn_by_hand(row, torch.rand(1, generator=stream, dtype=torch.float64).item(), 0.8, top_p)
            for row, stream in zip(scores, streams, strict=True)
        ]
        for scores in steps
    ]
    calls, rand = [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **options: calls.append(size) or rand(*size, **options))
    sampling = SeededSampling(seeds, 0.8, top_p)
    assert [sampling(torch.zeros(3, 1), scores).argmax(-1).tolist() for scores in steps] == expected
    assert len(calls) == 3 * len(seeds)
