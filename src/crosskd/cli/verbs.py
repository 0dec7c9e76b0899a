"""The verbs of the command line, known without importing one of them."""

from __future__ import annotations

VERBS = {
    "demo": "distil a real small model end to end, on this machine",
    "prepare": "turn a data file into examples (arrow)",
    "inspect": "compare two tokenizers on your data, before training",
    "answer": "let the teacher answer the examples",
    "cache": "run the teacher once and keep what the losses need",
    "distill": "train a student, with or without a teacher",
    "evaluate": "let a model answer, and score the answers",
    "recipes": "list, show, copy or run the paper's experiments",
    "compare": "tell by how much models differ, with intervals",
    "report": "put scores, curves and predictions into one HTML page",
    "env": "show versions, machine and what crosskd finds there",
}
"""What each verb does, in the order of help."""

RESUMABLE = frozenset({"demo", "answer", "cache", "distill", "evaluate", "recipes"})
"""Verbs that keep what they did before they were interrupted, and go on from it with ``--resume``."""
