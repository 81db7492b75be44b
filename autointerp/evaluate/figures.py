"""Draws the report's figures with matplotlib's Figure objects (never pyplot, which keeps state), as SVG for the inside
of a page. The same numbers give the same bytes; there are no links, and every string is escaped.

A function returns None when there is nothing to draw; the page then says so in words.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

Curve = tuple[int, str, float]
Point = tuple[str, float, float, tuple[float, float] | None]
"""(name, L0, FVU, ends of the FVU's interval)."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a4c93", "#5f5f5f")
"""Okabe and Ito's colours, which colour-blind readers can tell apart on white."""
MARKERS = "osD^vP"
CURVES = {
    "loss": "loss",
    "fvu": "fraction of variance\nunexplained",
    "l0": "L0: active features\nper token",
    "dead": "share of dead\nfeatures",
}
"""The training metrics that are drawn, in this order, with the label of their axis."""
LONGEST_NAME = 36
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.labelcolor": "#222222",
    "text.color": "#222222",
    "text.parse_math": False,  # a name with two dollar signs is not a formula
    "figure.facecolor": "white",
    "svg.fonttype": "none",
}


def training_curves(curves: Mapping[str, Sequence[Curve]]) -> Figure | None:
    """The metrics of CURVES that were logged, over training steps, with a line per dictionary (name -> its points)."""
    logged = {metric: [v for points in curves.values() for _, name, v in points if name == metric] for metric in CURVES}
    # Without dead features at any step there is no panel for them.
    shown = [metric for metric, values in logged.items() if values and (metric != "dead" or any(values))]
    if not shown:
        return None
    with _styled():
        columns = min(2, len(shown))
        n_rows = math.ceil(len(shown) / columns)
        figure = Figure(figsize=(3.8 * columns, 2.5 * n_rows), layout="constrained")
        axes = list(figure.subplots(n_rows, columns, squeeze=False).ravel())
        for ax, metric in zip(axes, shown):
            values: list[float] = []
            for i, points in enumerate(curves.values()):
                line = sorted((step, value) for step, name, value in points if name == metric and math.isfinite(value))
                if line:
                    marker = "o" if len(line) == 1 else None
                    ax.plot(*zip(*line), color=_colour(i), linewidth=1.6, marker=marker, markersize=4)
                    values += [value for _, value in line]
            ax.set_xlabel("training step")
            ax.set_ylabel(CURVES[metric])
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.xaxis.set_major_formatter(FuncFormatter(_thousands))
            if metric == "loss" and values and min(values) > 0 and max(values) > 5 * min(values):
                _log_axis(ax, "y", min(values), max(values))
            elif metric != "loss" and values:
                ax.set_ylim(0, 1.08 * max(values) or 1)
            if metric == "l0":
                ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        for ax in axes[len(shown) :]:
            ax.remove()
        _legend_above(figure, list(curves))
        return figure


def density_histogram(densities: Mapping[str, Sequence[float]]) -> Figure | None:
    """Histogram of how often features are active, per dictionary, on a log scale, without features that never are."""
    alive = {name: np.asarray([d for d in found if 0 < d <= 1], dtype=float) for name, found in densities.items()}
    if not any(len(values) for values in alive.values()):
        return None
    lowest = min(float(values.min()) for values in alive.values() if len(values))
    first = math.floor(math.log10(lowest))
    edges = np.arange(first, 1e-9, 0.25) if first < 0 else np.array([-1.0, -0.75, -0.5, -0.25])
    edges = np.append(edges, 0.0) if edges[-1] < -1e-9 else edges
    with _styled():
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        ax = figure.subplots()
        for i, (name, values) in enumerate(alive.items()):
            if not len(values):
                continue
            share = np.histogram(np.log10(values), edges)[0] / len(densities[name])
            ax.stairs(share, edges, color=_colour(i), linewidth=1.6)
            if len(alive) == 1:
                ax.stairs(share, edges, color=_colour(i), alpha=0.12, fill=True)
        ax.set_xlim(edges[0], 0)
        ax.set_xticks(range(math.floor(edges[0]), 1))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _power(round(v))))
        ax.set_xlabel("density: share of tokens on which a feature is active (log scale)")
        ax.set_ylabel("share of all features")
        ax.set_ylim(bottom=0)
        _legend_above(figure, list(alive))
        return figure


def frontier(points: Sequence[Point]) -> Figure | None:
    """FVU against L0, with one point per dictionary. A line joins the dictionaries that no other beats in both. None
    for fewer than two dictionaries."""
    if len(points) < 2:
        return None
    with _styled():
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        ax = figure.subplots()
        best, lowest = [], math.inf
        for _, l0, fvu, _ in sorted(points, key=lambda point: (point[1], point[2])):
            if fvu < lowest:
                best.append((l0, fvu))
                lowest = fvu
        if len(best) > 1:
            ax.plot(*zip(*best), color="#999999", linewidth=1, linestyle="--", zorder=1)
        for i, (name, l0, fvu, interval) in enumerate(points):
            marker = MARKERS[(i // len(COLOURS)) % len(MARKERS)]
            if interval is not None:
                ax.plot((l0, l0), interval, color=_colour(i), linewidth=1.4, zorder=2)
            ax.plot(
                l0, fvu, marker, color=_colour(i), markersize=8, markeredgecolor="white", label=clean(name), zorder=3
            )
        l0s = [point[1] for point in points]
        if min(l0s) > 0 and max(l0s) > 4 * min(l0s):
            _log_axis(ax, "x", min(l0s), max(l0s))
        ax.margins(x=0.08, y=0.12)
        ax.set_xlabel("L0: active features per token")
        ax.set_ylabel("FVU: fraction of variance unexplained")
        figure.legend(loc="outside right upper")
        return figure


def activation_histogram(edges: Sequence[float], counts: Sequence[int]) -> Figure | None:
    """Histogram of one feature's activations on the tokens where it is active; None where it never is."""
    if len(edges) != len(counts) + 1 or not sum(counts):
        return None
    with _styled():
        figure = Figure(figsize=(3.4, 2.1), layout="constrained")
        ax = figure.subplots()
        # The axis starts at half a token, so that bins of a single token are visible on the log scale.
        ax.stairs([max(count, 0.5) for count in counts], edges, baseline=0.5, fill=True, color=COLOURS[0], alpha=0.85)
        _log_axis(ax, "y", 0.5, max(counts))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _thousands(v) if v >= 1 else ""))
        ax.set_ylim(0.5, 1.6 * max(counts))
        ax.set_xlim(edges[0], edges[-1])
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlabel("activation")
        ax.set_ylabel("tokens (log scale)")
        return figure


def probing(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """AUROC over the number of features k, with intervals, for every family of metrics <name>_k<k>. A dashed line shows
    the family's dense probe."""
    families: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for row in rows:
        found = re.fullmatch(r"(\w*probing\w*?)_k(\d+)", str(row["metric"]))
        if found and row.get("value") is not None:
            families.setdefault(found[1], []).append((int(found[2]), row))
    if not families:
        return None
    value = {str(row["metric"]): row["value"] for row in rows if row.get("value") is not None}
    with _styled():
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        ax = figure.subplots()
        ks = sorted({k for points in families.values() for k, _ in points})
        dense: dict[str, tuple[float, str]] = {}
        for i, (family, points) in enumerate(families.items()):
            points.sort(key=lambda point: point[0])
            # Shifted a little, so that one family's interval does not hide another's.
            x = [ks.index(k) + 0.06 * (i - (len(families) - 1) / 2) for k, _ in points]
            ax.plot(x, [row["value"] for _, row in points], "o-", color=_colour(i), linewidth=1.4, markersize=5)
            ax.plot([], [], "o-", color=_colour(i), label=clean(family.replace("_", " ") + ", k features"))
            for place, (_, row) in zip(x, points):
                if row.get("ci_low") is not None and row.get("ci_high") is not None:
                    ax.plot((place, place), (row["ci_low"], row["ci_high"]), color=_colour(i), linewidth=1.2)
            base = family.removesuffix("_max").removesuffix("_mean")
            if f"{base}_dense" in value:
                dense.setdefault(base, (float(value[f"{base}_dense"]), _colour(i)))
        for base, (height, colour) in dense.items():
            label = clean(base.replace("_", " ") + ", dense probe")
            ax.axhline(height, color=colour, linewidth=1.2, linestyle="--", label=label)
        ax.axhline(0.5, color="#666666", linewidth=1, linestyle=":", label="chance")
        ax.set_xticks(range(len(ks)), [str(k) for k in ks])
        ax.set_xlabel("k: features the probe may use")
        ax.set_ylabel("AUROC on held-out examples")
        ax.set_ylim(min(0.45, ax.get_ylim()[0]), 1.02)
        figure.legend(loc="outside right upper")
        return figure


# --- to SVG ----------------------------------------------------------------------------------------------------------


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element for an HTML page. `name`, unique on the page, prefixes the ids in it;
    `description` is for screen readers."""
    written = io.BytesIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with _styled(), mpl.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # A glyph that matplotlib lacks does no harm: matplotlib only measures the text, and the browser draws it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(written, format="svg", metadata=nothing)
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        for child in [c for c in parent if _local(c.tag) == "metadata"]:
            parent.remove(child)
        parent.tag = _local(parent.tag)
        attributes = {_local(key): value for key, value in parent.attrib.items()}
        if "id" in attributes:
            attributes["id"] = f"{name}-{attributes['id']}"
        for key, value in attributes.items():
            value = re.sub(r"url\(#", f"url(#{name}-", value) if key != "id" else value
            attributes[key] = f"#{name}-{value[1:]}" if key == "href" else value
        parent.attrib.clear()
        parent.attrib.update(attributes)
    # The page sets the width; the height follows from the viewBox.
    root.attrib.pop("height", None)
    root.attrib.pop("version", None)
    root.attrib["width"] = f"{figure.get_figwidth() * 100:.0f}"
    root.attrib |= {"role": "img", "aria-label": clean(description, 200)}
    return ElementTree.tostring(root, encoding="unicode")


def clean(text: str, longest: int = LONGEST_NAME) -> str:
    """`text` for a figure in XML: one line, without control characters, cut with an ellipsis if it is too long."""
    visible = "".join(c if c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF else " " for c in text)
    line = " ".join(visible.split())
    # matplotlib hides a legend entry that begins with an underscore.
    line = line if not line.startswith("_") else "\u200b" + line
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _styled() -> Any:
    style: Any = _STYLE  # its keys are typed as a list of literals
    return mpl.rc_context(style)


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _legend_above(figure: Figure, names: Sequence[str]) -> None:
    """Add a legend of the dictionaries' colours if there are several."""
    if len(names) < 2:
        return
    handles = [mpl.lines.Line2D([], [], color=_colour(i), linewidth=2.4) for i in range(len(names))]
    figure.legend(handles, [clean(name) for name in names], loc="outside upper left", ncols=min(3, len(names)))


def _log_axis(ax: Axes, which: str, low: float, high: float) -> None:
    """Set a log scale with plain numbers as ticks: powers of ten over many decades, 1-2-5 over few."""
    set_scale: Callable[[str], None] = ax.set_xscale if which == "x" else ax.set_yscale
    set_scale("log")
    axis = ax.xaxis if which == "x" else ax.yaxis
    few = high < 300 * low
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if few else LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(_thousands))
    axis.set_minor_locator(NullLocator())


def _thousands(value: float, _: object = None) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _power(exponent: int) -> str:
    """A power of ten as people write it: 10⁻³, and 1 for 10⁰."""
    return "1" if exponent == 0 else "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
