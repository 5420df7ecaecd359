"""The latency of several contenders as inline SVG: every row one contender, every dot one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np

from ..manifest import Latency
from .latency import milliseconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_DOTS = 200  # drawn for each contender: keeps the page small; evenly by rank, so the extremes are among them
LOG_FROM = 12  # slowest over fastest call, from which the axis is logarithmic
NAME = 36  # characters of a row's name

# Colours drawn here stand for the page's own, which differ in light and dark.
INK, SOFT, ACCENT, BASE = "#010201", "#010202", "#010203", "#010204"
PAGE_COLOURS = {INK: "currentColor", SOFT: "var(--soft)", ACCENT: "var(--accent)", BASE: "var(--base)"}


@dataclass(frozen=True)
class Series:
    """One row: ms of each call in time order, and the numbers that hold for them, if any."""

    name: str
    times: Sequence[float]
    row: Latency | None


def draw(series: Sequence[Series], reference: str) -> str:
    """An `<svg>` that takes its colours from the page; empty without series. `reference` is drawn in its own colour."""
    if not series:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Text stays text, so that the page's colours reach it; with the salt the same run gives the same bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "graphwright", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(9.6, 0.8 + 0.5 * len(series)), layout="constrained")
        axes = figure.add_subplot()
        for at, one in enumerate(series):
            _draw_row(axes, at, one, BASE if one.name == reference else ACCENT)
        _dress(axes, series)
        file = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _for_page(file.getvalue())


def _draw_row(axes: Axes, at: int, one: Series, colour: str) -> None:
    order = np.argsort(one.times, kind="stable")
    kept = np.sort(order[np.unique(np.linspace(0, len(order) - 1, MAX_DOTS).round().astype(int))])
    height = at + 0.6 * (kept / max(len(order) - 1, 1) - 0.5)
    axes.plot(np.asarray(one.times)[kept], height, "o", color=colour, markersize=3, markeredgewidth=0, alpha=0.55)
    if one.row is None or one.row.median_ms is None:
        return
    median = one.row.median_ms
    axes.plot([median, median], [at - 0.4, at + 0.4], color=INK, linewidth=2, solid_capstyle="butt")
    label = f"{milliseconds(median)} ms"
    axes.annotate(label, (1, at), (6, 0), ("axes fraction", "data"), "offset points", va="center", color=INK, size=9)


def _dress(axes: Axes, series: Sequence[Series]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    times = [ms for one in series for ms in one.times]
    logarithmic = max(times) > LOG_FROM * min(times) > 0
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, max(times) * 1.03 or 1)
    axes.set_xlabel(f"ms a call{', logarithmic' if logarithmic else ''}", color=SOFT, size=9)
    names = [one.name if len(one.name) <= NAME else f"{one.name[: NAME - 3]}..." for one in series]
    axes.set_yticks(range(len(series)), names, parse_math=False)
    axes.set_ylim(len(series) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    axes.tick_params(axis="x", which="both", color=SOFT, labelsize=9, labelcolor=SOFT)
    axes.grid(axis="x", color=SOFT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)


def _for_page(svg: str) -> str:
    svg = svg[svg.index("<svg") :].replace("<svg", '<svg role="img" aria-label="Latency of each call"', 1)
    for drawn, shown in PAGE_COLOURS.items():
        svg = svg.replace(drawn, shown)
    return svg
