"""The section of docs/performance.md that `training.py` renews."""

from __future__ import annotations

from collections.abc import Sequence

from losses import PAGE

BEGIN, END = "<!-- benchmarks/training.py begins -->", "<!-- benchmarks/training.py ends -->"
Row = dict[str, object]


def shown(cell: object) -> str:
    if not isinstance(cell, float):
        return f"{cell:,}" if isinstance(cell, int) else str(cell)
    return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:,.0f}"


def document(rows: Sequence[Row], common: dict[str, str]) -> None:
    """Put both tables between the markers of docs/performance.md."""
    columns = ("what", "value", "fastest", "unit", "reach")
    measured = [row for row in rows if "computed" not in str(row["unit"])]
    costs: dict[str, dict[str, object]] = {}
    for row in rows:
        if row not in measured:
            name, way = str(row["what"]).split(": ")
            costs.setdefault(name, {})[way] = row["value"]
    ways = list(next(iter(costs.values())))
    tables = [
        _table(columns, [[row.get(column, "") for column in columns] for row in measured]),
        f"Minutes, computed from the medians above, for {common['data']}:",
        _table(("training", *ways), [[name, *cost.values()] for name, cost in costs.items()]),
    ]
    where = ", ".join(f"{name} {value}" for name, value in common.items())
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    body = "\n\n".join([f"Measured on: {where}.", *tables])
    PAGE.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}")


def _table(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    cells = [list(header), ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(shown(cell) for cell in line) + " |" for line in cells)
