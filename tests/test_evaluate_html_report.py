"""The report page: whole, self-contained, escaped, and the same bytes for the same numbers."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from autointerp.errors import InputError
from autointerp.evaluate import figures
from autointerp.evaluate.html_report import DictionaryReport, ReportData, write_report
from autointerp.evaluate.metric_rows import metric_row
from autointerp.records import FeatureHistogram, HeadlineScore, Holding
from autointerp.stats import Estimate

EVIL = '<script>alert("x")</script> & $x_i$ \x00 "]]>'
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text; asserts that every tag is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def dictionary(name: str, l0: float = 16.0, fvu: float = 0.2) -> DictionaryReport:
    metrics: list[Any] = [
        metric_row("l0", l0, n_tokens=12_345),
        metric_row("fvu", Estimate(fvu, fvu - 0.01, fvu + 0.01, 80), unit="documents", n_tokens=12_345),
        metric_row("absorption_full", None, n=0, unit="letters", note=f"no letter {EVIL}"),
        *(metric_row(f"probing_max_k{k}", Estimate(0.5 + k / 50, 0.5, 0.9, 300), split="test") for k in (1, 2, 5)),
        metric_row("probing_dense", 0.9),
        {"metric": "log10_density_bin_-3.0", "value": 0.25},
        {"metric": "delta_ce", "value": 0.0123, "split": None, "ci_low": None, "ci_high": None, "n_tokens": 999},
    ]
    return DictionaryReport(
        name=name,
        architecture="topk",
        d_sae=1024,
        metrics=metrics,
        densities=[0.0, 0.5, 0.01, 0.002, 1.0, 1e-6],
        curves=[(step, metric, 5 / step) for step in (1, 10, 50) for metric in ("loss", "l0", "lr")],
        histograms=[
            FeatureHistogram(
                3,
                EVIL,
                [0.0, 1.0, 2.0],
                [1000, 1],
                Holding(1.5, "ok", 0.25, 0.5, 0.75, None, None, 0.5, from_floor=0.5),
                f"second {EVIL}",
                HeadlineScore("simulation_natural", 0.57, 0.29, 0.76, None, 0.4, 1.0, 0.52, 0.42, 0.61),
            ),
            FeatureHistogram(5, None, [0.0, 1.0], [0], Holding(), None, HeadlineScore()),
        ],
    )


def written(tmp_path: Path, report: ReportData, name: str = "report.html") -> str:
    write_report(tmp_path / name, report)
    return (tmp_path / name).read_text(encoding="utf-8")


def full() -> ReportData:
    shown = [dictionary("first"), dictionary(EVIL, 32, 0.1), dictionary("東京 _x", 128, 0.15)]
    return ReportData(f"Report {EVIL}", shown, {"model": EVIL}, [f"Careful: {EVIL}"])


def test_the_page_holds_its_figures_and_numbers(tmp_path: Path) -> None:
    text = written(tmp_path, full())
    page = Page(text)
    # frontier, training, density; of each dictionary probing and the one histogram that is not empty
    assert page.tags.count("svg") == 3 + 3 * 2
    for expected in ("0.200", "0.190 to 0.210", "12,345 tokens", "Never active on these tokens", "1 of 6 in first"):
        assert expected in page.text
    assert "holds from 1.5 (the strongest 25 % of places, 50 % of the mass): precision 0.75, recall 0.50" in page.text
    assert "simulation_natural 0.57 [0.29, 0.76]; precision at least 0.40, recall 0.52 [0.42, 0.61]" in page.text
    assert "or second" in page.text
    assert "no letter" in page.text and "–" in page.text
    assert "log10_density_bin" not in page.text
    for heading in ("Reconstruction.", "Absorption.", "Probing.", "Loss when spliced in."):
        assert heading in page.text
    assert "Stability." not in page.text


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    text = written(tmp_path, full())
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "metadata"} & set(page.tags)
    assert "http" not in text and "@import" not in text
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "xlink:href", "src"):
            assert value.startswith("#") and value[1:] in ids
        for target in re.findall(r"url\(([^)]*)\)", value):
            assert target.startswith("#") and target[1:] in ids


def test_strings_from_outside_are_escaped_in_the_page_and_in_the_svg(tmp_path: Path) -> None:
    text = written(tmp_path, full())
    assert "<script" not in text and "\x00" not in "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    svgs = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    assert "&lt;script&gt;alert" in svgs  # a dictionary's name, in a legend
    assert "&lt;script&gt;alert" in text.replace(svgs, "")
    assert "$x_i$" in text  # not set as a formula


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path, full()) == written(tmp_path, full(), "again.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.html", "report.html"]


def test_empty_inputs_give_sentences_and_no_figures(tmp_path: Path) -> None:
    nothing = Page(written(tmp_path, ReportData("Empty")))
    assert "svg" not in nothing.tags and "No dictionary was evaluated" in nothing.text
    bare = Page(written(tmp_path, ReportData("Bare", [DictionaryReport("a", "topk", 8, densities=[0.0] * 8)])))
    assert "svg" not in bare.tags
    for sentence in ("A frontier needs", "No training metrics", "no feature is ever active", "No metrics were given"):
        assert sentence in bare.text


@pytest.mark.parametrize("densities", [[1.0], [1.0, 0.3], [1e-9], [0.1], [0.01, 0.01]])
def test_any_densities_can_be_drawn(densities: list[float]) -> None:
    figure = figures.density_histogram({"a": densities})
    assert figure is not None and "<svg" in figures.svg(figure, "density", "d")


def test_odd_curves_can_be_drawn() -> None:
    nan = float("nan")
    for points in ([(1, "loss", nan)], [(1, "loss", 1.0)], [(1, "l0", 0.0), (2, "l0", 0.0)], [(1, "loss", -1.0)]):
        figure = figures.training_curves({"a": points, "b": []})
        assert figure is not None and "<svg" in figures.svg(figure, "training", "d")
    assert figures.training_curves({"a": [(1, "lr", 1.0)]}) is None


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="different name"):
        write_report(tmp_path / "r.html", ReportData("t", [dictionary("a"), dictionary("a")]))
    with pytest.raises(InputError, match="folder"):
        write_report(tmp_path, ReportData("t"))
