"""Every family of models: prompts, answers, logits, generation and shared prefixes are right."""

from __future__ import annotations

import pytest
import torch

from crosskd.data.collate import collate_answers, collate_encoder_decoder
from crosskd.evaluation.generation import generate_answers
from crosskd.losses.targets import TargetRequest
from crosskd.models.answer_logits import answer_logits
from crosskd.models.load import LoadedModel
from crosskd.teacher.capture import capture_targets
from crosskd.text.answer_spans import TokenizedExample
from helpers_families import (
    CAUSAL,
    EXAMPLES,
    FAMILIES,
    TASK,
    answer_by_hand,
    builder_of,
    logits_alone,
    tiny,
    tokenized,
)
from helpers_tolerances import assert_logits_close


def as_read(name: str, text: str) -> str:
    """A text as the family's tokenizer gives it back; unigram ones know neither line breaks nor all letters."""
    if FAMILIES[name].kind != "unigram":
        return text
    return " ".join(text.split()).replace("Ç", "<unk>").replace("🙂", "<unk>")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shots", [0, 1, 2])
def test_prompts_hold_everything_once_in_order_and_end_at_the_cue(name: str, shots: int) -> None:
    builder = builder_of(name, shots)
    chat = FAMILIES[name].template is not None
    for example in EXAMPLES:
        text = builder.build(example).text
        asked = [TASK.request(vars(shot)) for shot in TASK.shots[:shots]]
        parts = [word for shot, request in zip(TASK.shots, asked, strict=False) for word in (request, shot.answer)]
        request = TASK.request(example)
        at = 0
        for part in [*parts, request]:
            at = text.index(part, at) + len(part)
        assert text.endswith(request)
        assert text.count("Answer:") == shots + 1
        assert text.count(TASK.system) == (1 if chat or shots else 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_of_a_prompt_are_its_text_and_special_tokens_stand_where_the_model_wants_them(name: str) -> None:
    builder, family = builder_of(name), FAMILIES[name]
    tokenizer = builder.tokenizer
    for example in EXAMPLES:
        prompt = builder.build(example)
        ids = prompt.ids[:-1] if family.encoder_decoder else prompt.ids
        if family.encoder_decoder:
            assert prompt.ids[-1] == tokenizer.eos_token_id
        text = str(tokenizer.decode(ids, skip_special_tokens=False))
        written = prompt.text if prompt.text.startswith(family.bos or "\0") else (family.before or "") + prompt.text
        # metaspace tokenizers give back a space behind a special token that they saw none behind
        assert text.replace(" ", "") == as_read(name, written).replace(" ", "")
        if family.bos and family.bos != "<|im_start|>":
            starts = 3 if name == "llama2" else 1  # Llama 2 starts a sequence with every user turn
            expected = starts if family.before or (family.template and "bos_token" in family.template) else 0
            assert [id == tokenizer.bos_token_id for id in ids].count(True) == expected
            assert (ids[0] == tokenizer.bos_token_id) == bool(expected)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("append_eos", [False, True])
def test_an_answer_continues_its_prompt(name: str, append_eos: bool) -> None:
    builder = builder_of(name)
    tokenizer = builder.tokenizer
    for example, tokens in zip(EXAMPLES, tokenized(name, append_eos=append_eos), strict=True):
        prompt = builder.build(example)
        assert tokens.prompt_ids == prompt.ids
        answer = list(tokens.answer_ids)
        if append_eos:
            assert answer.pop() == tokenizer.eos_token_id
        special = [tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id]
        assert not [token for token in answer if token in special]
        if FAMILIES[name].encoder_decoder:
            assert tokenizer.decode(answer) == tokenizer.decode(tokenizer(example["answers"][0])["input_ids"][:-1])
            continue
        grown = str(tokenizer.decode([*prompt.ids, *answer])).removeprefix(str(tokenizer.decode(prompt.ids)))
        assert grown == " " + example["answers"][0]


def batch_of(loaded: LoadedModel, examples: list[TokenizedExample]) -> dict[str, torch.Tensor]:
    prompts, answers = [e.prompt_ids for e in examples], [e.answer_ids for e in examples]
    if loaded.model.config.is_encoder_decoder:
        return collate_encoder_decoder(prompts, answers, loaded.model.config.decoder_start_token_id)
    return collate_answers(prompts, answers)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
def test_logits_of_a_padded_batch_are_those_of_each_sequence_alone(name: str, training: bool) -> None:
    loaded = tiny(name)
    examples = tokenized(name, append_eos=True)
    batch = batch_of(loaded, examples)
    assert int(batch["attention_mask"].min()) == 0
    loaded.model.train(training)
    with torch.no_grad():
        logits = answer_logits(loaded.model, batch, batch["labels"].shape[1])
    loaded.model.eval()
    assert logits.shape[:2] == batch["labels"].shape
    for row, tokens in zip(logits, examples, strict=True):
        expected = logits_alone(loaded.model, tokens)
        assert float(expected.std()) > 0.1
        length = len(tokens.prompt_ids) + len(tokens.answer_ids)
        assert_logits_close(row[: len(tokens.answer_ids)], expected, loaded.model, length)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_answers_as_one_prompt_by_hand_with_and_without_the_shared_prefix(name: str) -> None:
    loaded, builder = tiny(name), builder_of(name)
    prompts = [builder.build(example).ids for example in EXAMPLES]
    shared = builder.shared_prefix_ids
    assert len(shared) > 30
    expected = [answer_by_hand(loaded, prompt, 12) for prompt in prompts]
    assert len(set(expected)) > 1
    for prefix in ([], shared):
        answers = generate_answers(
            loaded.model, loaded.tokenizer, prompts, max_new_tokens=12, batch_size=2, shared_prefix=prefix
        )
        assert answers == expected


@pytest.mark.parametrize("name", CAUSAL)
def test_targets_are_those_of_each_sequence_alone_with_and_without_the_shared_prefix(name: str) -> None:
    loaded, builder = tiny(name), builder_of(name)
    examples = tokenized(name, append_eos=False)
    request = TargetRequest(top_entries=len(loaded.tokenizer) // 2, entry_ids=True)
    for prefix in ([], builder.shared_prefix_ids):
        for tokens, targets in zip(
            examples,
            capture_targets(loaded.model, examples, request, batch_size=2, shared_prefix=prefix),
            strict=True,
        ):
            expected = logits_alone(loaded.model, tokens).log_softmax(-1)
            assert targets.entry_ids is not None
            assert targets.entry_log_probabilities is not None
            at_those = expected.gather(1, targets.entry_ids[0].long())
            length = len(tokens.prompt_ids) + len(tokens.answer_ids)
            assert_logits_close(targets.entry_log_probabilities[0], at_those, loaded.model, length)
            best = expected.topk(at_those.shape[1]).values
            assert_logits_close(at_those, best, loaded.model, length)
