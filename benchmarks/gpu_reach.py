"""What the losses must reach on a GPU, computed from the rows of `gpu_losses.py`, and tables of those rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpu_cases import CE, SIZES

Row = dict[str, str]
REACH = "reach"  # the size column of the rows made here begins with it


@dataclass(frozen=True)
class Goal:
    """A row (and, for a ratio, the one that it is divided by), and what its value must be."""

    label: str
    size: str
    what: str
    unit: str
    reach: str
    over: str = ""
    over_unit: str = ""


def _ratio(label: str, size: str, what: str, reach: str, over: str) -> Goal:
    return Goal(label, size, what, "ms", reach, over=over)


GOALS = (
    _ratio("sft / torch CE", "8x20", "sft", "<= 1", CE),
    _ratio("sft / torch CE", "4x1024", "sft", "<= 1", CE),
    Goal("cached fast", "8x20", "fast, cached", "ms", "<= 0.8"),
    Goal("cached fast", "4x100", "fast, cached", "ms", "<= 0.8"),
    Goal("cached fast", "8x20", "fast, cached", "kernels", "<= 60"),
    Goal("cached fast", "4x100", "fast, cached", "kernels", "<= 60"),
    _ratio("cached fast / torch CE", "4x1024", "fast, cached", "<= 1.3", CE),
    Goal("cached fast", "1x4096", "fast, cached", "ms", "<= 12"),
    Goal("two passes", "4x1024", "two passes", "of copy bandwidth", ">= 0.6"),
    Goal("two passes", "1x4096", "two passes", "of copy bandwidth", ">= 0.6"),
    Goal("cached greedy", "8x20", "greedy, cached", "ms", "<= 3"),
    Goal("cached greedy", "8x20", "greedy, cached", "synchronizations", "<= 2"),
    Goal("cached exact", "8x20", "exact, cached", "ms", "<= 8"),
    Goal("cached exact", "8x20", "exact, cached", "synchronizations", "<= 2"),
    _ratio("step, cached fast / SFT", "step", "fast, cached, step", "<= 1.02", "SFT step"),
    _ratio("step, cached greedy / SFT", "step", "greedy, cached, step", "<= 1.08", "SFT step"),
    _ratio("step, cached exact / SFT", "step", "exact, cached, step", "<= 1.15", "SFT step"),
    Goal("peak, cached fast", "4x1024", "fast, cached", "MiB above inputs", "<= 1250"),
    Goal("peak, cached fast, no logits", "hidden_4x1024", "fused fast, cached", "MiB above inputs", "<= 350"),
    Goal(
        "the same, output layer frozen",
        "hidden_4x1024",
        "fused fast, cached, output layer frozen",
        "MiB above inputs",
        "<= 350",
    ),
)


def with_reach(rows: Iterable[Row], common: Sequence[str]) -> list[Row]:
    """The rows, each once (the last of those that measure the same thing), after a row for each goal.

    Args:
        rows: As read from the file; those made here before are made again.
        common: Columns about the machine, copied from the first row.
    """
    latest = {(row["what"], row["size"], row["unit"]): row for row in rows if not row["reach"]}
    kept = list(latest.values())
    machine = {name: kept[0][name] for name in common} if kept else {}
    made: list[Row] = []
    for goal in GOALS:
        value = _value(goal, latest)
        unit = "ratio" if goal.over else goal.unit
        shown = "" if value is None else f"{value:.4g}"
        note = "" if value is None else ("reached" if reached(value, goal.reach) else "not reached")
        row = {"what": goal.label, "size": goal.size, "value": shown, "fastest": "", "unit": unit}
        made.append({**row, "reach": goal.reach, "note": note or "not measured", **machine})
    return made + kept


def _value(goal: Goal, rows: dict[tuple[str, str, str], Row]) -> float | None:
    row, base = rows.get((goal.what, goal.size, goal.unit)), rows.get((goal.over, goal.size, goal.unit))
    if row is None or not row["value"]:
        return None
    if not goal.over:
        return float(row["value"])
    return float(row["value"]) / float(base["value"]) if base is not None and float(base["value"]) else None


def reached(value: float, reach: str) -> bool:
    """Whether a value is what ``reach`` (``<= 2``, ``>= 0.6``) asks for."""
    sign, bound = reach.split()
    return value <= float(bound) if sign == "<=" else value >= float(bound)


def tables(rows: Sequence[Row]) -> list[tuple[str, list[list[str]]]]:
    """Titles and tables (the first line is the header): goals, milliseconds, launches, memory, the rest."""
    goals = [row for row in rows if row["reach"]]
    plain = [row for row in rows if not row["reach"]]
    header = ["what", "size", "value", "unit", "reach", ""]
    first = [[row["what"], row["size"], row["value"], row["unit"], row["reach"], row["note"]] for row in goals]
    losses = [row for row in plain if row["size"] in SIZES]
    hidden = [row for row in plain if row["size"].startswith("hidden_")]
    found = [("Reach", [header, *first])]
    for title, part in (("losses", losses), ("with the output layer", hidden)):
        launches = ("kernels", "ms, GPU busy", "synchronizations")
        found += [
            (f"Milliseconds, {title}", _by_size(part, ("ms",))),
            (f"Kernels / milliseconds of a busy GPU / synchronizations, {title}", _by_size(part, launches)),
            (f"Peak MiB above inputs, {title}", _by_size(part, ("MiB above inputs",))),
        ]
    found.append(("Whole step", _by_unit([row for row in plain if row["size"] == "step"])))
    found.append(("The passes", _by_size(losses, ("of copy bandwidth",))))
    found.append(("First turn, seconds (kernels are compiled)", _by_size(losses, ("s, first turn",))))
    differences = "loss, relative difference to torch kernels", "gradient, relative difference to torch kernels"
    found.append(("Relative difference to torch kernels, loss / gradient", _by_size(losses, differences)))
    fused = "loss, relative difference to dense", "gradient, relative difference to dense"
    found.append(("Relative difference to dense, loss / gradient", _by_size(hidden, fused)))
    errors = [[row["what"], row["size"], row["note"]] for row in plain if row["unit"] == "error"]
    found.append(("Errors", [["what", "size", "error"], *errors]))
    return [(title, lines) for title, lines in found if len(lines) > 1]


def _by_size(rows: Sequence[Row], units: Sequence[str]) -> list[list[str]]:
    """A line for each thing measured, a column for each size; several units share a cell."""
    chosen = [row for row in rows if row["unit"] in units]
    sizes = list(dict.fromkeys(row["size"] for row in chosen))
    values = {(row["what"], row["size"], row["unit"]): row["value"] for row in chosen}
    lines = [["what", *sizes]]
    for what in dict.fromkeys(row["what"] for row in chosen):
        cells = [[values.get((what, size, unit), "") for unit in units] for size in sizes]
        lines.append([what, *(" / ".join(cell) if any(cell) else "" for cell in cells)])
    return lines


def _by_unit(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each thing measured, a column for each unit."""
    chosen = [row for row in rows if row["unit"] != "error"]
    units = list(dict.fromkeys(row["unit"] for row in chosen))
    values = {(row["what"], row["unit"]): row["value"] for row in chosen}
    whats = dict.fromkeys(row["what"] for row in chosen)
    return [["what", *units], *([what, *(values.get((what, unit), "") for unit in units)] for what in whats)]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table as Markdown; cells that say nothing stay empty."""
    cells = [list(lines[0]), ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in cells)


def plain_text(lines: Sequence[Sequence[str]]) -> str:
    """A table in columns of equal width, long cells cut."""
    cut = [[cell[:60] for cell in line] for line in lines]
    widths = [max(len(line[column]) for line in cut) for column in range(len(cut[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cut
    )
