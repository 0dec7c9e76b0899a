"""What is not finite is refused by name, or stays visible as a loss that is NaN."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from crosskd.cli.main import main
from crosskd.errors import UsageError
from crosskd.evaluation.evaluate import evaluate
from crosskd.evaluation.generation import generate_answers
from crosskd.losses import multilevel_ot_loss
from crosskd.losses.targets import TargetRequest
from crosskd.models.finite import check_finite
from crosskd.models.load import LoadedModel, load_model
from crosskd.teacher import capture
from crosskd.teacher.prefix import SharedPrefix
from crosskd.text.answer_spans import TokenizedExample
from crosskd.transport import match_columns
from helpers_families import FAMILIES, save_tiny, tiny
from helpers_models import examples, save_student, save_teacher, tiny_model
from helpers_tokenizers import byte_level_tokenizer

SHARED = list(range(10, 40))
ROWS = [TokenizedExample([*SHARED, 50 + i], [60, 61], 0) for i in range(3)]


def break_weight(folder: Path, value: float = torch.nan) -> str:
    """Put one bad number into the first MLP weight of a saved model; its name."""
    loaded = load_model(folder)
    name, weight = next((n, p) for n, p in loaded.model.named_parameters() if "mlp" in n and p.ndim == 2)
    with torch.no_grad():
        weight[1, 2] = value
    loaded.model.save_pretrained(folder)
    return name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_first_bad_parameter_is_named_with_the_count(dtype: torch.dtype, value: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6)).to(dtype)
    check_finite(model, "x")
    with torch.no_grad():
        model[1].weight[2, :2] = value
        model[2].bias.fill_(value)
    with pytest.raises(UsageError, match=r"model 'x'.*2 of the 20 numbers of 1\.weight"):
        check_finite(model, "x")


def test_numbers_whose_sum_overflows_are_finite() -> None:
    model = nn.Linear(64, 64).half()
    nn.init.constant_(model.weight, 65504.0)
    check_finite(model, "large")


def test_what_has_no_numbers_is_not_looked_at() -> None:
    model = nn.ParameterDict(
        {
            "quantized": nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False),
            "empty": nn.Parameter(torch.empty(0)),
            "elsewhere": nn.Parameter(torch.empty(4, device="meta")),
        }
    )
    check_finite(model, "x")


@pytest.mark.parametrize("verb", ["distill", "cache", "answer", "evaluate"])
def test_verbs_refuse_such_weights_and_write_nothing(
    verb: str, data_folder: Path, student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = break_weight(save_teacher(tmp_path / "broken"))
    models = {
        "distill": ["--student", str(student_folder), "--teacher", str(tmp_path / "broken")],
        "evaluate": ["--model", str(tmp_path / "broken")],
    }.get(verb, ["--teacher", str(tmp_path / "broken")])
    output = ["--output_dir" if verb == "distill" else "--output", str(tmp_path / "out")]
    assert main([verb, *models, "--data", str(data_folder), *output]) == 2
    error = capsys.readouterr().err
    assert f"1 of the 2,048 numbers of {name}" in error
    assert not (tmp_path / "out").exists()


def test_a_model_that_came_as_an_object_is_checked_too() -> None:
    model, tokenizer = tiny_model("llama"), byte_level_tokenizer()
    with torch.no_grad():
        next(model.parameters())[3] = torch.inf
    with pytest.raises(UsageError, match="NaN or infinite"):
        generate_answers(model, tokenizer, [[5, 6]], max_new_tokens=1)
    with pytest.raises(UsageError, match="NaN or infinite"):
        evaluate(model, examples(2), "qa", tokenizer=tokenizer, max_new_tokens=1)


def too_large(model: nn.Module, token: int) -> None:
    """Let the states of one token overflow, from weights that are finite, as float16 does."""

    def overflow(_: nn.Module, inputs: tuple[torch.Tensor, ...], states: torch.Tensor) -> torch.Tensor:
        return states.masked_fill((inputs[0] == token)[..., None], torch.inf)

    model.get_input_embeddings().register_forward_hook(overflow)  # pyright: ignore[reportCallIssue]


def test_generation_refuses_logits_that_are_not_finite() -> None:
    model = tiny_model("llama")
    too_large(model, 77)
    generate_answers(model, byte_level_tokenizer(), [[5, 6], [5, 6, 7]], max_new_tokens=1)
    with pytest.raises(UsageError, match=r"logits that are NaN or infinite.*float16"):
        generate_answers(model, byte_level_tokenizer(), [[5, 6], [5, 77, 7]], max_new_tokens=1)


@pytest.mark.parametrize("prefix", [[], SHARED])
def test_captured_targets_that_are_not_finite_name_their_example(
    prefix: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("crosskd"), "propagate", True)
    model = tiny_model("llama")
    too_large(model, 51)
    for names, told in ((None, "example '1'"), (["a", "b", "c"], "example 'b'")):
        with pytest.raises(UsageError, match=f"{told}.*column_log_probabilities.*NaN"):
            capture.capture_targets(model, ROWS, TargetRequest(top_k=5), shared_prefix=prefix, names=names)
    assert caplog.text == ""  # nothing about prefixes, of which this is no failure


def test_a_prefix_that_makes_nan_of_numbers_is_not_used(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BadPrefix(SharedPrefix):
        def states(self, batch_size: int):
            cache = super().states(batch_size)
            cache.layers[0].values.fill_(torch.nan)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
            return cache

    model, request = tiny_model("llama"), TargetRequest(top_k=5)
    expected = capture.capture_targets(model, ROWS, request)
    monkeypatch.setattr(capture, "SharedPrefix", BadPrefix)
    monkeypatch.setattr(logging.getLogger("crosskd"), "propagate", True)
    found = capture.capture_targets(model, ROWS, request, shared_prefix=SHARED)
    assert "whole prompts are computed" in caplog.text
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(one.column_log_probabilities, two.column_log_probabilities)


def test_cache_names_the_example_by_its_id(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import crosskd.cli.cache

    folder = save_teacher(tmp_path / "teacher")
    load = crosskd.cli.cache.load_model

    def overflowing(*arguments: object, **options: object) -> LoadedModel:
        loaded = load(*arguments, **options)  # pyright: ignore[reportArgumentType]
        six = loaded.tokenizer("6", add_special_tokens=False)["input_ids"][-1]  # only q6's texts hold that digit
        too_large(loaded.model, int(six))
        return loaded

    monkeypatch.setattr(crosskd.cli.cache, "load_model", overflowing)
    words = ["cache", "--teacher", str(folder), "--data", str(data_folder), "--output", str(tmp_path / "out")]
    assert main([*words, "--number_few_shot", "0"]) == 2
    assert "example 'q6'" in capsys.readouterr().err


@pytest.mark.parametrize("vocabulary", [60, 5000])
@pytest.mark.parametrize("matching", ["fast", "greedy", "exact"])
@pytest.mark.parametrize("where", ["student", "teacher", "both"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_loss_of_logits_that_are_not_finite_is_nan_for_every_matching(
    vocabulary: int, matching: str, where: str, value: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, vocabulary, generator=generator) for _ in range(2))
    for side, logits in (("student", student), ("teacher", teacher)):
        if where in (side, "both"):
            logits[1, 2, 7] = value
    mask = torch.ones(2, 4, dtype=torch.bool)
    student.requires_grad_()
    terms = multilevel_ot_loss(student, teacher, mask, mask, top_k=8, matching=matching)  # pyright: ignore[reportArgumentType]
    assert torch.isnan(terms.total)
    chosen = match_columns(student.detach(), teacher.softmax(-1)[..., :8], mask, mask, matching)
    assert chosen.shape == (2, 8)
    assert all(len(set(row)) == 8 for row in chosen.tolist())
    assert int(chosen.min()) >= 0
    assert int(chosen.max()) < vocabulary


def test_a_folder_whose_weights_are_not_all_there_is_refused(tmp_path: Path) -> None:
    """transformers takes random numbers for what is missing."""
    from safetensors.torch import load_file, save_file

    folder = save_student(tmp_path / "student")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"], weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"no weights for lm_head\.weight and 1 more"):
        load_model(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_whole_when_it_was_saved_and_loaded(name: str, tmp_path: Path) -> None:
    """Some have other names in files than in memory, tied weights, or parts that no text reaches: none is missing."""
    loaded = load_model(save_tiny(name, tmp_path / "model"), encoder_decoder=True)
    found, expected = loaded.model.state_dict(), tiny(name).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
