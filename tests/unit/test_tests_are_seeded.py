"""The tests themselves: nothing in them is drawn without a seed, and what they share is the same in every run."""

from __future__ import annotations

import ast
import hashlib
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy
import pytest
import torch

import helpers_tokenizers
from crosskd.cli.console import start_logging
from helpers_encoders import save_bert, save_roberta
from helpers_families import FAMILIES
from helpers_models import save_student, save_teacher
from helpers_process import restored
from helpers_published import save_t5

TESTS = Path(__file__).parents[1]
SOURCES = sorted(TESTS.rglob("*.py"))

# callables that are random where they get neither a seed nor a generator
SEEDED_BY_ARGUMENT = {"default_rng", "RandomState", "SeedSequence", "Random"}
FORBIDDEN = {"uuid1", "uuid4", "urandom", "token_hex", "token_bytes", "SystemRandom"}
DRAWS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "normal_", "uniform_", "multinomial"}
SEEDS = {"manual_seed", "seed", "set_seed"}


def name_of(call: ast.Call) -> str:
    """The last part of what is called: ``randn`` for ``torch.randn(...)``."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def calls(node: ast.AST) -> Iterator[ast.Call]:
    return (each for each in ast.walk(node) if isinstance(each, ast.Call))


def unseeded_generators(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Generators without a seed, and sources of numbers that take none."""
    ended = (call.func for call in calls(tree) if name_of(call) == "manual_seed")
    seeded = {id(function.value) for function in ended if isinstance(function, ast.Attribute)}  # of a fresh generator
    for call in calls(tree):
        name = name_of(call)
        if name in FORBIDDEN:
            yield call.lineno, f"{name}: random in every run"
        elif name in SEEDED_BY_ARGUMENT and not call.args and not call.keywords:
            yield call.lineno, f"{name}() has no seed"
        elif name == "Generator" and not call.args and id(call) not in seeded:
            yield call.lineno, "Generator() is not seeded where it is made"
        elif name in {"UnigramTrainer", "WordPieceTrainer"}:
            yield call.lineno, f"{name} gives another tokenizer every time"


def draws(node: ast.AST) -> Iterator[ast.Call]:
    """Calls that take from torch's global stream: random tensors without a generator, and new models."""
    for call in calls(node):
        name, from_torch = name_of(call), isinstance(call.func, ast.Attribute)
        drawn = name in DRAWS and from_torch and not any(word.arg == "generator" for word in call.keywords)
        made = name == "from_config" or (name.endswith(("Model", "ForCausalLM", "Generation")) and name[0].isupper())
        if drawn or made:
            yield call


def seeded_inside(function: ast.FunctionDef) -> bool:
    return any(name_of(call) in SEEDS for call in calls(function))


def outlives_its_test(function: ast.FunctionDef) -> bool:
    """Whether it is a fixture of a module or of the session."""
    words = [word for call in map(ast.unparse, function.decorator_list) for word in call.split("scope=")[1:]]
    return any(not word.startswith(("'function'", '"function"')) for word in words)


def unseeded_draws(tree: ast.Module, path: Path) -> Iterator[tuple[int, str]]:
    """Random numbers that depend on what ran before: drawn on import, in helpers, and in fixtures that stay."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(call) for function in functions for call in calls(function)}
    inside |= {id(call) for node in ast.walk(tree) if isinstance(node, ast.Lambda) for call in calls(node)}
    for call in draws(tree):
        if id(call) not in inside:
            yield call.lineno, f"{name_of(call)} is drawn when the file is imported"
    for function in functions:
        lasting = outlives_its_test(function) or path.name.startswith(("helpers_", "conftest"))
        if lasting and not seeded_inside(function):
            yield from (
                (call.lineno, f"{name_of(call)} in {function.name}, which seeds nothing") for call in draws(function)
            )


def complaints(text: str, path: Path) -> list[str]:
    tree = ast.parse(text)
    found = [*unseeded_generators(tree), *unseeded_draws(tree, path)]
    return [f"{path.name}:{line}: {message}" for line, message in sorted(found)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TESTS)))
def test_nothing_is_drawn_without_a_seed(path: Path) -> None:
    assert complaints(path.read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("numpy.random.default_rng()", "default_rng() has no seed"),
        ("random.Random()", "Random() has no seed"),
        ("g = torch.Generator()", "Generator() is not seeded"),
        ("name = uuid.uuid4()", "uuid4"),
        ("trainers.UnigramTrainer(vocab_size=9)", "UnigramTrainer"),
        ("trainers.WordPieceTrainer(vocab_size=9)", "WordPieceTrainer"),
        ("WEIGHTS = torch.randn(3)", "when the file is imported"),
        ("@pytest.fixture(scope='module')\ndef m():\n    return LlamaForCausalLM(config)", "LlamaForCausalLM in m"),
        ("@pytest.fixture(scope='session')\ndef m():\n    return torch.rand(3)", "rand in m"),
    ],
)
def test_what_is_not_seeded_is_found(text: str, message: str) -> None:
    assert message in " ".join(complaints(text, Path("test_x.py")))
    assert "torch.rand" not in text or complaints(text.replace("torch.rand", "torch.zeros"), Path("test_x.py")) == []


@pytest.mark.parametrize(
    "text",
    [
        "numpy.random.default_rng(5)",
        "torch.Generator().manual_seed(1)",
        "def test():\n    torch.randn(3)",  # every test is seeded
        "@pytest.fixture\ndef m():\n    return LlamaForCausalLM(config)",
        "@pytest.fixture(scope='module')\ndef m():\n    torch.manual_seed(0)\n    return LlamaForCausalLM(config)",
        "X = torch.rand(3, generator=torch.Generator().manual_seed(0))",
        "make = lambda: LlamaForCausalLM(config)",
    ],
)
def test_what_is_seeded_is_let_through(text: str) -> None:
    assert complaints(text, Path("test_x.py")) == []


def fingerprint(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("save", [save_student, save_teacher, save_t5, save_roberta, save_bert])
def test_shared_models_are_the_same_whoever_asks_first(save: Callable[[Path], Path], tmp_path: Path) -> None:
    found = []
    for place in range(2):
        torch.manual_seed(place + 100)
        random.seed(place + 100)
        numpy.random.seed(place + 100)
        for trained in ("_byte_level", "_sentencepiece", "_unigram"):
            getattr(helpers_tokenizers, trained).cache_clear()
        found.append(fingerprint(save(tmp_path / str(place))))
    assert found[0] == found[1]
    assert "model.safetensors" in found[0]


@pytest.mark.parametrize("name", sorted(helpers_tokenizers.TOKENIZERS))
def test_tokenizers_are_trained_alike_every_time(name: str) -> None:
    train = getattr(helpers_tokenizers, f"_{name}").__wrapped__
    assert len({train(400).to_str() for _ in range(3)}) == 1


def test_families_differ_by_their_seeds_alone() -> None:
    from helpers_families import _tiny

    torch.manual_seed(1)
    first = _tiny.__wrapped__("t5").model.state_dict()
    torch.manual_seed(2)
    again = _tiny.__wrapped__("t5").model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert "t5" in FAMILIES


def test_a_test_begins_with_the_seeds_of_every_other() -> None:
    generators = random.Random(0), numpy.random.RandomState(0), torch.Generator().manual_seed(0)
    assert random.random() == generators[0].random()
    assert numpy.random.random() == generators[1].random_sample()
    assert torch.equal(torch.rand(3), torch.rand(3, generator=generators[2]))


def test_hypothesis_draws_the_same_examples_and_keeps_none() -> None:
    chosen = hypothesis.settings()
    assert chosen.derandomize
    assert chosen.deadline is None
    assert chosen.database is None


@pytest.fixture(scope="module")
def untidy() -> tuple[float, float]:
    """A fixture that outlives its test, draws without a seed, and leaves the process changed, as every verb does."""
    start_logging("datasets", "transformers")
    os.environ["LEFT"] = "behind"
    return random.random(), float(numpy.random.random())


def test_lasting_fixtures_draw_the_same_and_leave_nothing_behind(untidy: tuple[float, float]) -> None:
    assert untidy == (random.Random(0).random(), numpy.random.RandomState(0).random_sample())
    assert "LEFT" not in os.environ
    assert logging.getLogger("crosskd").propagate


def test_the_process_is_put_back() -> None:
    here, logger = Path.cwd(), logging.getLogger("crosskd")
    before = logger.level, logger.propagate, list(logger.handlers)
    with restored():
        start_logging("datasets", "transformers")
        os.environ["LEFT"] = "behind"
        os.environ.pop("HF_HUB_OFFLINE")
        os.chdir("/")
        torch.set_default_dtype(torch.float64)
        sys.path.insert(0, "/left")
    assert "LEFT" not in os.environ
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert Path.cwd() == here
    assert torch.get_default_dtype() == torch.float32
    assert "/left" not in sys.path
    assert (logger.level, logger.propagate, logger.handlers) == before
