"""Answers: greedy, first line only, early to stop, the same in any batch and with a shared prefix."""

from __future__ import annotations

import logging
import random
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from crosskd.errors import UsageError
from crosskd.evaluation.generation import end_token_ids, first_line, generate_answers
from crosskd.evaluation.prefix_cache import compute_prefix_cache
from crosskd.models.shared_prefix import usable_prefix_length
from helpers_tolerances import assert_logits_close, decided

VOCABULARY = 300
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(["the answer of a question is a short text\n"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=256
    )


class ChainModel(LlamaForCausalLM):
    """A model whose next token depends on the last one only, by a table; it counts its forward passes."""

    def follow(self, *chains: list[int]) -> ChainModel:
        self.table = {before: after for chain in chains for before, after in pairwise(chain)}
        self.passes, self.batches = 0, []
        return self

    def forward(self, input_ids=None, position_ids=None, **rest):
        output = super().forward(input_ids=input_ids, position_ids=position_ids, **rest)
        last = [self.table.get(int(token), 2) for token in input_ids[:, -1]]
        output.logits = torch.nn.functional.one_hot(torch.tensor(last), VOCABULARY).float()[:, None]
        self.passes += 1
        self.batches.append(tuple(input_ids.shape))
        return output


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return ChainModel(LlamaConfig(**SIZE, **TOKENS)).eval()


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def random_model(name: str):
    torch.manual_seed(3)
    wide = {**SIZE, "initializer_range": 0.4, **TOKENS}
    grouped = {**wide, "num_key_value_heads": 1}
    opt = {name: value for name, value in wide.items() if name not in ("intermediate_size", "initializer_range")}
    gpt2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
    gemma = {**grouped, "head_dim": 8, "num_hidden_layers": 3}
    return {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**grouped)),
        "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**wide)),
        "gemma3": lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(
                **gemma,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            )
        ),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**grouped, sliding_window=8)),
        "opt": lambda: OPTForCausalLM(
            OPTConfig(**opt, ffn_dim=32, word_embed_proj_dim=16, init_std=0.4, dropout=0.5)
        ),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**gpt2, **TOKENS, initializer_range=0.4)),
        "t5": lambda: T5ForConditionalGeneration(
            T5Config(
                vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0,
                eos_token_id=2, decoder_start_token_id=0, initializer_factor=4.0,
            )
        ),
    }[name]()  # fmt: skip


CAUSAL = ["llama", "gpt_neox", "gemma3", "mistral", "opt", "gpt2"]


def random_prompts(count: int, prefix: int = 0, seed: int = 0) -> tuple[list[int], list[list[int]]]:
    generator = random.Random(seed)

    def draw(length: int) -> list[int]:
        return [generator.randrange(4, VOCABULARY) for _ in range(length)]

    shared = draw(prefix)
    return shared, [shared + draw(generator.randrange(1, 25)) for _ in range(count)]


def plain_greedy(model, prompt: list[int], steps: int) -> list[int]:
    """Independent oracle: one prompt, no padding, no cache."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            tokens.append(decided(model(torch.tensor([tokens]), use_cache=False).logits[0, -1], model, len(tokens)))
            if tokens[-1] in (2, 3):
                return tokens[len(prompt) : -1]
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", CAUSAL)
def test_a_batch_answers_like_one_prompt_without_padding_or_cache(name, tokenizer):
    model = random_model(name).eval()
    _, prompts = random_prompts(9)
    expected = [first_line(tokenizer.decode(plain_greedy(model, prompt, 12))) for prompt in prompts]
    assert generate_answers(model, tokenizer, prompts, max_new_tokens=12, batch_size=4) == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize("name", CAUSAL)
def test_shared_prefix_gives_the_same_answers(name, tokenizer):
    model = random_model(name).eval()
    shared, prompts = random_prompts(9, prefix=20)
    plain = generate_answers(model, tokenizer, prompts, max_new_tokens=12, batch_size=4)
    assert compute_prefix_cache(model, shared) is not None
    cached = generate_answers(model, tokenizer, prompts, max_new_tokens=12, batch_size=4, shared_prefix=shared)
    assert cached == plain
    assert len(set(plain)) > 2


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("padding", [[0, 3, 19, 20, 23]])
def test_shared_prefix_gives_the_same_logits(name, padding):
    model = random_model(name).eval()
    shared, _ = random_prompts(0, prefix=20)
    generator = torch.Generator().manual_seed(1)
    width = 20 + 24
    full = torch.randint(4, VOCABULARY, (len(padding), width), generator=generator)
    mask = torch.ones_like(full)
    for row, shift in enumerate(padding):
        full[row, shift : shift + 20] = torch.tensor(shared)
        full[row, :shift] = 0
        mask[row, :shift] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = model(full, attention_mask=mask, position_ids=positions).logits[:, -1]
        cache = compute_prefix_cache(model, shared).shifted(padding)
        reused = model(full[:, 20:], attention_mask=mask, position_ids=positions[:, 20:], past_key_values=cache).logits[
            :, -1
        ]
    assert_logits_close(reused, plain, model, width)


def test_shared_prefix_is_computed_once(chain, tokenizer):
    shared, prompts = random_prompts(6, prefix=30)
    chain.follow([])
    generate_answers(chain, tokenizer, prompts, batch_size=2, shared_prefix=shared)
    assert chain.batches[0] == (1, 30)
    assert all(rows == 2 and columns <= 25 for rows, columns in chain.batches[1:])


def test_encoder_decoder_models_answer_and_do_without_the_prefix(tokenizer):
    model = random_model("t5").eval()
    shared, prompts = random_prompts(5, prefix=6)
    single = [generate_answers(model, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in prompts]
    assert compute_prefix_cache(model, shared) is None
    assert generate_answers(model, tokenizer, prompts, max_new_tokens=8, shared_prefix=shared) == single
    assert len(set(single)) > 1


def test_usable_prefix_stops_at_the_first_difference_and_leaves_a_token():
    assert usable_prefix_length([[1, 2, 3, 4], [1, 2, 9, 4]], [1, 2, 3]) == 2
    assert usable_prefix_length([[1, 2, 3], [1, 2, 3, 4]], [1, 2, 3]) == 2
    assert usable_prefix_length([[5, 2]], [1, 2]) == 0
    assert usable_prefix_length([[1]], []) == 0


def test_an_answer_ends_at_its_line_break_and_generation_with_it(chain, tokenizer):
    question, answer, more = ids(tokenizer, "?")[-1], ids(tokenizer, "t")[0], ids(tokenizer, "x")[0]
    line_break = ids(tokenizer, "\n")[0]
    chain.follow([question, answer, line_break, more, more])
    assert generate_answers(chain, tokenizer, [[question], [1, 5, question]]) == ["t", "t"]
    assert chain.passes == 2  # "t", then the line break; 150 would be the limit


def test_leading_line_breaks_are_skipped(chain, tokenizer):
    question, space, answer = (ids(tokenizer, sign)[0] for sign in "? t")
    line_break, carriage = ids(tokenizer, "\n")[0], ids(tokenizer, "\r")[0]
    chain.follow([question, line_break, carriage, space, answer, answer])
    chain.table[answer] = line_break
    assert generate_answers(chain, tokenizer, [[question]], max_new_tokens=20) == ["t"]


def test_an_answer_ends_at_any_end_token(chain, tokenizer):
    first, second, third, answer = (ids(tokenizer, sign)[0] for sign in "123t")
    chain.generation_config.eos_token_id = [2, 7]
    chain.follow([first, 10, 2], [second, 11, 7], [third, 12, 3])  # </s>, one of the model's own, <|im_end|>
    answers = generate_answers(chain, tokenizer, [[first], [second], [third]])
    assert answers == [tokenizer.decode([token]).strip() for token in (10, 11, 12)]
    assert end_token_ids(chain, tokenizer) == [2, 3, 7]
    assert chain.passes == 2
    assert answer not in end_token_ids(chain, tokenizer)


def test_order_is_kept_and_the_longest_prompts_come_first(chain, tokenizer):
    letters = [ids(tokenizer, sign)[0] for sign in "abcde"]
    chain.follow(*([letter, letter] for letter in letters))
    prompts = [[1] * length + [letter] for length, letter in zip([2, 9, 4, 30, 1], letters, strict=True)]
    done = []
    answers = generate_answers(chain, tokenizer, prompts, max_new_tokens=3, batch_size=2, advance=done.append)
    assert answers == ["aaa", "bbb", "ccc", "ddd", "eee"]
    assert chain.batches[0] == (2, 31)
    assert done == [2, 2, 1]


def test_generation_settings_of_the_model_are_ignored_in_silence_and_kept(chain, tokenizer):
    letter, other = ids(tokenizer, "a")[0], ids(tokenizer, "b")[0]
    chain.follow([letter, letter])
    own = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=9, top_p=0.5, repetition_penalty=100.0, max_length=3, num_beams=4,
        bad_words_ids=[[letter]], suppress_tokens=[letter], min_new_tokens=1, pad_token_id=0,
    )  # fmt: skip
    chain.generation_config = own
    before = own.to_dict()
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("transformers").addHandler(handler)
    try:
        assert generate_answers(chain, tokenizer, [[other, letter]], max_new_tokens=6) == ["aaaaaa"]
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert records == []
    assert chain.generation_config is own
    assert own.to_dict() == before


def test_the_mode_of_every_module_and_the_tokenizer_are_left_as_they_were(tokenizer):
    model = random_model("opt").train()
    model.get_input_embeddings().eval()
    before = [module.training for module in model.modules()]
    side = tokenizer.padding_side
    _, prompts = random_prompts(4)
    first = generate_answers(model, tokenizer, prompts, max_new_tokens=8)
    assert first == generate_answers(model, tokenizer, prompts, max_new_tokens=8)  # no dropout
    assert [module.training for module in model.modules()] == before
    assert tokenizer.padding_side == side


def test_the_mode_is_restored_when_generation_fails(chain, tokenizer):
    chain.follow([])
    chain.train()

    def fail(_: int) -> None:
        raise RuntimeError("progress bar")

    with pytest.raises(RuntimeError, match="progress bar"):
        generate_answers(chain, tokenizer, [[5]], max_new_tokens=1, advance=fail)
    assert chain.training


def test_a_tokenizer_without_padding_token_stays_without(chain):
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="a"))
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    chain.follow([1, 1])
    assert generate_answers(chain, bare, [[1], [0, 0, 1]], max_new_tokens=2) == ["b b", "b b"]
    assert bare.pad_token is None


def test_first_line():
    assert first_line(" \n\r\n Paris \nLondon") == "Paris"
    assert first_line("Paris\rLondon") == "Paris"
    assert first_line(" \n ") == ""


def test_no_prompts_no_answers(chain, tokenizer):
    assert generate_answers(chain, tokenizer, []) == []


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[5]], {"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ([[5]], {"batch_size": 0}, "batch_size: got 0"),
        ([[5], []], {}, "prompt 1 has no tokens"),
        (
            [[5], [5] * 200],
            {"max_new_tokens": 60},
            "prompt 1 has 200 tokens, and 60 new ones may follow: expected at most 256",
        ),
    ],
)
def test_bad_input(chain, tokenizer, prompts, settings, message):
    with pytest.raises(UsageError, match=message):
        generate_answers(chain, tokenizer, prompts, **settings)
