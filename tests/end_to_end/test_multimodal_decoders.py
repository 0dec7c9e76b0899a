"""Decoders that read images too (Gemma 3 of 4B and more) are loaded, trained, asked and refused as any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertForMaskedLM,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForSequenceClassification,
    Mistral3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    T5Config,
    WhisperConfig,
)

from crosskd.cli.main import main
from crosskd.data.collate import collate_answers
from crosskd.errors import UsageError
from crosskd.losses.cross_entropy import answer_cross_entropy
from crosskd.models.answer_logits import answer_logits
from crosskd.models.freezing import freeze_layers
from crosskd.models.limits import context_length
from crosskd.models.load import check_language_model, load_model
from helpers_families import family_tokenizer, reads_images, save_tiny, tiny, tokenized
from helpers_masks import MaskSpy, mask_spy

__all__ = ["mask_spy"]

NAME = "gemma3_with_images"

SMALL: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50,
}  # fmt: skip


@pytest.fixture(scope="module")
def gemma_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(NAME, tmp_path_factory.mktemp("gemma3") / "model")


def test_it_is_loaded_saved_and_loaded_again_whole(gemma_folder: Path, tmp_path: Path) -> None:
    loaded = load_model(gemma_folder)
    assert type(loaded.model) is Gemma3ForConditionalGeneration
    assert context_length(loaded.model.config, loaded.tokenizer) == 640
    loaded.model.save_pretrained(tmp_path / "again")
    loaded.tokenizer.save_pretrained(tmp_path / "again")
    again = load_model(tmp_path / "again").model
    for model in (loaded.model, again):
        found, expected = model.state_dict(), tiny(NAME).model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_freezing_counts_the_layers_that_read_text() -> None:
    model = tiny(NAME).model
    freeze_layers(model, 1)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if "language_model.layers.0." in name} != set()
    with pytest.raises(UsageError, match="less than the 2 layers"):
        freeze_layers(tiny(NAME).model, 2)


def test_all_weights_that_read_text_are_trained() -> None:
    model, examples = tiny(NAME).model.train(), tokenized(NAME, append_eos=True)
    batch = collate_answers([e.prompt_ids for e in examples], [e.answer_ids for e in examples])
    answer_cross_entropy(answer_logits(model, batch, batch["labels"].shape[1]), batch["labels"]).backward()
    reached = {name for name, value in model.named_parameters() if value.grad is not None and bool(value.grad.any())}
    read = {name for name, _ in model.named_parameters() if not reads_images(name)}
    assert reached == read


def test_every_verb_takes_it(
    gemma_folder: Path, student_folder: Path, data_folder: Path, tmp_path: Path, mask_spy: MaskSpy
) -> None:
    data = ["--data", str(data_folder)]
    targets, answers = tmp_path / "targets", tmp_path / "answers"
    shots = ["--number_few_shot", "1"]
    assert main(["cache", "--teacher", str(gemma_folder), *data, "--output", str(targets), *shots]) == 0
    words = ["answer", "--teacher", str(gemma_folder), *data, "--output", str(answers), "--max_new_tokens", "3", *shots]
    assert main(words) == 0
    training = ["--max_steps", "2", "--learning_rate", "1e-3", "--save_strategy", "no", *data, *shots]
    words = ["distill", "--student", str(student_folder), "--teacher_cache", str(targets), *training]
    assert main([*words, "--output_dir", str(tmp_path / "taught")]) == 0
    other = save_tiny(NAME, tmp_path / "other")
    words = ["distill", "--student", str(other), "--teacher", str(gemma_folder), *training, "--freeze_layers", "1"]
    assert main([*words, "--output_dir", str(tmp_path / "run")]) == 0
    student = load_model(tmp_path / "run").model
    assert type(student) is Gemma3ForConditionalGeneration
    before, after = tiny(NAME).model.state_dict(), student.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if reads_images(name) or "layers.0." in name]
    words = ["evaluate", "--model", str(tmp_path / "run"), *data, "--output", str(tmp_path / "scores")]
    assert main([*words, "--max_new_tokens", "3"]) == 0
    assert main(["inspect", "--student", str(other), "--teacher", str(gemma_folder), *data, *shots]) == 0
    mask_spy.check()


def test_an_adapter_beside_its_layers_can_be_merged(gemma_folder: Path, tmp_path: Path) -> None:
    from crosskd.models.adapters import merged_copy, with_lora

    model = load_model(gemma_folder).model
    merged = merged_copy(with_lora(model, rank=2, alpha=4, dropout=0.0))
    merged.save_pretrained(tmp_path / "merged")
    family_tokenizer(NAME).save_pretrained(tmp_path / "merged")
    assert type(load_model(tmp_path / "merged").model) is Gemma3ForConditionalGeneration


def write_config(config: PreTrainedConfig, folder: Path, architectures: list[str]) -> Path:
    config.architectures = architectures
    config.save_pretrained(folder)
    return folder


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


REFUSED = {
    "Mistral3ForConditionalGeneration": lambda p: write_config(
        Mistral3Config(), p, ["Mistral3ForConditionalGeneration"]
    ),
    "Qwen2_5_VLForConditionalGeneration": lambda p: write_config(
        Qwen2_5_VLConfig(), p, ["Qwen2_5_VLForConditionalGeneration"]
    ),
    "WhisperForConditionalGeneration": lambda p: write_config(
        WhisperConfig(), p, ["WhisperForConditionalGeneration"]
    ),
    "BertForMaskedLM": lambda p: saved(BertForMaskedLM(BertConfig(**SMALL)), p),
    "LlamaForSequenceClassification": lambda p: saved(LlamaForSequenceClassification(LlamaConfig(**SMALL)), p),
    "T5EncoderModel": lambda p: write_config(T5Config(), p, ["T5EncoderModel"]),
    "BartModel": lambda p: saved(
        BartModel(
            BartConfig(
                d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=50, max_position_embeddings=32,
            )
        ),
        p,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_automatic_class_loads_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    folder = REFUSED[name](tmp_path / "model")
    with pytest.raises(UsageError, match=f"got 'a {name}'; expected a causal language model"):
        load_model(folder, encoder_decoder=True)


def test_a_configuration_that_states_no_class_is_taken_for_what_its_type_is(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    LlamaConfig(**SMALL).save_pretrained(folder)
    assert not json.loads((folder / "config.json").read_text()).get("architectures")
    assert check_language_model("m", str(folder), {}).model_type == "llama"
    WhisperConfig().save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="got 'a whisper'"):
        check_language_model("m", str(tmp_path / "other"), {}, encoder_decoder=True)


def test_an_encoder_decoder_is_no_teacher(tmp_path: Path) -> None:
    folder = write_config(T5Config(), tmp_path / "t5", ["T5ForConditionalGeneration"])
    assert check_language_model("m", str(folder), {}, encoder_decoder=True).is_encoder_decoder
    with pytest.raises(UsageError, match="a T5ForConditionalGeneration"):
        check_language_model("m", str(folder), {})
