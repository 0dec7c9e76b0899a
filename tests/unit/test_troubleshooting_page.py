"""The messages that docs/troubleshooting.md explains are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MESSAGES = (
    "is not empty", "give --resume to go on from it, --overwrite to delete what it holds, or another folder",
    "this folder holds more than results; choose another one", "another run (", "an older checkpoint is taken",
    "the start: there is no checkpoint yet", "is finished already; it is left as it is", "cannot be written (",
    "the last good checkpoint is", "made from something else (", "no cache", "no vocabulary of the teacher",
    "that are NaN or infinite", "give --trust_remote_code to run the code in its repository",
    "weights in pickle format only (", "no copy from the hub (HF_HUB_OFFLINE is set)", "is damaged", "tokenizer of ",
    "check the name, the connection and, for a gated model, the login", "a folder without config.json",
    "a causal language model", "holds token", "weights that are NaN or infinite", "the loss is not finite: ",
    "the gradient norm is not finite", "have answers of several lines", "which are not supported yet",
    "the two models answered different examples", "has other references in",
    "the evaluations were made with different --", "cannot be compared", "lost in rounding", "CROSSKD_DEBUG",
)  # fmt: skip


@pytest.fixture(scope="module")
def source() -> str:
    """The package's code, with string literals that Python joins written as one."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
    return re.sub(r"""["']\s*f?["']""", "", text)


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_says_what_the_page_explains(message: str, source: str) -> None:
    page = " ".join((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").split())
    assert message in page
    assert message in source
