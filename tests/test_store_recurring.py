"""What recurs over features: tokens in the lists of many of them, and labels that many of them have word for word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.store_fixtures import add_dictionary, explanation

from autointerp.errors import AutointerpError
from autointerp.records import Explanation
from autointerp.store import Store, schema
from autointerp.store.connection import sql_file
from autointerp.store.findings import MethodRun
from autointerp.store.recurring_tokens import count_recurring_tokens, is_counted, recurring_tokens
from autointerp.store.same_labels import count_same_labels, flagged_labels
from autointerp.store.schema import migrations

N = 200


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "x.duckdb", create=True) as opened:
        _add(opened, N)
        yield opened


def _add(store: Store, n: int) -> None:
    store.add_corpus("c", {}, "tok", 1, 1)
    add_dictionary(store, d_sae=n)
    store.add_harvest(1, 1, 1, {})
    _add_features(store, n)


def _add_features(store: Store, n: int) -> None:
    names = (
        "density", "token_density", "n_active_tiles", "n_active_tokens", "max_activation", "mean_activation",
        "explain_max_activation",
    )  # fmt: skip
    columns = {"feature": np.arange(n), "status": ["live"] * n, **{name: np.ones(n) for name in names}}
    empty: dict[str, list[list[float]]] = {"histogram_edges": [[]] * n, "histogram_counts": [[]] * n}
    store.replace_features(1, 1, {**columns, **empty})


def _project(store: Store, n: int = N) -> None:
    """Every feature promotes a token of its own; ` strugg` is promoted by 1 in 20, `pair` by two of them."""
    lists = {f: [f" own{f}"] + ([" strugg"] if f % 20 == 0 else []) + (["pair"] if f < 2 else []) for f in range(n)}
    rows = [(f, 1, rank, token) for f, tokens in lists.items() for rank, token in enumerate(tokens)]
    rows += [(f, -1, 0, " strugg") for f in range(3)]
    feature, sign, rank, token = zip(*rows, strict=True)
    store.insert_vocab_projection(
        1, feature=np.array(feature), sign=np.array(sign), rank=np.array(rank),
        token_id=np.arange(50_000 - len(rows), 50_000), token=list(token), logit=np.ones(len(rows)),
    )  # fmt: skip


def test_tokens_are_counted_with_the_harvest(store: Store) -> None:
    _project(store)
    counted = "SELECT list, token, n_features, share FROM recurring_tokens ORDER BY ALL"
    assert store.rows(counted) == [
        ("promoted", " strugg", 10, 0.05), ("promoted", "pair", 2, 0.01), ("suppressed", " strugg", 3, 1.0),
    ]  # fmt: skip
    # In three lists only, though these are all there are: too few to say that it recurs.
    assert recurring_tokens(store, 1) == {"promoted": frozenset([" strugg"])}
    found = store.feature_evidence(1, 1, [0, 1], contexts=0)
    assert found[0].recurring == {"promoted": [" strugg"]} and found[1].recurring == {}
    assert [t.token for t in found[0].promoted] == [" own0", " strugg", "pair"]
    _project(store)  # a harvest that is merged again
    assert len(store.rows(counted)) == 3


@pytest.mark.parametrize(("vocabulary", "recur"), [(1_000, True), (80, False)])
def test_in_a_small_vocabulary_tokens_recur_by_chance(store: Store, vocabulary: int, recur: bool) -> None:
    _project(store)
    store.con.execute("UPDATE vocab_projection SET token_id = token_id % ?", [vocabulary])
    count_recurring_tokens(store, 1, "vocab_projection")
    (by_chance,) = store.rows("SELECT DISTINCT by_chance FROM recurring_tokens WHERE list = 'promoted'")[0]
    (largest,) = store.rows("SELECT max(token_id) FROM vocab_projection")[0]
    assert by_chance == pytest.approx(212 / 200 / (largest + 1))
    assert recurring_tokens(store, 1) == ({"promoted": frozenset([" strugg"])} if recur else {})


def test_what_recurs_does_not_depend_on_the_features_asked_for(store: Store) -> None:
    _project(store)
    every = store.feature_evidence(1, 1, range(N), contexts=0)
    for few in ([0], [0, 20, 40], [7, 60]):
        assert all(store.feature_evidence(1, 1, few, contexts=0)[f].recurring == every[f].recurring for f in few)


def _change(store: Store, features: list[int], token: str) -> None:
    n = len(features)
    store.replace_findings(
        "token_change", 1, 1, "settings", [MethodRun(f) for f in features],
        {
            "feature": features, "sign": [1] * n, "rank": [0] * n, "token_id": [50_000] * n, "token": [token] * n,
            "delta": [1.0] * n, "z": [1.0] * n, "strength": [1.0] * n, "kl": [1.0] * n,
        },
    )  # fmt: skip


def test_measured_changes_are_counted_once_more_are_known(store: Store) -> None:
    _change(store, [0, 1, 2, 3], " slicing")
    _change(store, [4, 5], " own")
    assert not is_counted(store, 1, "token_changes")
    count_recurring_tokens(store, 1, "token_changes")
    assert is_counted(store, 1, "token_changes")
    assert recurring_tokens(store, 1) == {"raised": frozenset([" slicing"])}
    assert store.feature_evidence(1, 1, [0], contexts=0)[0].recurring == {"raised": [" slicing"]}
    _change(store, [6], " slicing")
    assert not is_counted(store, 1, "token_changes")
    assert is_counted(store, 1, "vocab_projection")


def _label(feature: int, text: str | None, **changed: object) -> Explanation:
    told = {"status": "ok" if text else "abstained", "explanation_id": f"{changed.get('explainer', 'e')}{feature}"}
    return explanation(feature, text=text, **{**told, **changed})  # type: ignore[arg-type]


def test_a_label_of_many_features_is_flagged(store: Store) -> None:
    texts = ["excerpts of text"] * 6 + ["the word `a`"] * 4 + [f"label {i}" for i in range(10, 100)]
    store.insert_explanations([_label(f, text) for f, text in enumerate(texts)])
    count_same_labels(store, 1)
    flags = store.rows("SELECT label, n_same_label, label_flag FROM labels WHERE feature IN (0, 6, 10, 150) ORDER BY 2")
    assert flags == [
        ("label 10", 1, None), ("the word `a`", 4, None), ("excerpts of text", 6, "repeated"), (None, None, None),
    ]  # fmt: skip
    assert flagged_labels(store, 1) == {"repeated": 6} == store.status()["dictionaries"][0]["flagged"]
    assert flagged_labels(store, 1, "another") == {}
    # The flag is of what is shown: with other labels on most of them, it is gone.
    store.insert_explanations([_label(f, f"better {f}", explanation_id=f"new{f}") for f in range(3)])
    count_same_labels(store, 1)
    assert flagged_labels(store, 1) == {}


@pytest.mark.parametrize("changed", [{"rule": "{}"}, {"model": "shape"}, {"explainer": "r", "model": "r"}])
def test_rules_may_repeat(store: Store, changed: dict[str, str]) -> None:
    store.insert_explanations([_label(f, "the first token of a document", **changed) for f in range(50)])
    count_same_labels(store, 1)
    assert flagged_labels(store, 1) == {}
    assert store.rows("SELECT DISTINCT n_same_label FROM labels WHERE label IS NOT NULL") == [(50,)]


def test_a_share_of_a_large_dictionary_is_needed(tmp_path: Path) -> None:
    """Six of a thousand may well be about the same word."""
    with Store.open(tmp_path / "y.duckdb", create=True) as store:
        _add(store, 1000)
        store.insert_explanations([_label(f, "the word `the`" if f < 6 else f"word {f}") for f in range(1000)])
        count_same_labels(store, 1)
        assert flagged_labels(store, 1) == {}


def test_what_is_counted_again_is_not_written_again(store: Store) -> None:
    store.insert_explanations([_label(f, "the same") for f in range(9)])
    count_same_labels(store, 1)
    before = store.rows("SELECT commit_number FROM store_state")
    count_same_labels(store, 1)
    assert store.rows("SELECT commit_number FROM store_state") == before


def test_a_label_keeps_to_its_text(store: Store) -> None:
    for wrong in ({"output_text": "x"}, {"share": 0.5}):
        with pytest.raises(AutointerpError, match="there is no text"):
            store.insert_explanations([_label(0, None, **wrong)])
    with pytest.raises(AutointerpError, match="share is 70, which is no share"):
        store.insert_explanations([_label(0, "x", share=70)])


def test_an_older_store_is_counted_when_it_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.duckdb"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", lambda: [m for m in migrations() if m[1] != "meanings"])
        patch.setattr(schema, "sql_file", lambda name: "" if name == "views.sql" else sql_file(name))
        patch.setattr("autointerp.store.features.count_recurring_tokens", lambda *_: None)
        with Store.open(path, create=True) as store:
            store.add_corpus("c", {}, "tok", 1, 1)
            add_dictionary(store, d_sae=N)
            store.add_harvest(1, 1, 1, {})
            _project(store)
            _change(store, [0, 1, 2, 3], " slicing")
            for f in range(8):
                store.con.execute(
                    "INSERT INTO explanations BY NAME SELECT ? AS explanation_id, 1 AS dictionary_id, ? AS feature, "
                    "1 AS harvest_id, 'combined' AS explainer, 'm' AS model, 't' AS template_sha256, "
                    "'e' AS evidence_sha256, 0 AS seed, 'output' AS text, 'ok' AS status, 0 AS input_tokens, "
                    "0 AS output_tokens, 0.0 AS cost_usd, now()::TIMESTAMP AS created_at, 'both' AS side, "
                    "? AS sequence",
                    [f"x{f}", f, f + 1],
                )
    with Store.open(path) as store:
        _add_features(store, N)
        for table in ("vocab_projection", "token_changes"):
            assert is_counted(store, 1, table)
        assert recurring_tokens(store, 1) == {"promoted": frozenset([" strugg"]), "raised": frozenset([" slicing"])}
        assert flagged_labels(store, 1) == {"repeated": 8}
        columns = "label, side, second_label, output_label, label_share, second_share"
        assert store.rows(f"SELECT {columns} FROM labels WHERE feature = 0") == [
            ("output", "both", None, None, None, None)
        ]
        (old,) = store.explanations_of(1, [0])[0]
        assert old.judged_text == old.whole_text == "output"
