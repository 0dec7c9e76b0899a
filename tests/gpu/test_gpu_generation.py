"""Generation on a GPU: the answers of a CPU, and no wait of ours for the device at any token.

Run with ``TRITON_INTERPRET=0 pytest -m gpu tests/gpu``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from crosskd.errors import UsageError
from crosskd.evaluation.generation import generate_answers
from crosskd.evaluation.stopping import AnswerComplete, FiniteLogits, NotFinite
from crosskd.teacher.sampling import SeededSampling, sampled_generation
from helpers_families import family_tokenizer, tiny
from helpers_gpu import GPU, counted_waits
from helpers_tokenizers import TOKENIZERS, byte_level_tokenizer

pytestmark = GPU

BATCH, VOCABULARY = 8, 50_000


def random_prompts(count: int, vocabulary: int, prefix: int = 0) -> tuple[list[int], list[list[int]]]:
    generator = torch.Generator().manual_seed(3)

    def draw(length: int) -> list[int]:
        return torch.randint(8, vocabulary, (length,), generator=generator).tolist()

    shared = draw(prefix)
    return shared, [shared + draw(3 + 5 * number) for number in range(count)]


def on_both(name: str, answer: Callable[[PreTrainedModel], list[str]]) -> list[list[str]]:
    """In float64, in which rounding decides no token; float32 differs from device to device."""
    loaded = [tiny(name).model.double().to(device) for device in ("cpu", "cuda")]
    return [answer(model) for model in loaded]


@pytest.mark.parametrize("name", ["llama2", "qwen2", "gemma3", "pythia", "t5"])
def test_answers_are_those_of_a_cpu(name: str) -> None:
    tokenizer = family_tokenizer(name)
    shared, prompts = random_prompts(5, len(tokenizer), prefix=12)

    def answer(model: PreTrainedModel) -> list[str]:
        return generate_answers(model, tokenizer, prompts, max_new_tokens=40, batch_size=3, shared_prefix=shared)

    cpu, cuda = on_both(name, answer)
    assert cuda == cpu
    assert any(cpu)


@pytest.mark.parametrize("top_p", [0.8, 1.0])
def test_sampled_answers_are_those_of_a_cpu(top_p: float) -> None:
    """More tokens than random numbers are moved to the device at once."""
    tokenizer = family_tokenizer("qwen2")
    _, prompts = random_prompts(4, len(tokenizer))

    def answer(model: PreTrainedModel) -> list[str]:
        with sampled_generation(model, 0.9, top_p, lambda prompt: sum(prompt)):
            return generate_answers(model, tokenizer, prompts, max_new_tokens=150, batch_size=3)

    cpu, cuda = on_both("qwen2", answer)
    assert cuda == cpu
    assert any(cpu)


@pytest.mark.parametrize("top_p", [0.8, 1.0])
def test_draws_from_a_large_vocabulary_are_those_of_a_cpu(top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    cpu, cuda = (SeededSampling(range(BATCH), 0.7, top_p) for _ in range(2))
    for step in range(70):
        scores = 3 * torch.randn(BATCH, VOCABULARY, generator=generator)
        scores = scores.bfloat16().float() if step % 2 else scores  # equal scores
        ids = torch.zeros(BATCH, 1, dtype=torch.long)
        assert torch.equal(cuda(ids.cuda(), scores.cuda()).argmax(-1).cpu(), cpu(ids, scores).argmax(-1))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("top_p", [0.8, 1.0])
def test_nothing_waits_for_the_device_at_a_token(kind: str, top_p: float) -> None:
    tokenizer = TOKENIZERS[kind]()
    AnswerComplete(tokenizer, 0, [2])(torch.full((1, 1), 9, device="cuda"), ())  # the table is copied
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(200, BATCH, len(tokenizer) + 12, device="cuda", generator=generator)
    rows = AnswerComplete(tokenizer, 3, [2])
    finite, drawing = FiniteLogits("x", rows), SeededSampling(range(BATCH), 0.7, top_p)
    stops = NotFinite(finite)
    ids = torch.full((BATCH, 3), 9, device="cuda")
    done = torch.zeros(BATCH, dtype=torch.bool, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for scores in logits:
            chosen = drawing(ids, finite(ids, scores)).argmax(-1, keepdim=True)
            ids = torch.cat([ids, chosen], 1)
            done = done | rows(ids, ()) | stops(ids, ())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    finite.check()
    assert done.tolist() == on_cpu(tokenizer, ids.cpu())


def on_cpu(tokenizer: object, ids: Tensor) -> list[bool]:
    rows = AnswerComplete(tokenizer, 3, [2])  # pyright: ignore[reportArgumentType]
    return rows(ids, ()).tolist()


def waits_a_token(write: Callable[[int], object], lengths: Sequence[int] = (8, 72)) -> float:
    counts: list[int] = []
    for length in lengths:
        write(length)  # kernels are loaded, memory is allocated
        with counted_waits() as found:
            write(length)
        counts.append(len(found))
    return (counts[1] - counts[0]) / (lengths[1] - lengths[0])


def test_answers_wait_no_oftener_than_plain_generation() -> None:
    """transformers itself looks once a token whether all rows are finished."""
    tokenizer, model = byte_level_tokenizer(), tiny("llama2").model.cuda()
    model.generation_config.eos_token_id = None
    letter = tokenizer.convert_tokens_to_ids("a")

    def no_end(_: object, inputs: object, output: object) -> object:
        logits = output.logits  # pyright: ignore[reportAttributeAccessIssue]
        logits.zero_()
        logits[..., letter].fill_(1.0)
        return output

    model.register_forward_hook(no_end)
    _, prompts = random_prompts(BATCH, len(tokenizer))
    ids = torch.full((BATCH, 20), 9, device="cuda")

    def plain(length: int) -> object:
        return model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, pad_token_id=0
        )

    def ours(length: int) -> object:
        answers = generate_answers(model, tokenizer, prompts, max_new_tokens=length, batch_size=BATCH)
        assert answers == ["a" * length] * BATCH
        return answers

    assert waits_a_token(ours) <= waits_a_token(plain) + 0.05
    assert waits_a_token(ours) <= 2


def test_logits_that_are_not_finite_are_refused() -> None:
    tokenizer, model = byte_level_tokenizer(), tiny("llama2").model.cuda()
    passes = []

    def overflow(_: object, inputs: object, output: object) -> object:
        passes.append(1)
        output.logits[1, -1, 7] = torch.nan  # pyright: ignore[reportAttributeAccessIssue]
        return output

    model.register_forward_hook(overflow)
    with pytest.raises(UsageError, match="logits that are NaN or infinite"):
        generate_answers(model, tokenizer, [[9, 10], [9, 11]], max_new_tokens=100)
    assert len(passes) == 1
