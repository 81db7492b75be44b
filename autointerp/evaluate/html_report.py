"""Writes one self-contained HTML page about one or several dictionaries: figures, every metric with its interval, and
what the numbers mean. It has no script, no link and no file beside it. The same data give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from autointerp.errors import InputError
from autointerp.evaluate import figures
from autointerp.evaluate.meanings import GENERAL, meanings_of
from autointerp.holds import WholePrecision, holds_line
from autointerp.number_text import with_interval
from autointerp.records import FeatureHistogram, HeadlineScore
from autointerp.sae.files import write_atomically

MOST_HISTOGRAMS = 12
NOT_IN_TABLE = "log10_density_bin_"
"""Prefix of the metrics that the density histogram shows."""


@dataclass(frozen=True, slots=True)
class DictionaryReport:
    """What the page says about one dictionary, as plain values."""

    name: str
    architecture: str
    d_sae: int
    metrics: Sequence[Mapping[str, Any]] = ()
    """Rows with metric and value, and where known split, ci_low, ci_high, n_tokens, n, unit and note."""
    densities: Sequence[float] = ()
    """[d_sae]: share of tokens on which each feature is active; 0 for a feature that never is."""
    curves: Sequence[tuple[int, str, float]] = ()
    """(step, metric, value) logged in training."""
    histograms: Sequence[FeatureHistogram] = ()
    """Only the first MOST_HISTOGRAMS are drawn."""


@dataclass(frozen=True, slots=True)
class ReportData:
    title: str
    dictionaries: Sequence[DictionaryReport] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was evaluated (model, hookpoint, corpus, tokens, ...), shown below the title."""
    remarks: Sequence[str] = ()
    """Warnings, shown first."""


def write_report(path: Path, report: ReportData) -> None:
    """Write the page to `path`, completely or not at all. Raises InputError when two dictionaries have one name or
    `path` is a folder, and DiskFullError."""
    names = [dictionary.name for dictionary in report.dictionaries]
    if len(set(names)) < len(names):
        raise InputError(f"the report needs a different name for each dictionary, not {', '.join(names)}")
    if path.is_dir():
        raise InputError(f"the report must be a file, but {path} is a folder")
    page = render(report)
    write_atomically(path, lambda temporary: _write(temporary, page))


def _write(path: Path, page: str) -> None:
    # errors=, since a label may hold half of a surrogate pair, which UTF-8 cannot.
    path.write_bytes(page.encode("utf-8", "replace"))


def render(report: ReportData) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    shown = report.dictionaries
    metrics = {str(row["metric"]) for dictionary in shown for row in dictionary.metrics}
    return environment.get_template("html_report.html.j2").render(
        title=report.title,
        facts=report.facts,
        remarks=report.remarks,
        overview=[_overview(dictionary) for dictionary in shown],
        training=_drawn(
            figures.training_curves({d.name: d.curves for d in shown if d.curves}),
            "training",
            "Loss and L0 over training steps",
        ),
        density=_drawn(
            figures.density_histogram({d.name: d.densities for d in shown if len(d.densities)}),
            "density",
            "Histogram of feature densities",
        ),
        never_active=[
            (d.name, sum(1 for density in d.densities if not density > 0), len(d.densities))
            for d in shown
            if len(d.densities)
        ],
        frontier=_drawn(figures.frontier(_points(shown)), "frontier", "FVU against L0"),
        details=[_details(dictionary, i) for i, dictionary in enumerate(shown)],
        meanings=meanings_of(sorted(metrics)),
        general=GENERAL,
    )


def _drawn(figure: Figure | None, name: str, description: str) -> Markup | None:
    # Safe as markup, since everything in it went through the XML serialiser, which escapes.
    return None if figure is None else Markup(figures.svg(figure, name, description))


def _overview(dictionary: DictionaryReport) -> dict[str, Any]:
    found = {metric: _overall(dictionary, metric) for metric in ("l0", "fvu", "loss_recovered_mean", "dead_fraction")}
    return {
        "name": dictionary.name,
        "architecture": dictionary.architecture,
        "d_sae": f"{dictionary.d_sae:,}",
        **{metric: _number(row.get("value") if row else None) for metric, row in found.items()},
    }


def _overall(dictionary: DictionaryReport, metric: str) -> Mapping[str, Any] | None:
    """The row of a metric over all splits; if there is none, its first row."""
    rows = [row for row in dictionary.metrics if row["metric"] == metric]
    return next((row for row in rows if row.get("split") in (None, "", "all")), rows[0] if rows else None)


def _points(dictionaries: Sequence[DictionaryReport]) -> list[figures.Point]:
    points: list[figures.Point] = []
    for dictionary in dictionaries:
        l0, fvu = _overall(dictionary, "l0"), _overall(dictionary, "fvu")
        values = [row.get("value") if row else None for row in (l0, fvu)]
        if fvu is None or any(value is None or not math.isfinite(value) for value in values):
            continue
        ends = (fvu.get("ci_low"), fvu.get("ci_high"))
        interval = None if None in ends else (float(ends[0] or 0.0), float(ends[1] or 0.0))
        points.append((dictionary.name, float(values[0] or 0.0), float(values[1] or 0.0), interval))
    return points


def _details(dictionary: DictionaryReport, number: int) -> dict[str, Any]:
    drawn = []
    shown = dictionary.histograms[:MOST_HISTOGRAMS]
    for place, one in enumerate(shown):
        description = f"Histogram of the activations of feature {one.feature}"
        figure = _drawn(figures.activation_histogram(one.edges, one.counts), f"d{number}h{place}", description)
        holds = holds_line(one.holding, WholePrecision(one.headline.precision, one.headline.precision_low))
        drawn.append({
            "feature": one.feature, "label": one.label, "second": one.second_label, "score": _score_line(one.headline),
            "holds": holds, "svg": figure, "n": f"{sum(one.counts):,}",
        })  # fmt: skip
    return {
        "name": dictionary.name,
        "rows": [_cells(r) for r in dictionary.metrics if not str(r["metric"]).startswith(NOT_IN_TABLE)],
        "probing": _drawn(figures.probing(dictionary.metrics), f"d{number}probing", "AUROC of probes on k features"),
        "histograms": drawn,
        "more": max(0, len(dictionary.histograms) - MOST_HISTOGRAMS),
    }


def _score_line(found: HeadlineScore) -> str | None:
    """`simulation_natural 0.57 [0.29, 0.76]; precision 0.86 [0.80, 0.90], recall 0.52 [0.42, 0.61]`; None without a
    score."""
    if found.score is None:
        return None
    parts = [
        f"{name} {with_interval(value, low, high)}"
        for name, value, low, high in (
            ("precision", found.precision, found.precision_low, found.precision_high),
            ("recall", found.recall, found.recall_low, found.recall_high),
        )
        if (value, low) != (None, None)
    ]
    told = f"{found.scorer} {with_interval(found.score, found.ci_low, found.ci_high)}"
    return f"{told}; {', '.join(parts)}" if parts else told


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    low, high = row.get("ci_low"), row.get("ci_high")
    counted = row.get("n")
    unit = str(row.get("unit") or "")
    if counted is None and row.get("n_tokens") is not None:
        counted, unit = row["n_tokens"], "tokens"
    return {
        "metric": str(row["metric"]),
        "value": _number(row.get("value")),
        "interval": "" if low is None or high is None else f"{_number(low)} to {_number(high)}",
        "n": "" if counted is None else f"{counted:,} {unit}".strip(),
        "split": str(row.get("split") or "all"),
        "note": str(row.get("note") or ""),
    }


def _number(value: float | None) -> str:
    """`value` with three significant digits or more; whole numbers as they are; a dash for None."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e12:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:,.1f}"
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.2e}"
