"""What is written for stores of a million features, on small ones: the same answers as the plain way gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.store_fixtures import N_FEATURES, call, copied, explanation, filled, score

from autointerp.records import Explanation, Score
from autointerp.store import Selection, Store
from autointerp.store import labels_left as labels_left_module
from autointerp.store.labels_left import LabelsLeft

ALIVE = [0, 1, 2, 4, 5]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "x.duckdb"
    filled(path)[0].close()
    return path


@pytest.fixture()
def store(tmp_path: Path, template: Path) -> Iterator[Store]:
    with Store.open(copied(template, tmp_path)) as opened:
        yield opened


explained = st.builds(
    lambda feature, explainer, status, seed: explanation(
        feature, explainer=explainer, status=status, seed=seed, text=f"{explainer} {seed} of {feature}"
    ),
    st.integers(0, N_FEATURES - 1), st.sampled_from(["contexts", "best_of_n", "other"]),
    st.sampled_from(["ok", "ok", "refused", "gave_up"]), st.integers(0, 3),
)  # fmt: skip
scored = st.fixed_dictionaries(
    {
        "scorer": st.sampled_from(["simulation", "detection"]), "seed": st.integers(0, 2),
        "control": st.sampled_from([None, None, None, "shuffled"]),
        "part": st.sampled_from(["report", "report", "select"]),
        "status": st.sampled_from(["ok", "ok", "ok", "gave_up", "unparseable"]), "value": st.floats(0, 1),
    }
)  # fmt: skip


def latest(rows: list[Any]) -> Any:
    """The last that is an answer, else the last; rows are in the order in which they were written."""
    return next((r for r in reversed(rows) if r.status != "gave_up"), rows[-1] if rows else None)


def expected(
    feature: int, labels: list[Explanation], scores: list[Score], explainer: str | None, scorer: str | None
) -> tuple[Any, ...]:
    drawn = {i for e in labels if e.explainer == "best_of_n" for i in (e.derived_from or [])[1:]}
    shown = latest(
        [
            e for e in labels
            if e.feature == feature and explainer in (None, e.explainer) and e.explanation_id not in drawn
        ]
    )  # fmt: skip
    if shown is None:
        return (None,) * 7
    found = latest(
        [
            s for s in scores
            if s.explanation_id == shown.explanation_id and s.control is None and s.part == "report"
            and scorer in (None, s.scorer)
        ]
    )  # fmt: skip
    beside = (found.score_id, found.scorer, found.value, found.status) if found else (None,) * 4
    return (shown.explanation_id, shown.text, shown.status, *beside)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(explained, max_size=12, unique_by=lambda e: e.explanation_id),
    st.lists(st.tuples(st.integers(0, 11), scored), max_size=20),
    st.sampled_from([None, "contexts", "best_of_n"]),
    st.sampled_from([None, "simulation"]),
    st.data(),
)
@pytest.mark.slow
def test_labels_shows_what_the_latest_rows_say(
    store: Store, labels: list[Explanation], drawn: list[tuple[int, dict[str, Any]]], explainer: str | None,
    scorer: str | None, data: st.DataObject,
) -> None:  # fmt: skip
    for i, label in enumerate(labels):
        if label.explainer == "best_of_n":
            of = [e.explanation_id for e in labels[:i] if e.feature == label.feature]
            chosen = data.draw(st.lists(st.sampled_from(of), unique=True)) if of else []
            labels[i] = Explanation(**{**{f: getattr(label, f) for f in label.__slots__}, "derived_from": chosen})
    scores = {s.score_id: s for i, how in drawn if i < len(labels) for s in [score(labels[i], **how)]}
    with store.transaction() as con:
        con.execute("DELETE FROM explanations; DELETE FROM scores")
    store.insert_explanations(labels)
    store.insert_scores(list(scores.values()))
    store.set_label_choice(1, explainer, scorer)
    columns = "explanation_id, label, explanation_status, score_id, scorer, score, score_status"
    everything = store.rows(f"SELECT feature, {columns} FROM labels ORDER BY feature")
    wanted = [(f, *expected(f, labels, list(scores.values()), explainer, scorer)) for f in range(N_FEATURES)]
    assert everything == wanted
    for feature in range(N_FEATURES):
        one = store.rows(f"SELECT feature, {columns} FROM labels WHERE dictionary_id = 1 AND feature = ?", [feature])
        assert one == [wanted[feature]]
    some = store.rows(f"SELECT feature, {columns} FROM labels WHERE feature IN (5, 0, 2) ORDER BY feature")
    assert some == [wanted[0], wanted[2], wanted[5]]


@pytest.fixture()
def many(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Explanation]:
    """More labels than are read in one query, in the order in which they are scored."""
    monkeypatch.setattr(labels_left_module, "AT_ONCE", 4)
    monkeypatch.setattr(labels_left_module, "AT_ONCE_OF_ALL", 7)
    labels = [
        explanation(feature, model=f"model {i:02}", text=f"{i} of {feature}") for feature in ALIVE for i in range(5)
    ]
    store.insert_explanations(labels[::-1])
    return labels


ALL = Selection()


def left(store: Store, selection: Selection = ALL, scorer: str = "simulation") -> LabelsLeft:
    return store.explanations_to_score(1, "contexts", scorer, None, "gpt", "s", "report", selection)


def test_labels_left_are_read_as_they_are_looked_at(store: Store, many: list[Explanation]) -> None:
    found = left(store)
    assert len(found) == len(many)
    assert list(found) == many
    assert [found[i] for i in (24, 0, 3, 4, 23, 5, -1)] == [many[i] for i in (24, 0, 3, 4, 23, 5, -1)]
    assert list(found[3:20:5]) == many[3:20:5]
    assert many[7] in found
    with pytest.raises(IndexError):
        found[len(many)]


def test_labels_left_keep_the_selections_order(store: Store, many: list[Explanation]) -> None:
    by_density = [e for feature in reversed(ALIVE) for e in many if e.feature == feature]
    assert list(left(store, Selection(order="density"))) == by_density
    assert list(left(store, Selection(features="1-4", order="density"))) == [
        e for e in by_density if e.feature in (1, 2, 4)
    ]
    assert list(left(store, Selection(features="3"))) == []  # it is dead


def test_labels_left_by_several_methods(store: Store, many: list[Explanation]) -> None:
    store.insert_scores([score(e) for e in many[:10]])
    store.insert_scores([score(e, scorer="detection") for e in many[5:15]])
    assert list(left(store).among(left(store, scorer="detection"))) == many[15:]
    store.insert_scores([score(e) for e in many[10:]])
    assert not left(store)


def test_recorded_calls_are_found_whatever_their_hash(store: Store) -> None:
    hashes = [f"{key:016x}{tail * 48}" for key in (0, 1, 2**63, 2**64 - 1) for tail in "0f"]
    store.insert_calls([call(i, request_sha256=h) for i, h in enumerate(hashes)])
    path = store.path
    store.close()
    with Store.open(path) as again:
        for i, sha in enumerate(hashes):
            found = again.find_call(sha, 0)
            assert found is not None
            assert found.feature == i
        assert again.find_call("5" * 64, 0) is None
