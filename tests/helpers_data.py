"""Rows of a small data set, the examples that they become, and ways to write and read them."""

from __future__ import annotations

import json

ROWS = [
    {
        "id": f"q{i}",
        "title": "Ann",
        "context": f"Ann's line {i}:\n\u2028Rome, 7.",
        "question": "Where?",
        "answer": f"Rome{i}",
    }
    for i in range(10)
]
EXAMPLES = [
    {"id": row["id"], "title": "Ann", "context": row["context"], "question": "Where?", "answers": [row["answer"]]}
    for row in ROWS
]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def only(prepared, split="train"):
    assert list(prepared.examples) == [split]
    return prepared.examples[split].to_list()
