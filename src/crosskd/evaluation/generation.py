"""Greedy answers to prompts, in batches, cut at the first line break."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from crosskd.errors import UsageError
from crosskd.evaluation.line_ends import LINE_BREAK, decode_answer
from crosskd.evaluation.prefix_cache import PrefixCache, compute_prefix_cache
from crosskd.evaluation.stopping import AnswerComplete, FiniteLogits, NotFinite
from crosskd.models.attention_masks import no_empty_rows
from crosskd.models.finite import check_finite
from crosskd.models.limits import check_token_ids, context_length, embedding_rows, position_limit
from crosskd.models.shared_prefix import usable_prefix_length

# Chat models end their turn with one of these, also where their files name another token as the end of the sequence.
_END_OF_TURN = frozenset({"<|im_end|>", "<end_of_turn>", "<turn|>", "<|eot_id|>", "<|end|>", "<|endofturn|>"})
# What an architecture needs to start a sequence; everything else in a model's generation settings is a matter of taste.
_STRUCTURAL = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 150,
    batch_size: int = 8,
    shared_prefix: Sequence[int] = (),
    advance: Callable[[int], None] | None = None,
    known: Mapping[int, str] | None = None,
    keep: Callable[[Mapping[int, str]], None] | None = None,
) -> list[str]:
    """Let ``model`` answer each prompt greedily; an answer is the first line of what it writes.

    White space before the answer is skipped (so leading line breaks do not count), the answer ends at the first line
    break after it or at an end token. A row that has its line break is finished: models that would go on are not made
    to. The longest prompts come first, so that a batch too large for the memory fails at once. Sampling, penalties and
    beams that a model's own generation settings ask for are ignored. Works for causal and for encoder-decoder models
    (the prompt goes to the encoder).

    Args:
        model: The language model. Its train or eval mode and its generation settings are as before afterwards.
        tokenizer: Its tokenizer; it is only read.
        prompts: N sequences of token ids, complete with beginning-of-sequence token and chat template.
        max_new_tokens: Longest answer, in tokens, at least 1.
        batch_size: Prompts answered at once, at least 1.
        shared_prefix: Token ids with which all prompts begin (few-shot examples). Their key-value states are then
            computed once, for architectures where that is exact: the outputs are the same up to rounding.
        advance: Called with the number of prompts answered since the last call (progress bars).
        known: Answers of an earlier call with the same arguments that was broken off, by the number of their prompt.
            The rest is answered in the same batches, so that the answers are the same to the last bit.
        keep: Called with the answers of each batch, by the number of their prompt, as soon as they are there.

    Returns:
        N answers, in the order of the prompts, without white space at the ends.

    Raises:
        UsageError: A number below 1, an empty prompt, a prompt too long for the model's limit, tokens that the model
            has no embeddings for, or weights or logits that are not finite. Such logits end their batch at once.
    """
    _check(model, tokenizer, prompts, max_new_tokens, batch_size)
    config = _greedy_settings(model, tokenizer, max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers = [""] * len(prompts)
    with _plain_generation(model, config), no_empty_rows(), torch.no_grad():
        prefix = _prefix(model, prompts, shared_prefix)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            found = {index: known[index] for index in batch if index in known} if known else {}
            if len(found) < len(batch):
                new = _answer_batch(model, tokenizer, [prompts[i] for i in batch], config, prefix)
                found = dict(zip(batch, new, strict=True))
                if keep is not None:
                    keep(found)
            for index, answer in found.items():
                answers[index] = answer
            if advance is not None:
                advance(len(batch))
    return answers


def first_line(text: str) -> str:
    """The first line of ``text`` that is not empty, without white space at its ends."""
    return LINE_BREAK.split(text.strip(), maxsplit=1)[0].strip()


def _answer_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    prefix: PrefixCache | None,
) -> list[str]:
    input_ids, attention_mask = _padded(prompts, model.device, left=not model.config.is_encoder_decoder)
    start = 1 if model.config.is_encoder_decoder else input_ids.shape[1]
    padding = [input_ids.shape[1] - len(prompt) for prompt in prompts]
    cached = {"past_key_values": prefix.shifted(padding)} if prefix else {}
    ends = [int(end) for end in config.eos_token_id or []]
    rows = AnswerComplete(tokenizer, start, ends)
    finite = FiniteLogits(_name_of(model), rows)
    output = model.generate(  # pyright: ignore[reportCallIssue] - typed as if it were a tensor
        input_ids=input_ids,
        attention_mask=attention_mask,
        generation_config=config,
        stopping_criteria=StoppingCriteriaList([rows, NotFinite(finite)]),
        logits_processor=LogitsProcessorList([finite]),
        **cached,
    )
    finite.check()
    written = [_until_end(row, ends) for row in output[:, start:].tolist()]
    return [first_line(decode_answer(tokenizer, row)) for row in written]


def _until_end(row: list[int], ends: Sequence[int]) -> list[int]:
    return next((row[:index] for index, token in enumerate(row) if token in ends), row)


def _name_of(model: PreTrainedModel) -> str:
    return model.name_or_path or type(model).__name__


def _padded(prompts: Sequence[Sequence[int]], device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, longest prompt); each row is filled with its own first token, see `crosskd.data.collate`.

    Answers go on at the right end of a causal model's prompt; an encoder reads prompts from column 0 on.
    """
    ids = [torch.tensor(prompt) for prompt in prompts]
    masks = [torch.ones(len(prompt), dtype=torch.long) for prompt in prompts]
    side = "left" if left else "right"
    mask = nn.utils.rnn.pad_sequence(masks, batch_first=True, padding_side=side)
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_side=side)
    firsts = torch.tensor([prompt[0] for prompt in prompts])[:, None]
    return torch.where(mask.bool(), padded, firsts).to(device), mask.to(device)


def _greedy_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> GenerationConfig:
    own = model.generation_config or GenerationConfig()
    ends = end_token_ids(model, tokenizer)
    # Any id serves as padding, since it follows a finished answer only, where it is cut.
    pads = [tokenizer.pad_token_id, own.pad_token_id, *ends, 0]
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=next(int(pad) for pad in pads if pad is not None),
        **{name: getattr(own, name, None) for name in _STRUCTURAL},
    )


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All tokens that end an answer: by the tokenizer, by the model's generation settings, or as an end of turn."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    stated = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    turns = [index for index, token in tokenizer.added_tokens_decoder.items() if token.content in _END_OF_TURN]
    return sorted({end for end in [*stated, *turns] if isinstance(end, int)})


@contextmanager
def _plain_generation(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Evaluation mode and no generation settings of the model's own, which `generate` would merge into ours."""
    # A PEFT model hands its settings to the model inside, so both are put back.
    inside = getattr(model, "get_base_model", lambda: model)()
    saved = [(each, each.generation_config) for each in (inside, model)]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        model.generation_config = config
        yield
    finally:
        for each, own in saved:
            each.generation_config = own
        for module, mode in training.items():
            module.training = mode


def _prefix(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], shared_prefix: Sequence[int]
) -> PrefixCache | None:
    length = usable_prefix_length(prompts, shared_prefix)
    return compute_prefix_cache(model, shared_prefix[:length]) if length and len(prompts) > 1 else None


def _check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
) -> None:
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise UsageError(name, got=value, expected="at least 1")
    lengths = [len(prompt) for prompt in prompts]
    if 0 in lengths:
        raise UsageError(f"prompt {lengths.index(0)} has no tokens")
    longest = max(lengths, default=0)
    room = max_new_tokens if not model.config.is_encoder_decoder else 0
    limit = context_length(model.config, tokenizer) if position_limit(model.config) is not None else None
    if limit is not None and longest + room > limit:
        raise UsageError(
            f"prompt {lengths.index(longest)} has {longest} tokens, and {room} new ones may follow",
            expected=f"at most {limit} together, the model's limit",
            fix="shorten the prompt, or lower max_new_tokens",
        )
    check_token_ids(
        ((f"prompt {index}", ids) for index, ids in enumerate(prompts)), embedding_rows(model), _name_of(model)
    )
    check_finite(model, _name_of(model))
