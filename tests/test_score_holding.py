"""From which activation on a label holds: on labels whose claims are known, and through a judge on a real server."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import run
from support.known_words import World, contexts, job
from support.llm_server import LlmServer
from support.simulated_claims import Judged, activation, sharp
from support.store_fixtures import explanation
from support.tile_store import TILE, tile_store

from autointerp.config import ScoreConfig
from autointerp.holds import holds_line
from autointerp.records import Holding, Score
from autointerp.report.score_groups import ScoreRow
from autointerp.score.detection_questions import Example, answer_of
from autointerp.score.holding import Claims, at, choose, claims_of_judge, claims_of_rule, cross_fitted, held_out
from autointerp.score.natural import SilentTiles
from autointerp.score.scoring import score
from autointerp.store import Store
from autointerp.store.safety.paths import evidence_path_of

DENSITIES = [0.005, 0.05, 0.35]


# --- labels that are known ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_a_rule_that_is_right_above_a_threshold_holds_from_there(quantile: float, density: float) -> None:
    rng = np.random.default_rng(1)
    label = sharp(quantile, density, alarms=0.1 * density * (1 - quantile))
    found = held_out(label.draw(rng, 200, 2000), label.draw(rng, 400, 2000), 0.5)
    assert found.from_status == "ok" and found.label_from == pytest.approx(float(activation(quantile)), rel=0.1)
    assert found.from_share == pytest.approx(1 - quantile, abs=0.06) and found.from_n == 400
    every = activation((np.arange(4000) + 0.5) / 4000)
    assert found.from_mass == pytest.approx(every[every >= activation(quantile)].sum() / every.sum(), abs=0.08)
    assert found.from_recall is not None and found.from_recall > 0.85
    assert found.from_precision is None or found.from_precision > 0.5


@pytest.mark.parametrize("quantile", [0.3, 0.7])
@pytest.mark.parametrize("density", [0.1, 0.35])
def test_a_judge_who_is_right_above_a_threshold(quantile: float, density: float) -> None:
    rng = np.random.default_rng(2)
    found = cross_fitted(sharp(quantile, density, alarms=0.1 * density).draw(rng, 150, 200), 0.5)
    assert found.from_status == "ok" and found.label_from == pytest.approx(float(activation(quantile)), rel=0.1)
    assert found.from_recall is not None and found.from_recall > 0.9


def test_what_claims_everything_that_fires_holds_everywhere() -> None:
    label = Judged(0.0, 1e6, 1.0, 1.0, 0.001, 0.1)
    found = cross_fitted(label.draw(np.random.default_rng(3), 60, 100), 0.5)
    assert (found.label_from, found.from_share, found.from_mass, found.from_recall) == (0.0, 1.0, 1.0, 1.0)
    assert "wherever the feature fires" in (holds_line(found) or "")


@pytest.mark.parametrize("density", DENSITIES)
def test_a_wrong_label_holds_nowhere(density: float) -> None:
    rng = np.random.default_rng(4)
    random_claims = Judged(0.5, 0.0, 0.3, 0.3, 0.3, density)
    weakest = Judged(0.5, -1e6, 1.0, 0.0, 0.0, density)  # the weak places alone, and many silent ones
    for label in (random_claims, Judged(0.5, -1e6, 1.0, 0.0, 2 * density, density)):
        for _ in range(20):
            found = held_out(label.draw(rng, 100, 1000), label.draw(rng, 100, 1000), 0.5)
            assert (found.from_status, found.label_from, found.from_share) == ("nowhere", None, None)
    assert holds_line(found) == "holds nowhere at precision 0.50"
    silent_label = Judged(0.5, 1.0, 0.0, 0.0, 0.0, density)
    assert cross_fitted(silent_label.draw(rng, 50, 50), 0.5).from_status == "nowhere"
    assert choose(weakest.draw(rng, 100, 2000), 0.5)[1] == pytest.approx(0.0)  # F1 of all is the best there is


@pytest.mark.parametrize("density", [0.55, 0.8, 0.95])
def test_a_label_that_claims_everything_or_at_random_does_not_hold_on_a_dense_feature(density: float) -> None:
    """Whatever it claims is right more often than not."""
    rng = np.random.default_rng(12)
    for chance in (1.0, 0.5):
        label = Judged(0.5, 0.0, chance, chance, chance, density)
        for _ in range(20):
            for found in (
                held_out(label.draw(rng, 60, 2000), label.draw(rng, 60, 2000), 0.5),
                cross_fitted(label.draw_clustered(rng, 60, 40, 0.2, 30), 0.5),
            ):
                assert found.label_from is None and found.from_status != "ok"
                assert chance < 1.0 or found.from_status == "no_better_than_chance"
    assert held_out(label.draw(rng, 60, 2000), label.draw(rng, 60, 2000), 0.5).from_status == "no_better_than_chance"
    line = holds_line(Holding(from_status="no_better_than_chance", from_floor=0.5)) or ""
    assert "holds nowhere" in line and "claims every place" in line


@pytest.mark.parametrize("density", [0.55, 0.8, 0.95])
def test_a_true_label_holds_on_a_dense_feature(density: float) -> None:
    rng = np.random.default_rng(13)
    everywhere, strong = Judged(0.5, 0.0, 0.9, 0.9, 0.1, density), sharp(0.3, density, 0.05)
    for label in (everywhere, strong):
        for _ in range(10):
            assert held_out(label.draw(rng, 60, 2000), label.draw(rng, 60, 2000), 0.5).from_status == "ok"
            assert cross_fitted(label.draw_clustered(rng, 60, 40, 0.1, 30), 0.5).from_status == "ok"


def test_what_is_precise_on_the_text_it_is_measured_on_by_chance_alone_is_told() -> None:
    rng = np.random.default_rng(14)
    true, constant = Judged(0.5, 0.0, 0.9, 0.9, 0.1, 0.8), Judged(0.5, 0.0, 1.0, 1.0, 1.0, 0.8)
    found = held_out(true.draw(rng, 60, 2000), constant.draw(rng, 60, 2000), 0.5)
    assert (found.from_status, found.label_from) == ("no_better_than_chance", None)
    assert found.from_precision is not None and found.from_precision > 0.5
    fires_always = replace(constant, density=1.0)
    assert held_out(true.draw(rng, 60, 9), fires_always.draw(rng, 60, 9), 0.5).from_status == "no_better_than_chance"


def test_without_a_false_alarm_precision_is_known_from_below_alone() -> None:
    rng = np.random.default_rng(5)
    few = cross_fitted(sharp(0.5, 0.01).draw(rng, 50, 7), 0.5)
    assert (few.from_status, few.label_from) == ("no_false_alarm", None) and "not known" in (holds_line(few) or "")
    many = cross_fitted(sharp(0.5, 0.1).draw(rng, 50, 500), 0.5)
    assert many.from_status == "ok" and many.from_precision is None
    assert many.from_precision_low is not None and many.from_precision_low > 0.7
    assert "precision at least 0." in (holds_line(many) or "")


def test_too_few_contexts_and_documents() -> None:
    rng = np.random.default_rng(6)
    label = Judged(0.5, 32, 0.9, 0.1, 0.01, 0.2)
    assert cross_fitted(label.draw(rng, 14, 50), 0.5).from_status == "few_contexts"
    assert cross_fitted(label.draw(rng, 30, 0), 0.5).from_status == "no_contexts"
    assert held_out(None, label.draw(rng, 30, 50), 0.5).from_status == "no_contexts"
    drawn = label.draw(rng, 60, 500)
    alike = Claims(
        drawn.peaks, drawn.masses, drawn.claimed, [f"d{i % 9}" for i in range(60)], drawn.alarms,
        drawn.silent_documents, drawn.density,
    )  # fmt: skip
    assert at(drawn, 20.0)[0].low is not None and at(drawn, 20.0)[1].low is not None
    assert at(alike, 20.0)[0].low is None and at(alike, 20.0)[1].low is None  # nine documents
    assert at(alike, 20.0)[0].value == at(drawn, 20.0)[0].value


def test_documents_with_ids_like_those_of_blocks_stay_apart() -> None:
    """Document `page#1` is stored as the block `page#1#0`; `page` is none."""
    asked = [replace(c, document=f"page#{i}#0") for i, c in enumerate(contexts(0, "report"))]
    answers = [answer_of(Example(context), True, "ok") for context in asked]
    silent = [a for a in answers if a.context.tier == "random"]
    names = [a.context.source for a in silent]
    assert len(set(names)) > 1
    assert claims_of_judge(answers, 0.1).silent_documents == names
    assert claims_of_rule([], SilentTiles.of(silent), 0.1).silent_documents == names


def test_what_is_not_confirmed_on_other_text_is_told() -> None:
    rng = np.random.default_rng(7)
    good, bad = sharp(0.5, 0.1, 0.01), Judged(0.5, 32, 0.3, 0.1, 0.3, 0.1)
    found = held_out(good.draw(rng, 100, 1000), bad.draw(rng, 100, 1000), 0.5)
    assert (found.from_status, found.label_from) == ("not_confirmed", None) and found.from_precision is not None
    assert "holds nowhere at precision 0.50" in (holds_line(found) or "")


@pytest.mark.parametrize("density", DENSITIES)
def test_a_label_never_holds_below_the_precision_that_was_asked_for(density: float) -> None:
    rng, statuses = np.random.default_rng(9), set()
    for _ in range(60):
        label = Judged.drawn(rng, density)
        few, other = (label.draw_clustered(rng, 20, 200, 0.3, 8) for _ in range(2))  # from too few for an interval
        many = label.draw_clustered(rng, 60, 200, 0.3, 30)
        for found in (held_out(few, other, 0.5), held_out(many, few, 0.5), cross_fitted(many, 0.5)):
            statuses.add(found.from_status)
            assert (found.from_status == "ok") == (found.label_from is not None)
            if found.from_status == "ok":
                assert found.from_precision is None or found.from_precision >= 0.5
            elif found.from_status == "not_confirmed":
                assert found.from_precision is None or found.from_precision < 0.5
    assert density < 0.05 or {"ok", "not_confirmed"} <= statuses


def test_a_label_that_claims_nothing_of_the_text_it_is_measured_on_is_not_confirmed() -> None:
    rng = np.random.default_rng(10)
    nothing = Judged(0.5, 1.0, 0.0, 0.0, 0.0, 0.1)
    found = held_out(sharp(0.5, 0.1, 0.01).draw(rng, 60, 500), nothing.draw(rng, 60, 500), 0.5)
    assert (found.from_status, found.from_precision, found.label_from) == ("not_confirmed", None, None)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_precision_falls_and_recall_rises(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 30))
    peaks = np.array(data.draw(st.lists(st.integers(1, 12), min_size=n, max_size=n)), dtype=np.float64)
    claimed = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    silent = np.array(data.draw(st.lists(st.booleans(), min_size=1, max_size=20)))
    density = data.draw(st.floats(0.001, 0.999))
    names = [f"s{i}" for i in range(silent.size)]

    def claims(which: Any) -> Claims:
        return Claims(peaks, peaks, which, [f"d{i}" for i in range(n)], silent, names, density)

    thresholds = sorted({0.0, *peaks.tolist()})
    precisions = [at(claims(claimed), t)[0].value for t in thresholds]
    known = [p for p in precisions if p is not None]
    assert all(0 <= b <= a <= 1 for a, b in zip(known, known[1:], strict=False))
    strong = claims(peaks >= data.draw(st.integers(1, 12)))  # claimed from some strength on
    recalls = [r for t in thresholds if (r := at(strong, t)[1].value) is not None]
    assert all(a <= b for a, b in zip(recalls, recalls[1:], strict=False))
    for estimate in (e for t in thresholds for e in at(claims(claimed), t)):
        if estimate.low is not None and estimate.value is not None:
            assert 0 <= estimate.low <= estimate.value <= (estimate.high or 0) <= 1
    status, threshold = choose(claims(claimed), 0.5)
    assert (threshold is not None) == (status == "ok")


# --- how often the intervals hold the truth -------------------------------------------------------------------------

Make = Callable[[Judged, np.random.Generator], tuple[Holding, float | None]]


def shares_held(make: Make, density: float, times: int, seed: int) -> tuple[list[bool], list[bool]]:
    """Whether the published intervals of precision and of recall hold the truth at the threshold."""
    rng = np.random.default_rng(seed)
    precision, recall = [], []
    for _ in range(times):
        label = Judged.drawn(rng, density)
        found, threshold = make(label, rng)
        if threshold is None:
            continue
        true_precision, true_recall = label.truth(threshold)
        if found.from_precision_low is not None:
            precision.append(found.from_precision_low <= true_precision <= (found.from_precision_high or 0))
        if found.from_recall_low is not None:
            recall.append(found.from_recall_low <= true_recall <= (found.from_recall_high or 0))
    return precision, recall


@pytest.mark.slow
@pytest.mark.parametrize("active", [15, 20, 60, 200])
def test_intervals_of_rules_cover(active: int) -> None:
    def make(label: Judged, rng: np.random.Generator) -> tuple[Holding, float | None]:
        choosing = label.draw(rng, active, 2000)
        return held_out(choosing, label.draw(rng, active, 2000, per_document=10), 0.5), choose(choosing, 0.5)[1]

    found = [shares_held(make, density, 1500, seed=active) for density in (0.02, 0.1, 0.3)]
    for each in zip(*found, strict=True):
        held = [one for some in each for one in some]
        assert len(held) > 1500 and 0.93 <= np.mean(held) <= 0.97, np.mean(held)


@pytest.mark.slow
@pytest.mark.parametrize(("active", "silent"), [(15, 20), (20, 20), (40, 40), (100, 100)])
def test_intervals_of_judges_cover(active: int, silent: int) -> None:
    def make(label: Judged, rng: np.random.Generator) -> tuple[Holding, float | None]:
        claims = label.draw(rng, active, silent)
        return cross_fitted(claims, 0.5), choose(claims, 0.5)[1]

    times = 900 if active < 100 else 400
    found = [shares_held(make, density, times, seed=active) for density in (0.1, 0.2, 0.3)]
    for each in zip(*found, strict=True):
        held = [one for some in each for one in some]
        assert len(held) > 500 and 0.93 <= np.mean(held) <= 0.97, np.mean(held)


@pytest.mark.slow
@pytest.mark.parametrize("active", [20, 60, 200])
def test_intervals_of_rules_cover_where_documents_differ(active: int) -> None:
    def make(alike: float) -> Make:
        def of(label: Judged, rng: np.random.Generator) -> tuple[Holding, float | None]:
            choosing, measured = (label.draw_clustered(rng, active, 2000, alike, 30) for _ in range(2))
            return held_out(choosing, measured, 0.5), choose(choosing, 0.5)[1]

        return of

    found = [shares_held(make(alike), d, 500, seed=active) for d in (0.02, 0.1, 0.3) for alike in (0.0, 0.1, 0.2)]
    for each in zip(*found, strict=True):
        held = [one for some in each for one in some]
        # Pooled over densities and over how alike documents are: .946 to .971, each known to .004.
        assert len(held) > 1200 and 0.93 <= np.mean(held) <= 0.98, np.mean(held)


@pytest.mark.slow
def test_intervals_of_judges_cover_where_documents_differ() -> None:
    def make(alike: float) -> Make:
        def of(label: Judged, rng: np.random.Generator) -> tuple[Holding, float | None]:
            claims = label.draw_clustered(rng, 40, 40, alike, 40)
            return cross_fitted(claims, 0.5), choose(claims, 0.5)[1]

        return of

    found = [shares_held(make(alike), d, 500, seed=1) for d in (0.1, 0.3) for alike in (0.0, 0.1, 0.2)]
    for each in zip(*found, strict=True):
        held = [one for some in each for one in some]
        assert len(held) > 1000 and 0.93 <= np.mean(held) <= 0.97, np.mean(held)


# --- through a judge on a server, the store and the page ------------------------------------------------------------

STRENGTHS = 40
FROM = 26
"""The judge says yes from this strength on."""


def strength(tokens: list[str]) -> int:
    return max((int(m[1]) for t in tokens if (m := re.fullmatch(r" w(\d+)", t))), default=0)


def graded_store(path: Path) -> Store:
    """The feature fires on ` w7` with 7: in 100 of 300 report tiles, of which 80 silent ones are kept."""
    rng = random.Random(8)
    windows = []
    for i in range(330):
        tokens = [rng.choice([" the", " a", " of", " tree", ",", " is"]) for _ in range(TILE)]
        if i % 3 == 0:
            tokens[rng.randrange(TILE)] = f" w{rng.randrange(1, STRENGTHS + 1)}"
        windows.append(tokens)
    fires = {0: lambda _, tokens: [float(strength([t])) for t in tokens]}
    store, _, _ = tile_store(path, windows, fires, sampled=200, negatives=80, report=300)
    with store.transaction() as con:
        con.execute("UPDATE harvests SET report = '{\"n_tiles_report\": 300}'")
    store.insert_explanations([explanation(0, text="strong words", explainer="contexts")])
    store.close()
    with duckdb.connect(str(evidence_path_of(path))) as con:
        con.execute(
            "INSERT INTO active_tiles BY NAME SELECT 1 AS harvest_id, 'report' AS split, 0 AS feature, 100 AS n"
        )
    return Store.open(path)


@pytest.mark.parametrize(("says", "status"), [("strong", "ok"), ("silent", "nowhere")])
def test_detection_by_strength_says_from_where_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: str, status: str
) -> None:
    def judge(label: str, question: str, pieces: list[Any]) -> bool:
        text = "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces)
        found = re.search(r" w(\d+)", text)
        return (int(found[1]) >= FROM if found else text.startswith(" tree,")) == (says == "strong")

    path = tmp_path / "x.duckdb"
    with graded_store(path) as store, LlmServer(World(choose=judge)) as server:
        config = ScoreConfig(
            scorers=("detection", "fuzzing"), model="judge", base_url=server.url, contexts=40,
            examples_per_call=40, temperature=None,
        )  # fmt: skip
        asyncio.run(score(job(store), "contexts", config))
        store.set_label_choice(1, "contexts", "detection")
        row = store.dicts("SELECT * FROM labels WHERE feature = 0")[0]
        assert row["from_status"] == status and row["from_floor"] == 0.5
        others = store.rows("SELECT count(from_status) FROM scores WHERE scorer <> 'detection'")
        assert others == [(0,)]
        if status == "ok":
            assert row["label_from"] == pytest.approx(FROM, rel=0.1)
            sampled = store.contexts_of(1, 1, [0], "report", {"sampled": None})[0]
            share = np.mean([c.max_activation >= FROM for c in sampled])
            assert row["from_share"] == pytest.approx(share, abs=0.1)
            assert row["from_quantile"] == pytest.approx(1 - row["from_share"])
            assert row["from_share"] < row["from_mass"] < 1 and row["from_recall"] > 0.9
    code, out, err = run(capsys, "show", "0", "--store", str(path))
    wanted = "holds from 2" if status == "ok" else "       holds nowhere at precision 0.50"
    assert code == 0 and wanted in out, out + err


def test_the_columns_are_those_of_the_record() -> None:
    names = [field.name for field in fields(Holding)]
    for record in (Score, ScoreRow):
        assert [field.name for field in fields(record) if field.name in names] == names
