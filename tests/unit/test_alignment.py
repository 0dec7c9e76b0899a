"""Pieces as plain text for every kind of tokenizer, and the alignment of two tokenizations."""

from itertools import pairwise

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from crosskd.text.alignment import Vocabulary, align_tokens, read_vocabulary

CORPUS = [
    "The little mermaid lived under the sea with her five sisters.",
    "Copenhagen is the capital of Denmark; the café costs 12 € a day.",
    "Naïve users type two  spaces,\ttabs and\nline breaks 🙂.",
    "the sea, the sister, the capital, the line, the users, the day",
    *["the little capital of the sisters"] * 8,
] * 3
TEXTS = [
    "the little capital of the sisters",
    "Copenhagen, the café and the naïve 🙂 users",
    "unseen wörds: 北京 costs 99 €\nper line\t🙃",
]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<né>", normalized=False), AddedToken("  ", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def sentencepiece_bpe():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]  # pyright: ignore
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=specials)
    tokenizer.train_from_iterator([text.replace("🙂", "").replace("\n", " ") for text in CORPUS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def unigram():
    letters = sorted(set("".join(CORPUS)) - set(" \n\t"))
    words = ["▁the", "▁little", "▁capital", "▁of", "▁sister", "▁", "▁co"]
    special = ["<pad>", "</s>", "<unk>"]
    scores = [0.0] * 3 + [-2.0 - place / 8 for place in range(len(words))] + [-5.0] * len(letters)
    entries = list(zip([*special, *words, *letters], scores, strict=True))
    tokenizer = Tokenizer(models.Unigram(entries, special.index("<unk>"), False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")


def word_level():
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "sea": 1, "<unk>": 3}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def pieces_of(tokenizer, text):
    return read_vocabulary(tokenizer).texts(tokenizer(text, add_special_tokens=False).input_ids)


def as_text(pieces):
    return "".join(pieces).encode("utf-8", "surrogateescape").decode()


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_byte_level_bpe_join_to_the_text(text):
    assert as_text(pieces_of(byte_level(), text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_sentencepiece_bpe_with_byte_fallback_join_to_the_text(text):
    pieces = pieces_of(sentencepiece_bpe(), text)
    assert as_text(pieces) == text
    assert any("\udc80" <= piece <= "\udcff" for piece in pieces) == ("🙂" in text or "🙃" in text)


def test_pieces_of_unigram_join_to_the_text_with_its_prefix_space():
    assert as_text(pieces_of(unigram(), TEXTS[0])) == " " + TEXTS[0]


def test_added_tokens_are_literal_and_roles_are_known():
    tokenizer = byte_level()
    vocabulary = read_vocabulary(tokenizer)
    assert len(vocabulary.pieces) == len(tokenizer)
    assert vocabulary.pieces[len(tokenizer) - 1] == "  "
    assert {vocabulary.pieces[token] for token in vocabulary.added} == {"  ", "<né>", "<|endoftext|>"}
    assert vocabulary.roles == dict.fromkeys(("eos", "bos", "pad"), tokenizer.eos_token_id)


def test_byte_fallback_pieces_are_bytes_and_known_as_such():
    tokenizer = sentencepiece_bpe()
    vocabulary = read_vocabulary(tokenizer)
    assert len(vocabulary.fallback) == 256
    assert vocabulary.added.isdisjoint(vocabulary.fallback)
    newline, part = tokenizer.convert_tokens_to_ids(["<0x0A>", "<0xE2>"])
    assert (vocabulary.pieces[newline], vocabulary.pieces[part]) == ("\n", "\udce2")
    assert vocabulary.roles["eos"] == tokenizer.eos_token_id


def test_plain_pieces_and_holes_in_the_ids():
    vocabulary = read_vocabulary(word_level())
    assert vocabulary.pieces[:2] == ("the", "sea")
    assert all(isinstance(piece, str) for piece in vocabulary.pieces)


def spans(pieces):
    ends = [0]
    for piece in pieces:
        ends.append(ends[-1] + len(piece.encode("utf-8", "surrogateescape")))
    return list(pairwise(ends))


@pytest.mark.parametrize(
    ("student", "teacher", "text"),
    [
        *((byte_level, sentencepiece_bpe, text) for text in TEXTS),
        *((sentencepiece_bpe, byte_level, text) for text in TEXTS),
        (unigram, byte_level, " " + TEXTS[0]),
        (unigram, sentencepiece_bpe, " " + TEXTS[0]),
    ],
)
def test_tokens_on_the_same_characters_are_aligned_across_kinds(student, teacher, text):
    left, right = pieces_of(student(), text.lstrip() if student is unigram else text), pieces_of(teacher(), text)
    alignment = align_tokens(left, right)
    where = {span: index for index, span in enumerate(spans(right))}
    shared = {index: where[span] for index, span in enumerate(spans(left)) if span in where}
    assert len(shared) >= 2
    for index, expected in shared.items():
        assert alignment[index] == expected
    used = [index for index in alignment if index >= 0]
    assert used == sorted(set(used))


def test_one_teacher_token_serves_its_most_similar_student_token():
    assert align_tokens([" the", " C", "openhagen"], [" the", " Copenhagen"]) == [0, -1, 1]


def test_identical_empty_and_unrelated_sequences():
    assert align_tokens(["a", "b", "b"], ["a", "b", "b"]) == [0, 1, 2]
    assert align_tokens([], ["a"]) == []
    assert align_tokens(["a", "b"], []) == [-1, -1]
    assert align_tokens(["a", "b"], ["x"]) == [-1, -1]
    assert align_tokens(["", "a"], ["", "b"]) == [0, -1]


def test_of_equal_alignments_the_earliest_pairs_win():
    assert align_tokens(["a"], ["a", "a"]) == [0]
    assert align_tokens(["a", "a"], ["a"]) == [0, -1]


def test_vocabulary_gives_the_pieces_of_a_sequence():
    assert Vocabulary((" a", "b")).texts([1, 0, 1]) == ["b", " a", "b"]
