"""Loss curves as SVG that takes its colours from the page around it."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from crosskd.report.collect import TrainingLog

#: Colours of the lines, each a CSS variable of the page; further runs repeat them with other dashes.
SERIES = 6
_DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)))
_MOST_POINTS = 600

_CAPTIONS = {
    "loss": ("Loss", "cross-entropy plus weighted distillation, per answer token"),
    "eval_loss": ("Validation loss", "the loss on the validation split"),
    "cross_entropy": ("Cross-entropy", "on the labels, per answer token"),
    "distillation": ("Distillation", "the method's terms together, before their weight in the loss"),
    "absolute_difference": ("Absolute difference", "holistic absolute difference, Eq. 14"),
    "sequential_log": ("Sequential logarithmic term", "Eq. 16"),
    "sinkhorn": ("Sinkhorn distance", "Eq. 20"),
}

# Placeholders that matplotlib can parse, replaced by what only a browser understands.
_TEXT, _GRID = "#0000f1", "#0000f2"
_SERIES_COLOURS = [f"#0000e{index}" for index in range(1, SERIES + 1)]


@dataclass(frozen=True)
class Curve:
    """One figure: its title, what it shows, and an inline ``<svg>`` element."""

    title: str
    caption: str
    svg: str


def loss_curves(logs: Sequence[TrainingLog]) -> list[Curve]:
    """One figure a loss term, with one line a run; terms in the order of the loss, unknown ones last.

    Line i has the colour ``var(--series-i)`` (from 1 to :data:`SERIES`, then again), text and axes have
    ``currentColor``, the grid ``var(--grid)``: the page sets them, for light and dark.

    Args:
        logs: Training runs, in the order of their colours.

    Returns:
        The figures. Labels and numbers are text, not outlines.
    """
    found = {term for log in logs for term in log.terms}
    order = [*(term for term in _CAPTIONS if term in found), *sorted(found - set(_CAPTIONS))]
    curves = []
    for index, term in enumerate(order):
        title, caption = _CAPTIONS.get(term, (term.replace("_", " ").capitalize(), ""))
        curves.append(Curve(title, caption, _themed(_draw(logs, term), f"curve{index}", title)))
    return curves


def dash_pattern(index: int) -> str:
    """SVG ``stroke-dasharray`` of run ``index``, for the legend."""
    dashes = _DASHES[index // SERIES % len(_DASHES)]
    return "" if isinstance(dashes, str) else " ".join(str(2 * length) for length in dashes[1])


def _draw(logs: Sequence[TrainingLog], term: str) -> str:
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "crosskd", "font.size": 8}):
        figure = Figure(figsize=(4.8, 2.7), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for index, log in enumerate(logs):
            if term in log.terms:
                steps, values = _thinned(*log.terms[term])
                axes.plot(
                    steps,
                    values,
                    color=_SERIES_COLOURS[index % SERIES],
                    linestyle=_DASHES[index // SERIES % len(_DASHES)],
                    linewidth=1.5,
                    marker="o" if len(steps) <= 12 else None,
                    markersize=3,
                )
        _dress(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return stream.getvalue()


def _dress(axes: Axes) -> None:
    axes.set_xlabel("optimizer step", color=_TEXT)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.tick_params(colors=_TEXT, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_GRID)


def _thinned(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """At most `_MOST_POINTS` points: means of neighbours, so that long runs stay small and honest."""
    width = -(-len(steps) // _MOST_POINTS)
    if width <= 1:
        return steps, values
    starts = range(0, len(steps), width)
    return [_mean(steps[at : at + width]) for at in starts], [_mean(values[at : at + width]) for at in starts]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _themed(svg: str, prefix: str, title: str) -> str:
    """The ``<svg>`` element alone, scalable, with the page's colours and with ids of its own."""
    body = svg[svg.index("<svg") :].strip()
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<svg\b[^>]*?)\s(?:width|height)="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg\b[^>]*?)\s(?:width|height)="[^"]*"', r"\1", body, count=1)
    body = re.sub(r"<style\b.*?</style>|font-family: [^;\"]*;?", "", body, flags=re.DOTALL)
    body = body.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    body = re.sub(r'href="#', f'href="#{prefix}-', body)
    for index, colour in enumerate(_SERIES_COLOURS, start=1):
        body = body.replace(colour, f"var(--series-{index})")
    return body.replace(_TEXT, "currentColor").replace(_GRID, "var(--grid)")
