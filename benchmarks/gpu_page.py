"""Put the tables of GPU runs into docs/performance.md; needs no GPU.

    python benchmarks/gpu_page.py benchmarks/results/losses_nvidia_h100_80gb_hbm3.csv
    python benchmarks/gpu_page.py benchmarks/results/training_nvidia_h100_80gb_hbm3.csv

The tables go between the markers `<!-- benchmarks/losses.py gpu begins -->` and
`<!-- benchmarks/losses.py gpu ends -->` (training.py for files whose name begins with `training`); several files of one
kind follow each other.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from gpu_cases import SIZES
from gpu_reach import Row, markdown, tables

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
NOT_MACHINE = ("what", "size", "value", "fastest", "unit", "reach", "note")
# what a reader of the page does not need; the CSV file has it
LEFT_OUT = ("First turn", "The passes", "Relative difference")


def markers(script: str) -> tuple[str, str]:
    return f"<!-- benchmarks/{script}.py gpu begins -->", f"<!-- benchmarks/{script}.py gpu ends -->"


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def measured_on(rows: Sequence[Row]) -> str:
    """A sentence about the machine, from the columns that are not about a single row."""
    machine = {name: value for name, value in rows[0].items() if name not in NOT_MACHINE and value}
    return "Measured on: " + ", ".join(f"{name} {value}" for name, value in machine.items()) + "."


def losses_section(rows: Sequence[Row]) -> str:
    """All tables of a run of `gpu_losses.py`, the goals first."""
    parts = [measured_on(rows), *_notes(rows)]
    for title, lines in tables(rows):
        if not title.startswith(LEFT_OUT):
            parts += [f"{title}:", markdown(_shortened(lines))]
    return "\n\n".join(parts)


def _notes(rows: Sequence[Row]) -> list[str]:
    """Sentences about the sizes and about the bandwidth that the passes are compared with."""
    there = {row["size"].removeprefix("hidden_") for row in rows}
    sizes = "; ".join(f"{name.replace('_', ', ')}: {size.text}" for name, size in SIZES.items() if name in there)
    notes = [f"Sizes (sequences x answer tokens, V of student / teacher): {sizes}."] if sizes else []
    for row in rows:
        if row["what"] == "copy bandwidth" and row["value"]:
            notes.append(f"Copy bandwidth in the same run: {row['value']} {row['unit']}, {row['note']}.")
    return notes


def training_section(rows: Sequence[Row]) -> str:
    """The rows of a run of `training.py`."""
    columns = ("what", "value", "fastest", "unit", "reach")
    lines = [list(columns), *([row[column] for column in columns] for row in rows)]
    return f"{measured_on(rows)}\n\n{markdown(lines)}"


def _shortened(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Column titles as a reader knows them: the groups of `gpu_losses.py` that have hidden states lose their prefix."""
    header = [cell.removeprefix("hidden_").replace("_", ", ") for cell in lines[0]]
    return [header, *([cell.replace("hidden_", "") for cell in line] for line in lines[1:])]


def put(section: str, script: str, page: Path = PAGE) -> None:
    """Replace what is between the markers of ``script``.

    Raises:
        SystemExit: The page has no such markers.
    """
    begin, end = markers(script)
    text = page.read_text()
    if begin not in text or end not in text:
        raise SystemExit(f"{page} has no {begin} and {end}")
    before, after = text.split(begin)[0], text.split(end)[1]
    page.write_text(f"{before}{begin}\n\n{section}\n\n{end}{after}")


def main(arguments: Sequence[str] | None = None, page: Path = PAGE) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    files: list[Path] = parser.parse_args(arguments).files
    training = [path for path in files if path.name.startswith("training")]
    for script, paths, section in (
        ("losses", [path for path in files if path not in training], losses_section),
        ("training", training, training_section),
    ):
        if paths:
            put("\n\n".join(section(read(path)) for path in paths), script, page)


if __name__ == "__main__":
    main()
