"""Evaluation: prompts of a task in, scores and files out; truncation is counted."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from crosskd import __version__
from crosskd.errors import UsageError
from crosskd.evaluation.bertscore import bert_score_scores
from crosskd.evaluation.evaluate import evaluate
from crosskd.evaluation.metrics import exact_match, f1, rouge
from crosskd.evaluation.results import Evaluation
from crosskd.text.tasks import load_task
from helpers_encoders import save_bert

EXAMPLES = [
    {"id": "a", "title": "", "context": "Ann lives in Rome. " * 3, "question": "Where is Ann?", "answers": ["Rome"]},
    {"id": "b", "title": "", "context": "Bob is 7.", "question": "How old is Bob?", "answers": ["7", "seven"]},
    {"id": "c", "title": "", "context": "Cy sings.", "question": "What does Cy do?", "answers": ["sings"]},
]


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet)
    backend.train_from_iterator(["Context: Question: Answer: the a of in where what how\n"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=4096
    )


class RecordingModel(LlamaForCausalLM):
    """A random model that keeps the prompts it was given, without their padding."""

    def generate(self, input_ids=None, attention_mask=None, **rest):
        kept = [row[seen.bool()].tolist() for row, seen in zip(input_ids, attention_mask, strict=True)]
        self.prompts = [*getattr(self, "prompts", []), *kept]
        return super().generate(input_ids=input_ids, attention_mask=attention_mask, **rest)


@pytest.fixture
def model():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=400, max_position_embeddings=4096, initializer_range=0.5, **size)
    config.name_or_path = "tiny/llama"
    return RecordingModel(config)


def test_scores_are_those_of_the_predictions(model, tokenizer):
    done = []
    found = evaluate(
        model, EXAMPLES, "qa", tokenizer=tokenizer, name="tiny", max_new_tokens=6, batch_size=2, advance=done.append
    )
    texts = [prediction.prediction for prediction in found.predictions]
    references = [example["answers"] for example in EXAMPLES]
    assert [(each.id, each.question, each.answers) for each in found.predictions] == [
        (example["id"], example["question"], example["answers"]) for example in EXAMPLES
    ]
    assert found.scores == {"f1": f1(texts, references), "exact_match": exact_match(texts, references)} | rouge(
        texts, references
    )
    assert (found.name, found.task, found.examples, found.number_few_shot) == ("tiny", "qa", 3, 0)
    assert found.truncated_examples == 0
    assert found.seconds > 0
    assert done == [2, 1]


def test_prompts_are_those_of_the_task_and_settings_are_recorded(model, tokenizer):
    found = evaluate(model, EXAMPLES, load_task("qa"), tokenizer=tokenizer, max_new_tokens=5)
    prompts = [tokenizer.decode(prompt) for prompt in model.prompts]
    assert all(any(example["question"] in prompt for prompt in prompts) for example in EXAMPLES)
    assert all(prompt.endswith("Answer:") for prompt in prompts)
    assert found.name == "tiny/llama"
    assert found.settings["model"] == "tiny/llama"
    assert (found.settings["dtype"], found.settings["max_new_tokens"]) == ("float32", 5)
    assert found.crosskd_version == __version__


def test_few_shot_prompts_give_the_same_answers_with_their_prefix_computed_once(model, tokenizer, monkeypatch):
    cached = evaluate(model, EXAMPLES, "qa", tokenizer=tokenizer, number_few_shot=2, max_new_tokens=6)
    monkeypatch.setattr("crosskd.evaluation.generation.compute_prefix_cache", lambda *_: None)
    plain = evaluate(model, EXAMPLES, "qa", tokenizer=tokenizer, number_few_shot=2, max_new_tokens=6)
    assert cached.predictions == plain.predictions
    assert cached.number_few_shot == 2


def test_a_long_context_loses_its_front_and_is_counted(model, tokenizer):
    evaluate(model, EXAMPLES[1:2], "qa", tokenizer=tokenizer, max_new_tokens=6)
    short = len(model.prompts[0])
    long = {**EXAMPLES[1], "id": "long", "context": "Nothing of interest here. " * 30 + EXAMPLES[1]["context"]}
    examples = [long, EXAMPLES[1]]
    found = evaluate(model, examples, "qa", tokenizer=tokenizer, max_new_tokens=6, max_length=short + 6)
    assert found.truncated_examples == 1
    assert found.settings["context_tokens_dropped"] > 100
    assert found.settings["longest_prompt"] == short
    assert max(len(prompt) for prompt in model.prompts) == short
    kept = tokenizer.decode(model.prompts[-1] if len(model.prompts[-1]) == short else model.prompts[-2])
    assert EXAMPLES[1]["question"] in kept
    assert "Bob is 7." in kept


def test_without_a_limit_the_models_own_holds(tokenizer):
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    small = RecordingModel(LlamaConfig(vocab_size=400, max_position_embeddings=512, **size))
    long = {**EXAMPLES[0], "context": "Ann lives in Rome. " * 200}
    found = evaluate(small, [long], "qa", tokenizer=tokenizer, max_new_tokens=10)
    assert found.truncated_examples == 1
    assert len(small.prompts[0]) <= 502


def test_saved_and_loaded(model, tokenizer, tmp_path):
    found = evaluate(model, EXAMPLES, "qa", tokenizer=tokenizer, name="tiny", max_new_tokens=4)
    (tmp_path / "model.safetensors").write_text("stays")
    assert found.save(tmp_path) == tmp_path
    assert Evaluation.load(tmp_path) == found
    record = json.loads((tmp_path / "scores.json").read_text())
    assert {"name", "task", "examples", "seconds", "number_few_shot", "scores", "truncated_examples"} <= set(record)
    assert record["crosskd_version"] == __version__
    assert "predictions" not in record
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"id", "question", "answers", "prediction"}] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "predictions.jsonl", "scores.json"]


def test_loading_without_predictions_or_of_something_else(tmp_path):
    found = Evaluation("tiny", "qa", {"f1": 0.5}, [], 3, 1.0)
    found.save(tmp_path)
    (tmp_path / "predictions.jsonl").unlink()
    assert Evaluation.load(tmp_path) == found
    record = dataclasses.asdict(found)
    del record["predictions"], record["examples"]
    (tmp_path / "scores.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"does not hold an evaluation.*examples"):
        Evaluation.load(tmp_path)


def test_summaries_have_no_question(model, tokenizer):
    examples = [{"id": 7, "context": "A: Hi. B: Bye.", "answers": ["They met."], "question": "", "title": ""}]
    found = evaluate(model, examples, "summary_dialogue", tokenizer=tokenizer, max_new_tokens=4)
    assert (found.predictions[0].id, found.predictions[0].question) == ("7", "")


def test_bert_score_is_added_with_its_encoder(model, tokenizer, monkeypatch, tmp_path):
    encoder, answers = str(save_bert(tmp_path / "encoder")), ["hills", "sea", "river"]
    monkeypatch.setattr("crosskd.evaluation.evaluate.generate_answers", lambda *_, **__: answers)
    found = evaluate(model, EXAMPLES, "qa", tokenizer=tokenizer, bert_score_model=encoder, bert_score_layer=2)
    references = [example["answers"] for example in EXAMPLES]
    expected = bert_score_scores(answers, references, model=encoder, layer=2)
    assert [each.scores["bert_score_f1"] for each in found.predictions] == pytest.approx(expected["f1"], abs=1e-6)
    assert found.scores["bert_score_recall"] == pytest.approx(sum(expected["recall"]) / 3, abs=1e-6)
    assert found.settings["bert_score"] == {"model": encoder, "layer": 2, "version": "0.3.13"}
    assert Evaluation.load(found.save(tmp_path / "saved")) == found


def test_rouge_over_several_references_is_the_best_or_the_mean(model, tokenizer, monkeypatch):
    monkeypatch.setattr("crosskd.evaluation.evaluate.generate_answers", lambda *_, **__: ["Rome", "7", "sings"])
    for how, expected in (("best", 1.0), ("mean", 5 / 6)):  # one of six: "7" is one reference of two
        found = evaluate(model, EXAMPLES, "qa", tokenizer=tokenizer, rouge_aggregate=how)
        assert found.scores["rougeLsum"] == pytest.approx(expected)
        assert found.scores["f1"] == 1.0
        assert found.settings["rouge_aggregate"] == how
        assert found.settings["metrics"] == list(load_task("qa").metrics)


def test_a_task_that_lists_bert_score_is_told_what_it_needs(model, tokenizer, caplog):
    task = dataclasses.replace(load_task("qa"), metrics=("bert_score", "f1"))
    with caplog.at_level(logging.WARNING, logger="crosskd"):
        found = evaluate(model, EXAMPLES, task, tokenizer=tokenizer, max_new_tokens=2)
    assert "--bert_score_model" in caplog.text
    assert "bert_score_f1" not in found.scores


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rouge_aggregate": "median"}, "rouge_aggregate: got 'median'"),
        ({"bert_score_layer": 2}, "give --bert_score_model too"),
        ({"bert_score_model": "encoder"}, "recommends no layer"),
        ({"bert_score_model": "encoder", "bert_score_layer": 9}, "expected from 1 to 3"),
        ({"bert_score_model": "without weights", "bert_score_layer": 2}, "cannot work with"),
    ],
)
def test_scores_that_cannot_be_computed_are_refused_before_generation(
    model, tokenizer, tmp_path, monkeypatch, settings, message
):
    save_bert(tmp_path / "encoder")
    (save_bert(tmp_path / "without weights") / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        evaluate(model, EXAMPLES, "qa", tokenizer=tokenizer, **settings)
    assert not hasattr(model, "prompts")


@pytest.mark.parametrize(
    ("examples", "settings", "message"),
    [
        ([], {}, "no examples"),
        ([{**EXAMPLES[0], "answers": []}], {}, "example 'a' has no answers"),
        (EXAMPLES, {"max_length": 50, "max_new_tokens": 50}, "max_new_tokens: got 50; expected less than the 50"),
    ],
)
def test_bad_input(model, tokenizer, examples, settings, message):
    with pytest.raises(UsageError, match=message):
        evaluate(model, examples, "qa", tokenizer=tokenizer, **settings)
