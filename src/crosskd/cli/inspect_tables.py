"""What ``crosskd inspect`` found, as tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from crosskd.cli.console import output, say

ROLES = ("teacher", "student")
_Rows = Sequence[tuple[str, ...]]
_WIDTHS = (24, 26, 26)  # with two spaces between them: 80 columns


def show(findings: Mapping[str, Any]) -> None:
    """Print models, vocabularies, habits, lengths, an example, costs and warnings."""
    data, tokenizers = findings["data"], findings["tokenizers"]
    say(
        f"{data['source']}, split {data['split']}, task {data['task']}: "
        f"{tokenizers['examples']:,} of {data['examples']:,} examples looked at"
    )
    _pair("Models", _models(findings["models"], tokenizers))
    _pair("How text is cut", [_once(row) for row in _habits(tokenizers)])
    _pair("Tokens of these data", _lengths(tokenizers))
    _facts("Vocabularies", _overlap(tokenizers["overlap"]))
    _facts("Answer lengths", _ratios(tokenizers))
    _example(tokenizers["example"])
    _facts("Cost, estimated", _costs(findings, data["examples"]))
    _warnings(findings["warnings"])


def _models(models: Mapping[str, Any], tokenizers: Mapping[str, Any]) -> _Rows:
    def of(name: str) -> list[Any]:
        return [models[role][name] for role in ROLES]

    return [
        ("model", *(Path(name).name.removesuffix(".gguf") for name in of("name"))),
        ("kind", *of("architecture")),
        ("parameters", *(_count(number) for number in of("parameters"))),
        ("layers x hidden size", *(f"{models[role]['layers']} x {models[role]['hidden_size']}" for role in ROLES)),
        ("vocabulary entries", *(f"{tokenizers[role]['entries']:,}" for role in ROLES)),
        ("longest sequence", *(_limit(tokenizers[role]["limit"]) for role in ROLES)),
    ]


def _habits(tokenizers: Mapping[str, Any]) -> _Rows:
    teacher, student = (tokenizers[role]["habits"] for role in ROLES)

    def row(label: str, name: str) -> tuple[str, str, str]:
        return label, teacher[name] or "none", student[name] or "none"

    def choice(label: str, name: str, yes: str, no: str) -> tuple[str, str, str]:
        return label, yes if teacher[name] else no, yes if student[name] else no

    return [
        row("digits", "digits"),
        row("  such as", "number"),
        row("space between words", "spaces"),
        choice("space before a text", "prefix_space", "added", "not added"),
        row("several spaces", "space_runs"),
        row("line breaks", "line_breaks"),
        choice("capital letters", "keeps_case", "kept", "folded to small ones"),
        choice("accents", "keeps_accents", "kept", "dropped"),
        row("unknown character", "unknown"),
        row("put before a text", "before"),
        row("put after a text", "after"),
        row("beginning (BOS)", "bos"),
        row("end (EOS)", "eos"),
        row("padding", "pad"),
        choice("chat template", "chat_template", "yes", "no"),
    ]


def _once(row: tuple[str, ...]) -> tuple[str, ...]:
    return (row[0], row[1], "the same") if row[1] == row[2] else row


def _lengths(tokenizers: Mapping[str, Any]) -> _Rows:
    def of(form: str, *path: str) -> list[str]:
        values = []
        for role in ROLES:
            value = tokenizers[role]
            for name in path:
                value = value[name]
            values.append(format(value, form))
        return values

    def spread(name: str) -> list[str]:
        return [
            f"{tokenizers[role][name]['mean']:,.1f} ({tokenizers[role][name]['least']:,.0f} to "
            f"{tokenizers[role][name]['most']:,.0f})"
            for role in ROLES
        ]

    return [
        ("tokens a word", *of(".2f", "tokens_per_word")),
        ("characters a token", *of(".2f", "characters_per_token")),
        ("unknown tokens", *of(".2%", "unknown_tokens")),
        ("tokens an answer", *spread("answer_tokens")),
        ("prompt and answer", *spread("sequence_tokens")),
        ("  same in each prompt", *of(",", "shared_prompt_tokens")),
        ("contexts cut to fit", *of(",", "shortened")),
    ]


def _overlap(overlap: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("entries with equal text", f"{overlap['entries']:,}"),
        ("of the vocabulary", _both(overlap, "share")),
        ("of tokens in these data", _both(overlap, "share_in_use")),
        ("of tokens in answers", _both(overlap, "share_in_answers")),
    ]


def _both(overlap: Mapping[str, Any], name: str) -> str:
    return ", ".join(f"{overlap[f'{role}_{name}']:.1%} of the {role}'s" for role in ROLES)


def _ratios(tokenizers: Mapping[str, Any]) -> list[tuple[str, str]]:
    ratio = tokenizers["answer_ratio"]
    quantiles = ", ".join(f"{value:.2f}" for value in ratio["quantiles"].values())
    return [
        ("teacher / student tokens", f"mean {ratio['mean']:.2f}, from {ratio['least']:.2f} to {ratio['most']:.2f}"),
        ("  at 5 25 50 75 95 %", quantiles),
        ("unequal", f"{tokenizers['unequal_answers']:.0%} of the answers"),
    ]


def _costs(findings: Mapping[str, Any], examples: int) -> list[tuple[str, str]]:
    sizes = [
        (
            f"cache for {size['method']}",
            f"{_size(size['total_bytes'])} ({size['bytes_per_token']} bytes an answer token, "
            f"{size['bytes_per_example']} an example)",
        )
        for size in findings["cache"]
    ]
    estimate = findings["time"]
    speeds = [estimate[f"{role}_operations_per_second"] / 1e9 for role in ROLES]
    return [
        *sizes,
        ("teacher, once", f"{_duration(estimate['teacher_pass_seconds'])} or more for {examples:,} examples"),
        ("student, an epoch", f"{_duration(estimate['student_epoch_seconds'])} or more, with cached targets"),
        (
            "  from",
            f"operations (2 a parameter and token forward, 6 in training) at the {speeds[0]:,.0f} and {speeds[1]:,.0f} "
            f"billion a second of a matrix product on this {estimate['device']}, just now; attention, losses and "
            "padding come on top",
        ),
    ]


def _example(example: Mapping[str, Any]) -> None:
    rows = [("id", example["id"]), ("question", example["question"]), ("answer", example["answer"])]
    table = _table("An answer in both")
    for label, value in rows:
        if value:
            table.add_row(label, Text(_shortened(value)))
    for role in ROLES:
        pieces = example[role]
        table.add_row(f"{role} ({len(pieces)})", Text(_shortened(" | ".join(pieces))))
    output.print(table)


def _warnings(warnings: Sequence[Mapping[str, str]]) -> None:
    output.print()
    if not warnings:
        say("Nothing was found that is known to hurt.")
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
    for number, warning in enumerate(warnings, start=1):
        table.add_row(f"{number}.", Text(warning["text"]))
    output.print(Text("Watch out", style="bold"))
    output.print(table)


def _pair(title: str, rows: _Rows) -> None:
    table = _table(title, *ROLES)
    for row in rows:
        table.add_row(*map(Text, row))
    output.print(table)


def _facts(title: str, rows: _Rows) -> None:
    table = _table(title)
    for row in rows:
        table.add_row(*map(Text, row))
    output.print(table)


def _table(title: str, *headers: str) -> Table:
    """A column of labels under a bold title, and one of values or one for each header, after an empty line."""
    output.print()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(title, min_width=_WIDTHS[0], max_width=_WIDTHS[0])
    for header, width in zip(headers or ("",), _WIDTHS[1:], strict=False):
        table.add_column(header, overflow="fold", min_width=width, max_width=width if headers else None)
    return table


def _shortened(text: str, characters: int = 400) -> str:
    return text if len(text) <= characters else f"{text[:characters]} ..."


def _limit(tokens: int | None) -> str:
    return "no limit" if tokens is None else f"{tokens:,}"


def _count(number: float) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.1f} {name}"
    return f"{number:,.0f}"


def _size(number: float) -> str:
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.1f} {name}"
    return f"{number:.0f} bytes"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
