"""How pages count, order and word what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import run
from support.store_fixtures import add_features, explanation, filled, score

from autointerp.dictionary_controls import DICTIONARY_CONTROLS, LABEL_CONTROLS
from autointerp.holds import WholePrecision, holds_line
from autointerp.means import SharedDocuments, shared_freedom
from autointerp.number_text import decimals, percent, with_interval
from autointerp.prevalence import SILENT_GROUPS, is_group, silent_group
from autointerp.records import Holding
from autointerp.report.control_tests import control_lines
from autointerp.report.page import load_page
from autointerp.score.controls import CONTROLS
from autointerp.scorer_names import HEADLINE_SCORERS, scorer_place
from autointerp.store import Store
from autointerp.store.comparisons import compared_scores

N = 6
GROUPS = sorted({silent_group(i) for i in range(2000)})
NATURAL = {"scorer": "simulation_natural"}


def moved(documents: int, feature: int) -> dict[str, Any]:
    names = [f"d{i}" for i in range(documents)] + GROUPS
    return {"documents": names, "influences": [0.001 * ((7 * i + feature) % 11 - 5) for i in range(len(names))]}


def scored(path: Path, documents: int) -> Store:
    """N features, whose scores rest on so many documents and on groups of silent ones."""
    store, dictionary_id, harvest_id = filled(path)
    add_features(store, dictionary_id, harvest_id, ["live"] * N)
    labels = [explanation(f) for f in range(N)]
    store.insert_explanations(labels)
    rows = [score(e, **NATURAL, value=0.5 + e.feature / 50, **moved(documents, e.feature)) for e in labels]
    for control in ("token_lookup", "neighbour_label"):
        rows += [score(e, **NATURAL, control=control, value=-0.001, **moved(documents, e.feature + 3)) for e in labels]
    store.insert_scores([*rows, *(score(e, value=0.9) for e in labels)])
    store.update_label_controls(1)
    return store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By the number of documents."""
    folder = tmp_path_factory.mktemp("numbers")
    paths = {documents: folder / f"{documents}.duckdb" for documents in (8, 12)}
    for documents, path in paths.items():
        scored(path, documents).close()
    return paths


@pytest.mark.parametrize(("documents", "has_interval"), [(8, False), (12, True)])
def test_groups_of_silent_documents_are_no_documents(
    stores: dict[int, Path], documents: int, has_interval: bool
) -> None:
    assert len(GROUPS) == SILENT_GROUPS and all(map(is_group, GROUPS))
    with Store.open(stores[documents], read_only=True) as store:
        board = store.rows(
            "SELECT n_documents, ci_low IS NOT NULL FROM explainer_leaderboard WHERE scorer = 'simulation_natural'"
        )
        assert set(board) == {(documents, has_interval)}
        with compared_scores(store, 1) as found:
            contender, kind, control = found.controls()[0]
            shared = found.lift(contender, kind, control).shared
    assert kind.scorer == "simulation_natural" and shared is not None
    assert (shared.n_documents, shared.n_terms) == (documents, documents + SILENT_GROUPS)


def test_groups_do_not_raise_the_freedom() -> None:
    even = SharedDocuments(5, 12, 28.0, 28.0, 0.0, n_terms=28)  # 28 terms of 1: a kurtosis of 1
    assert shared_freedom(even) == 11


def test_the_reason_for_no_test_is_said_once(stores: dict[int, Path]) -> None:
    with Store.open(stores[8], read_only=True) as store:
        (line,) = control_lines(load_page(store, 1, 0))
        wanted = (
            "not tested against the nearest feature's label or the list of its tokens: its scores are on 8 "
            "documents, and a test takes 20  (simulation_natural)"
        )
        assert line.strip() == wanted


def test_rows_stand_in_the_order_of_the_headline(stores: dict[int, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "status", "--store", str(stores[12]))
    lines = [line.split(": ")[0].strip() for line in out.splitlines() if "scores by" in line]
    assert code == 0 and len(lines) == 4, err
    assert [line.split()[2] for line in lines] == ["simulation_natural"] * 3 + ["simulation"]
    assert "control" not in lines[0] and "control" in lines[1]
    code, out, err = run(capsys, "show", "0", "--store", str(stores[12]))
    assert code == 0 and "-0.00" not in out and "token_lookup 0.00" in out, err


def test_places_of_scorers() -> None:
    names = ["zeta", "simulation_random", "detection", "simulation_recall", "detection_specificity", "simulation"]
    ordered = sorted([*names, *HEADLINE_SCORERS], key=scorer_place)
    assert [name for name in ordered if name in HEADLINE_SCORERS][:1] == ["simulation_natural"]
    assert list(dict.fromkeys(n for n in ordered if n in HEADLINE_SCORERS)) == list(HEADLINE_SCORERS)
    assert ordered.index("detection_specificity") > ordered.index("detection") and ordered[-1] == "zeta"


def test_many_features_are_enough_in_a_large_dictionary(stores: dict[int, Path]) -> None:
    with Store.open(stores[8]) as store:
        row = store.dicts("SELECT dictionary_id, explainer, model, label AS text FROM labels WHERE feature = 0")[0]
        for n_features, flag in ((4, None), (19, None), (20, "repeated")):
            with store.transaction() as con:
                con.execute("DELETE FROM same_labels")
                store.insert_row("same_labels", {**row, "n_features": n_features, "share": 0.001})
            assert store.rows("SELECT label_flag FROM labels WHERE feature = 0") == [(flag,)]


def test_the_help_names_every_control(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(CONTROLS) == {*LABEL_CONTROLS, *DICTIONARY_CONTROLS}
    for command in ("score", "run"):
        code, out, err = run(capsys, command, "--help")
        assert code == 0 and [name for name in CONTROLS if name not in out] == [], err


@given(st.floats(0, 1))
def test_shares_have_whole_per_cent(share: float) -> None:
    text = percent(share)
    assert "e" not in text and abs(float(text.removesuffix(" %")) - 100 * share) <= 0.5 + 1e-9
    assert ("." in text) == (0 < 100 * share < 0.95)


def test_numbers_in_words() -> None:
    assert (percent(1.0), percent(0.996), percent(0.004), percent(0.0)) == ("100 %", "100 %", "0.4 %", "0 %")
    assert (decimals(-0.001), decimals(-0.001, "+"), decimals(-0.01)) == ("0.00", "+0.00", "-0.01")
    assert with_interval(None, 0.9, 1.0) == "at least 0.90" and with_interval(0.5, None, 1.0) == "0.50"


FOUND = Holding(38.8, "ok", 0.3, 1.0, 0.36, 0.2, 0.5, 0.72, 0.5, 0.9, 60, 0.5)


def test_a_label_that_is_precise_everywhere_is_said_to_hold_everywhere() -> None:
    numbers = "from 38.8 (the strongest 30 % of places, 100 % of the mass): precision 0.36 [0.20, 0.50], recall 0.72"
    for whole in (WholePrecision(0.86, 0.8), WholePrecision(None, 0.6)):
        line = holds_line(FOUND, whole) or ""
        assert line.startswith(f"holds {numbers}")
        assert line.endswith("counted as true, it holds at precision 0.50 wherever the feature fires")
    for low in (None, WholePrecision(0.4, 0.3), WholePrecision(None, 0.4), WholePrecision(None, None)):
        assert (holds_line(FOUND, low) or "").startswith(f"holds {numbers}")
    for status, told in (("nowhere", "though nowhere"), ("not_confirmed", "though"), ("no_false_alarm", "but too few")):
        line = holds_line(Holding(from_status=status, from_floor=0.5), WholePrecision(0.86, 0.8)) or ""
        assert line.startswith("holds at precision 0.50 wherever the feature fires, ") and told in line
