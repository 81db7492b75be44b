"""Labels tested against their controls in a store: what is compared, adjusted, kept and shown, and whose labels stand
in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import run
from support.known_words import WORDS, job, planted_store
from support.store_fixtures import add_features, explanation, filled, score

from autointerp.config import ExplainConfig, ScoreConfig
from autointerp.errors import InputError
from autointerp.explain.explaining import explain
from autointerp.paired import paired_difference
from autointerp.score.controls import DENSITY_GROUPS, shuffled_labels, stand_ins
from autointerp.score.scoring import check_settings
from autointerp.score.scoring import score as score_labels
from autointerp.stats import benjamini_hochberg
from autointerp.store import Selection, Store
from autointerp.store.findings import MethodRun
from autointerp.store.labels_left import LabelFacts

N = 24
DOCUMENTS = [f"d{i}" for i in range(25)]


def moved(feature: int, size: float) -> dict[str, Any]:
    rng = np.random.default_rng(feature)
    values = rng.normal(0, size / 10, len(DOCUMENTS))
    return {"documents": DOCUMENTS, "influences": [float(np.float32(v)) for v in values - values.mean()]}


def scored_store(path: Path) -> Store:
    """Labels of N features: the first third far better than both controls, the second as good, the last worse."""
    store, dictionary_id, harvest_id = filled(path)
    add_features(store, dictionary_id, harvest_id, ["live"] * N)
    labels = [explanation(f) for f in range(N)]
    store.insert_explanations(labels)
    scores = []
    for e in labels:
        f, gain = e.feature, (0.3, 0.0, -0.3)[3 * e.feature // N]
        both = {"scorer": "simulation_natural"}
        scores += [score(e, **both, value=0.5, **moved(f, 0.05)), score(e, value=0.9)]
        for control, value in (("token_lookup", 0.5 - gain), ("neighbour_label", 0.5 - gain / 2)):
            floor = moved(100 + f, 0.05)
            scores += [score(e, **both, control=control, value=value, **floor), score(e, control=control, value=0.2)]
    store.insert_scores(scores)
    return store


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("controls") / "x.duckdb"
    with scored_store(path) as store:
        assert store.update_label_controls(1) == 2 * N
        before = store.commit_number
        assert store.update_label_controls(1) == 0 and store.commit_number == before
    return path


def test_each_label_is_compared_on_its_headline_value(path: Path) -> None:
    with Store.open(path, read_only=True) as store:
        rows = store.dicts("SELECT * FROM label_controls ORDER BY control, feature")
        scores = {
            row["score_id"]: row
            for row in store.dicts("SELECT score_id, scorer, value, documents, influences FROM scores")
        }
    assert len(rows) == 2 * N and {row["scorer"] for row in rows} == {"simulation_natural"}
    for row in rows:
        one, other = scores[row["score_id"]], scores[row["control_score_id"]]
        assert one["scorer"] == other["scorer"] == "simulation_natural"
        told = paired_difference(
            one["value"], dict(zip(one["documents"], one["influences"], strict=True)),
            other["value"], dict(zip(other["documents"], other["influences"], strict=True)),
        )  # fmt: skip
        assert (row["difference"], row["p_value"], row["n_documents"]) == (told.value, told.p_value, 25)
        assert (row["ci_low"], row["ci_high"]) == (told.low, told.high)
    for control in ("token_lookup", "neighbour_label"):
        of_control = [row for row in rows if row["control"] == control]
        p = np.array([row["p_value"] for row in of_control])
        assert [row["q_value"] for row in of_control] == pytest.approx(benjamini_hochberg(p, N).tolist())
        assert [row["beats"] for row in of_control] == [f < N // 3 for f in range(N)]


def test_views_and_pages_say_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(path, read_only=True) as store:
        verdicts = store.rows("SELECT beats_lookup, beats_neighbour FROM labels ORDER BY feature")
        assert verdicts == [(f < N // 3, f < N // 3) for f in range(N)]
        board = store.rows(
            "SELECT control, n_tested, share_better, share_worse FROM explainer_leaderboard "
            "WHERE scorer = 'simulation_natural' ORDER BY control NULLS FIRST"
        )
    third = pytest.approx(1 / 3)
    assert board == [(None, None, None, None), ("neighbour_label", N, third, third), ("token_lookup", N, third, third)]
    code, out, err = run(capsys, "compare", "--store", str(path), "--format", "json")
    assert code == 0, err
    told = {(row["scorer"], row["b"]): row for row in json.loads(out)}
    row = told["simulation_natural", "control: token_lookup"]
    assert (row["n_tested"], row["share_better"], row["share_worse"]) == (N, third, third)
    assert row["higher"] == third
    assert told["simulation", "control: token_lookup"]["n_tested"] is None  # the natural correlation stands for it
    for feature, words in ((0, "better than the list of its tokens by 0.30 ["), (10, "no better than the list of its"),
                           (N - 1, "worse than the nearest feature's label by 0.15 [")):  # fmt: skip
        code, out, err = run(capsys, "show", str(feature), "--store", str(path))
        assert code == 0 and words in out, (err, out)
    code, out, err = run(capsys, "show", "0", "--store", str(path), "--json")
    page = json.loads(out)
    assert code == 0 and page["label"]["beats_lookup"] is True
    assert [one["control"] for one in page["label_controls"]] == ["neighbour_label", "token_lookup"]
    code, out, err = run(capsys, "query", "--store", str(path), "SELECT count(*) FROM labels WHERE NOT beats_lookup")
    assert code == 0 and str(N - N // 3) in out, err


def test_what_is_new_is_tested_and_what_was_replaced_is_removed(tmp_path: Path) -> None:
    with scored_store(tmp_path / "x.duckdb") as store:
        store.update_label_controls(1)
        newer = explanation(0, template_sha256="newer", text="another label")
        store.insert_explanations([newer])
        real = score(newer, scorer="simulation_natural", value=0.4, **moved(0, 0.05))
        store.insert_scores([real])
        # Its own controls are to come: meanwhile nothing is claimed of it.
        store.update_label_controls(1)
        assert store.rows("SELECT count(*) FROM label_controls WHERE feature = 0") == [(0,)]
        assert store.rows("SELECT beats_lookup FROM labels WHERE feature = 0") == [(None,)]
        floor = score(newer, scorer="simulation_natural", control="token_lookup", value=0.1, **moved(100, 0.05))
        store.insert_scores([floor])
        assert store.update_label_controls(1) == 1
        assert store.rows("SELECT beats_lookup, beats_neighbour FROM labels WHERE feature = 0") == [(True, None)]
        # A control on other contexts, or without a value, or too few documents: no test.
        few = {"documents": DOCUMENTS[:10], "influences": moved(1, 0.05)["influences"][:10]}
        for feature, changed in ((1, {"harvest_id": 9}), (2, {"status": "refused"}), (3, few)):
            e = explanation(feature, template_sha256="newer")
            store.insert_explanations([e])
            store.insert_scores([score(e, scorer="simulation_natural", value=0.9, **moved(feature, 0.05))])
            more = {"value": 0.1, **moved(9, 0.05), **changed}
            store.insert_scores([score(e, scorer="simulation_natural", control="token_lookup", **more)])
        store.update_label_controls(1)
        found = store.rows("SELECT feature, n_documents, p_value FROM label_controls WHERE feature BETWEEN 1 AND 3")
        assert found == [(3, 25, pytest.approx(found[0][2]))]
        assert store.check() == []


# --- which labels stand in -------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=2, max_size=60), st.integers(0, 3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_shuffled_labels_come_from_features_of_like_density(densities: list[float], seed: int, mixed: bool) -> None:
    labels = [
        LabelFacts(f"e{i}", i, "rule" if mixed and i == 0 else "gpt", density) for i, density in enumerate(densities)
    ]
    donors = shuffled_labels(labels, seed)
    assert set(donors) == {label.explanation_id for label in labels}
    place = {f: i for i, f in enumerate(sorted(range(len(labels)), key=lambda f: (densities[f], f)))}
    widest = 2 * (len(labels) // min(DENSITY_GROUPS, max(1, (len(labels) - mixed) // 2)) + 2)
    for label in labels:
        explanation_id, feature = donors[label.explanation_id]
        assert explanation_id == f"e{feature}" and feature != label.feature
        assert abs(place[feature] - place[label.feature]) <= widest
    assert shuffled_labels(labels[::-1], seed) == donors


def test_too_few_labels_to_shuffle() -> None:
    with pytest.raises(InputError, match="at least two features"):
        shuffled_labels([LabelFacts("e", 0, "gpt", 0.1)], 0)


@pytest.fixture
def labelled(tmp_path: Path) -> Store:
    store = planted_store(tmp_path / "planted.duckdb")
    asyncio.run(explain(job(store), ExplainConfig(explainer="patterns")))
    return store


def add_neighbours(store: Store) -> None:
    """The nearest of each feature is the next one, then the one after that."""
    pairs = [(f, rank, (f + 1 + rank) % len(WORDS)) for f in range(len(WORDS)) for rank in range(2)]
    columns = {
        "feature": [f for f, _, _ in pairs], "relation": ["decoder"] * len(pairs), "rank": [r for _, r, _ in pairs],
        "neighbour": [n for _, _, n in pairs], "value": [0.9 - 0.1 * r for _, r, _ in pairs],
    }  # fmt: skip
    store.replace_findings("neighbours", 1, 1, "s", [MethodRun(f) for f in range(len(WORDS))], columns)


def test_the_nearest_feature_s_label_stands_in(labelled: Store) -> None:
    with labelled as store:
        config = ScoreConfig(contexts=4, controls=())
        with pytest.raises(InputError, match="autointerp measure --method neighbours"):
            asyncio.run(score_labels(job(store), "patterns", config, "neighbour_label"))
        add_neighbours(store)
        every = list(store.explanations_to_score(1, "patterns", "x", None, "", "", "report", Selection()))
        told = stand_ins(job(store), "patterns", 0, "neighbour_label", every)
        assert [e.feature for e in told if e is not None] == [1, 2, 3, 4, 5, 0]
        some = stand_ins(job(store, features="2-3"), "patterns", 0, "neighbour_label", every[2:4])
        assert list(some) == list(told)[2:4]
        # Without a label of the next feature the one after it is the nearest.
        store.con.execute("UPDATE explanations SET status = 'abstained', text = NULL WHERE feature IN (1, 3, 4)")
        outcome = asyncio.run(score_labels(job(store), "patterns", config, "neighbour_label"))
        assert outcome.pending == 2 and outcome.notes == (
            "1 of 3 labels are not scored under neighbour_label: none of the nearest features has a label yet",
        )
        found = store.rows("SELECT DISTINCT feature FROM scores WHERE control = 'neighbour_label' ORDER BY feature")
        assert found == [(0,), (5,)]  # 0 has 2 as its second, 5 has 0; of 2 neither 3 nor 4 has a label


def test_free_controls_are_scored_along_with_the_labels(labelled: Store) -> None:
    with labelled as store:
        add_neighbours(store)
        auto = ScoreConfig(contexts=8)
        asyncio.run(score_labels(job(store, features="0-2"), "patterns", auto))
        asyncio.run(score_labels(job(store, features="3-5"), "patterns", ScoreConfig(contexts=8, controls=())))
        for control in ("token_lookup", "neighbour_label"):
            outcome = asyncio.run(score_labels(job(store), "patterns", auto, control))
            assert outcome.pending == 3  # the others' were scored
        kinds = "SELECT control, feature, scorer, part, status FROM scores WHERE control IS NOT NULL"
        rows = store.rows(f"{kinds} ORDER BY ALL")
        for control in ("token_lookup", "neighbour_label"):
            alike = [[r[2:] for r in rows if r[0] == control and (r[1] < 3) == early] for early in (True, False)]
            assert sorted(alike[0]) == sorted(alike[1]) and alike[0]
        kept = "SELECT DISTINCT control FROM predictions JOIN scores USING (score_id)"
        assert store.rows(kept) == [(None,)]  # a rule that stands in is at hand to predict again
        assert store.update_label_controls(1) == 12
        beats = store.rows("SELECT feature, beats_lookup, beats_neighbour FROM labels ORDER BY feature")
        tested = [verdict for _, _, verdict in beats if verdict is not None]
        assert all(tested) and store.check() == []


def test_unknown_controls_are_refused(labelled: Store) -> None:
    with labelled as store:
        for name in ("shufled", "random_model"):
            with pytest.raises(InputError, match=r"score.controls names .* none of auto, shuffled, neighbour_label"):
                check_settings(job(store), "patterns", ScoreConfig(controls=(name,)))


def test_earlier_shuffled_rows_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were of features of any density. They keep their values under a name of their own, and are scored anew."""
    path = tmp_path / "x.duckdb"
    with monkeypatch.context() as patch:
        patch.setattr("autointerp.score.score_rows._KEYS_OF_CONTROLS", {})  # as the keys were then
        with planted_store(path) as store:
            asyncio.run(explain(job(store), ExplainConfig(explainer="patterns")))
            config = ScoreConfig(contexts=4, controls=())
            for control in (None, "shuffled"):
                asyncio.run(score_labels(job(store), "patterns", config, control))
    with duckdb.connect(str(path)) as con:
        for (view,) in con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall():
            con.execute(f"DROP VIEW {view}")
        con.execute("DROP TABLE label_controls")
        con.execute("DELETE FROM schema_migrations WHERE name = 'label_controls'")
    with Store.open(path) as store:
        before = store.rows("SELECT score_id, value FROM scores WHERE control = 'shuffled_any_density' ORDER BY ALL")
        assert before and store.rows("SELECT 1 FROM scores WHERE control = 'shuffled'") == []
        outcome = asyncio.run(score_labels(job(store), "patterns", ScoreConfig(contexts=4, controls=()), "shuffled"))
        assert outcome.pending == len(WORDS) == outcome.statuses.total()
        after = store.rows("SELECT score_id, value FROM scores WHERE control = 'shuffled_any_density' ORDER BY ALL")
        new = store.rows("SELECT count(*) FROM scores WHERE control = 'shuffled' AND scorer = 'simulation'")
        assert after == before and new[0][0] >= len(WORDS)
