"""BERTScore by the real package: an oracle of its own, encoders in folders, and everything that can be wrong."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, BertModel, PreTrainedConfig, RobertaModel

from crosskd.errors import UsageError
from crosskd.evaluation.bertscore import BertScorer, bert_score, bert_score_scores, bert_score_settings
from helpers_encoders import LAYERS, save_bert, save_roberta

PREDICTION, REFERENCE = "The river rises in the hills", "it runs from the hills to the sea"


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> Path:
    return save_roberta(tmp_path_factory.mktemp("encoder") / "roberta")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return save_bert(tmp_path_factory.mktemp("encoder") / "bert")


def by_hand(model, tokenizer, prediction: str, reference: str, layer: int) -> list[float]:
    """Precision, recall and F1 as Zhang et al. define them: greedy matching of cosines, special tokens not counted."""
    states = []
    for text in (prediction, reference):
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[layer][0]
        states.append(hidden / hidden.norm(dim=-1, keepdim=True))
    cosines = states[0] @ states[1].T  # the special tokens may be matched, but have no weight
    precision = float(cosines.max(dim=1).values[1:-1].mean())
    recall = float(cosines.max(dim=0).values[1:-1].mean())
    return [precision, recall, 2 * precision * recall / (precision + recall)]


@pytest.mark.parametrize("layer", [1, 2, LAYERS])
def test_the_scores_are_those_worked_out_from_the_encoders_states(roberta, bert, layer):
    models = [
        (roberta, RobertaModel, AutoTokenizer.from_pretrained(roberta, add_prefix_space=True)),
        (bert, BertModel, AutoTokenizer.from_pretrained(bert)),
    ]
    for folder, kind, tokenizer in models:
        model = kind.from_pretrained(folder, add_pooling_layer=False).eval()
        expected = by_hand(model, tokenizer, PREDICTION, REFERENCE, layer)
        found = bert_score([PREDICTION], [[REFERENCE]], model=str(folder), layer=layer)
        assert list(found) == ["precision", "recall", "f1"]
        assert list(found.values()) == pytest.approx(expected, abs=1e-5)
        assert len(set(expected)) == 3


def test_the_first_word_is_read_as_a_word_of_its_own(roberta):
    """Without the space before it, as tokenizers of transformers 5 read it, equal words would not be equal."""
    scorer = BertScorer(str(roberta), 1)
    tokenizer = AutoTokenizer.from_pretrained(roberta)
    assert tokenizer.tokenize("river") != tokenizer.tokenize(" river")
    assert scorer._scorer._tokenizer.tokenize("river") == tokenizer.tokenize(" river")


def test_the_best_reference_counts_and_batches_do_not_matter(bert):
    predictions = [PREDICTION, "Ann lives in Rome", "sings"]
    references = [["where", REFERENCE], ["Bob sings every morning", "Ann"], ["Bob sings"]]
    together = bert_score_scores(predictions, references, model=str(bert), layer=2, batch_size=2)
    for index, (prediction, several) in enumerate(zip(predictions, references, strict=True)):
        alone = [bert_score([prediction], [[one]], model=str(bert), layer=2)["f1"] for one in several]
        assert together["f1"][index] == pytest.approx(max(alone), abs=1e-5)


def test_empty_texts_score_nothing(bert):
    scorer = BertScorer(str(bert), 2)
    scores = scorer.scores(["", "Ann", "Bob"], [["x"], ["Ann", " "], [""]])
    assert scores["f1"] == pytest.approx([0.0, 1.0, 0.0], abs=1e-5)
    assert max(scores["precision"]) <= 1.0  # cosines stray beyond 1 by rounding
    assert scorer.scores([""], [["x"]])["recall"] == [0.0]


@pytest.mark.parametrize("limited", [True, False])
def test_texts_too_long_for_the_encoder_are_cut(bert, roberta, tmp_path, limited):
    folder = roberta if limited else save_roberta(tmp_path / "roberta", model_max_length=10**30)
    for encoder in (folder, bert):
        scores = bert_score_scores([REFERENCE + " so it is" * 100], [[REFERENCE]], model=str(encoder), layer=2)
        assert 0 < scores["precision"][0] < 1


def test_settings_say_what_was_used(bert, monkeypatch):
    version = "0.3.13"
    assert bert_score_settings(str(bert), 2) == {"model": str(bert), "layer": 2, "version": version}
    assert BertScorer(str(bert), 2).settings["layer"] == 2
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda _: PreTrainedConfig(num_hidden_layers=24))
    assert bert_score_settings() == {"model": "roberta-large", "layer": 17, "version": version}


def test_a_folder_needs_a_layer_that_it_has(bert, tmp_path):
    with pytest.raises(UsageError, match=r"recommends no layer.*from 1 to 3, with --bert_score_layer"):
        bert_score(["a"], [["b"]], model=str(bert))
    for layer in (0, LAYERS + 1):
        with pytest.raises(UsageError, match=rf"--bert_score_layer for .*got {layer}; expected from 1 to 3"):
            bert_score_settings(str(bert), layer)
    shutil.copytree(bert, tmp_path / "bert-base-uncased")
    with pytest.raises(UsageError, match=r"for bert-base-uncased it recommends 9"):
        bert_score_settings(str(tmp_path / "bert-base-uncased"))


def test_what_is_no_encoder_is_said_before_anything_is_scored(bert, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"--bert_score_model nobody/nothing: got .no configuration"):
        bert_score_settings("nobody/nothing", 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"--bert_score_model .*Unrecognized model"):
        bert_score_settings(str(tmp_path / "empty"), 3)
    with pytest.raises(UsageError, match=r"bert-score cannot work with"):
        BertScorer(str(broken(bert, tmp_path / "broken")), 2)
    # bert-score goes by names: this one is a T5 to it, with random weights
    shutil.copytree(bert, tmp_path / "not5bert")
    with pytest.raises(UsageError, match=r"a model of type bert.*move or rename"):
        bert_score_settings(str(tmp_path / "not5bert"), 2)
    # and this one a download
    shutil.copytree(bert, tmp_path / "scibert-mine")
    monkeypatch.chdir(tmp_path)
    assert BertScorer("scibert-mine", 2).settings["model"] == "scibert-mine"


def broken(encoder: Path, folder: Path) -> Path:
    shutil.copytree(encoder, folder)
    (folder / "model.safetensors").unlink()
    return folder


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(UsageError, match=r'pip install "crosskd\[bert-score\]"'):
        bert_score(["a"], [["b"]])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [([], [], "no predictions"), (["a"], [], "1 predictions for 0 lists"), (["a"], [[]], r"references\[0\] is empty")],
)
def test_bad_input(predictions, references, message):
    with pytest.raises(UsageError, match=message):
        bert_score(predictions, references)
