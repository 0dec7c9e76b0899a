"""No attention row is empty, in any forward of any family, and what stands at padding has no effect."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    causal_mask_function,
    eager_mask,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from crosskd.data.collate import collate_answers, collate_encoder_decoder
from crosskd.evaluation.generation import generate_answers
from crosskd.losses.cross_entropy import answer_cross_entropy
from crosskd.losses.targets import TargetRequest
from crosskd.models.answer_logits import answer_logits
from crosskd.models.attention_masks import no_empty_rows
from crosskd.models.load import LoadedModel
from crosskd.teacher.capture import capture_targets, forward_answers
from crosskd.text.answer_spans import TokenizedExample
from helpers_families import CAUSAL, FAMILIES, family_tokenizer, tiny
from helpers_masks import MaskSpy, gradients, mask_spy, spoiled_embeddings

__all__ = ["mask_spy"]

SHARED = list(range(40, 60))
LENGTHS = (60, 3, 34)  # of what follows the shared tokens; farther apart than Gemma 3's window, 24
ATTENTION = ("sdpa", "eager")
SLIDING = "mistral, sliding"


def model_of(name: str, attention: str = "sdpa") -> LoadedModel:
    """The family's tiny model; Mistral's first version, too, all of whose layers slide."""
    loaded = tiny("mistral" if name == SLIDING else name)
    if name == SLIDING:
        settings = {**loaded.model.config.to_dict(), "sliding_window": 16}
        torch.manual_seed(0)
        loaded = loaded._replace(model=AutoModelForCausalLM.from_config(MistralConfig(**settings)).eval())
    loaded.model.set_attn_implementation(attention)
    return loaded


def unequal_examples() -> list[TokenizedExample]:
    """Prompts that begin alike and differ much in length, with answers of 4, 2 and 7 tokens; no id is below 40."""
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> list[int]:
        return torch.randint(60, 400, (count,), generator=generator).tolist()

    return [
        TokenizedExample([*SHARED, *draw(length)], draw(answer), 0)
        for length, answer in zip(LENGTHS, (4, 2, 7), strict=True)
    ]


def batch_of(model: PreTrainedModel, examples: list[TokenizedExample]) -> dict[str, Tensor]:
    prompts, answers = [e.prompt_ids for e in examples], [e.answer_ids for e in examples]
    if model.config.is_encoder_decoder:
        return collate_encoder_decoder(prompts, answers, 39)  # T5 starts with its padding token: another one here
    return collate_answers(prompts, answers)


def loss_of(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    return answer_cross_entropy(answer_logits(model, batch, batch["labels"].shape[1]), batch["labels"])


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", [*FAMILIES, SLIDING])
def test_no_row_is_empty_in_training_and_when_blocks_are_computed_again(
    name: str, attention: str, mask_spy: MaskSpy
) -> None:
    model = model_of(name, attention).model.train()
    batch = batch_of(model, unequal_examples())
    loss_of(model, batch).backward()
    once, mask_spy.calls = mask_spy.calls, 0
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    loss_of(model, batch).backward()
    assert mask_spy.calls == 2 * once > 0
    mask_spy.check()


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", [*FAMILIES, SLIDING])
def test_no_row_is_empty_in_generation(name: str, attention: str, mask_spy: MaskSpy) -> None:
    loaded = model_of(name, attention)
    prompts = [example.prompt_ids for example in unequal_examples()]
    for prefix in ([], SHARED):
        generate_answers(loaded.model, loaded.tokenizer, prompts, max_new_tokens=3, batch_size=3, shared_prefix=prefix)
        mask_spy.check()
        mask_spy.uneven = 0


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", [*CAUSAL, SLIDING])
def test_no_row_is_empty_when_targets_are_captured(name: str, attention: str, mask_spy: MaskSpy) -> None:
    loaded = model_of(name, attention)
    request = TargetRequest(top_k=5)
    for prefix in ([], SHARED):
        mask_spy.uneven = 0
        capture_targets(loaded.model, unequal_examples(), request, batch_size=3, shared_prefix=prefix)
        # right padding makes no empty row, and so no mask, unless a window slides or a prefix stands before it
        assert mask_spy.empty == []
        assert mask_spy.uneven > 0


def padded_positions(model: PreTrainedModel, batch: dict[str, Tensor]) -> list[Tensor]:
    """Where padding stands in what the embedding reads, in the order of its calls."""
    if not model.config.is_encoder_decoder:
        return [batch["attention_mask"] == 0]
    return [batch["attention_mask"] == 0, batch["labels"] == -100]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", [*FAMILIES, SLIDING])
def test_garbage_at_padding_changes_neither_loss_nor_gradients(name: str, attention: str) -> None:
    model = model_of(name, attention).model.train()
    batch = batch_of(model, unequal_examples())
    clean = loss_of(model, batch)
    clean.backward()
    expected = gradients(model)
    places = padded_positions(model, batch)
    assert all(bool(place.any()) for place in places)
    left = iter(places)
    generator = torch.Generator().manual_seed(2)

    def garbage(_: Tensor, states: Tensor) -> Tensor:
        noise = 1e4 * torch.randn(states.shape, generator=generator)
        return torch.where(next(left)[..., None], noise, states)

    with spoiled_embeddings(model, garbage):
        loss = loss_of(model, batch)
        loss.backward()
    assert next(left, None) is None
    assert torch.equal(loss, clean)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for parameter, gradient in found.items():
        assert torch.isfinite(gradient).all(), parameter
        assert torch.equal(gradient, expected[parameter]), parameter


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", [*CAUSAL, SLIDING])
def test_garbage_at_right_padding_changes_no_target(name: str, attention: str) -> None:
    model, examples = model_of(name, attention).model, unequal_examples()
    clean = forward_answers(model, examples)

    def garbage(ids: Tensor, states: Tensor) -> Tensor:
        lengths = torch.tensor([len(e.prompt_ids) + len(e.answer_ids) - 1 for e in examples])
        padding = torch.arange(ids.shape[1]) >= lengths[:, None]
        assert bool(padding.any())
        return states.masked_fill(padding[..., None], 1e4)

    with spoiled_embeddings(model, garbage):
        spoiled = forward_answers(model, examples)
    assert torch.equal(spoiled.logits[spoiled.mask], clean.logits[clean.mask])


def nan_at(token: int) -> Any:
    """NaN where the padding token is read, as if its embedding were NaN (where it is tied, logits would be, too)."""
    return lambda ids, states: states.masked_fill((ids == token)[..., None], torch.nan)


@pytest.mark.parametrize("name", [*FAMILIES, SLIDING])
def test_the_padding_tokens_embedding_is_never_read(name: str) -> None:
    loaded = model_of(name)
    model, tokenizer, examples = loaded.model, loaded.tokenizer, unequal_examples()
    pad = 30  # in no prompt and no answer
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    assert tokenizer.pad_token_id == pad
    batch = batch_of(model, examples)
    prompts = [example.prompt_ids for example in examples]

    def all_of_it() -> list[Any]:
        model.train()
        loss = loss_of(model, batch)
        loss.backward()
        model.eval()
        answers = generate_answers(model, tokenizer, prompts, max_new_tokens=5, batch_size=3)
        logits = None if model.config.is_encoder_decoder else forward_answers(model, examples).logits
        return [loss.detach(), *gradients(model).values(), logits, answers]

    expected = all_of_it()
    with spoiled_embeddings(model, nan_at(pad)):
        found = all_of_it()
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_padding_behind_a_finished_answer_disturbs_no_one(name: str) -> None:
    """A row that ended early goes on with the padding token: the others' answers and the check of logits do not see."""
    loaded = model_of(name)
    tokenizer = loaded.tokenizer
    prompts = [example.prompt_ids for example in unequal_examples()]
    options: dict[str, Any] = {"max_new_tokens": 8, "batch_size": 3}
    first = generate_answers(loaded.model, tokenizer, prompts, **options)
    with torch.no_grad():
        batch = batch_of(loaded.model, [TokenizedExample(prompt, [60], 0) for prompt in prompts])
        likely = answer_logits(loaded.model, batch, 1)[0, 0].argmax()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(30)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(int(likely))
    with spoiled_embeddings(loaded.model, nan_at(30)):
        answers = generate_answers(loaded.model, tokenizer, prompts, **options)
    assert len(first) == len(answers) == 3


def by_hand(kind: str, **options: Any) -> Tensor:
    """The mask (Q, K) of one sequence as our context gives it, true where a query may attend."""
    shape = {"batch_size": 1, "device": "cpu", "allow_is_causal_skip": False, **options}
    with no_empty_rows():
        mask = ALL_MASK_ATTENTION_FUNCTIONS[kind](**shape)
    assert isinstance(mask, Tensor)
    return (mask if kind == "sdpa" else mask == 0)[0, 0]


@pytest.mark.parametrize("kind", ATTENTION)
def test_an_empty_row_attends_to_itself_and_others_as_before(kind: str) -> None:
    padding = torch.tensor([[False, False, True, True]])
    mask = by_hand(kind, q_length=4, kv_length=4, mask_function=causal_mask_function, attention_mask=padding)
    assert mask.int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("kind", ATTENTION)
def test_behind_cached_columns_and_before_room_for_more(kind: str) -> None:
    """Two columns are cached, two queries come, and the cache has room for two more keys."""
    padding = torch.tensor([[False, False, False, True]])
    mask = by_hand(
        kind, q_length=2, kv_length=6, q_offset=2, mask_function=causal_mask_function, attention_mask=padding
    )
    assert mask.int().tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]


@pytest.mark.parametrize("kind", ATTENTION)
def test_right_padding_under_a_window_and_keys_that_have_left_it(kind: str) -> None:
    """The cache has dropped one key: the first column is that of position 1."""
    padding = torch.tensor([[True, True, False, False, False]])
    mask = by_hand(
        kind, q_length=2, kv_length=4, q_offset=3, kv_offset=1, attention_mask=padding,
        mask_function=sliding_window_causal_mask_function(2),
    )  # fmt: skip
    assert mask.int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]


def test_no_mask_is_made_where_none_is_needed() -> None:
    with no_empty_rows():
        assert ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](batch_size=2, q_length=3, kv_length=3, device="cpu") is None


def test_the_functions_of_transformers_come_back_after_nesting_and_errors() -> None:
    def both() -> list[Any]:
        return [ALL_MASK_ATTENTION_FUNCTIONS[kind] for kind in ATTENTION]

    assert both() == [sdpa_mask, eager_mask]
    with no_empty_rows():
        with no_empty_rows():
            inner = both()
        assert both() == inner != [sdpa_mask, eager_mask]
    assert both() == [sdpa_mask, eager_mask]
    with pytest.raises(RuntimeError, match="inside"), no_empty_rows():
        raise RuntimeError("inside")
    assert both() == [sdpa_mask, eager_mask]
    assert "sdpa" not in ALL_MASK_ATTENTION_FUNCTIONS._local_mapping


def test_a_function_that_somebody_put_there_is_used_and_comes_back() -> None:
    calls: list[int] = []

    def theirs(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return sdpa_mask(*arguments, **options)

    ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = theirs
    try:
        padding = torch.tensor([[False, True]])
        mask = by_hand("sdpa", q_length=2, kv_length=2, attention_mask=padding)
        assert mask.int().tolist() == [[1, 0], [0, 1]]
        assert calls == [1]
        assert ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] is theirs
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]


def test_threads_share_it_and_the_last_one_out_puts_things_back() -> None:
    """As when two models answer at once: the first to finish must not take the masks away from the other."""
    inside, done, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with no_empty_rows():
            inside.set()
            assert done.wait(60)
            seen.append(ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])

    thread = threading.Thread(target=other)
    with no_empty_rows():
        ours = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
        thread.start()
        assert inside.wait(60)
    done.set()
    thread.join(60)
    assert seen == [ours]
    assert ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] is sdpa_mask


def test_families_use_the_vocabulary_that_these_tests_take_for_granted() -> None:
    assert all(len(family_tokenizer(name)) > 400 for name in FAMILIES)
