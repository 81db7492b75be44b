"""Evidence for many features at once, the labels view, spending, and what a person sees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.store_fixtures import add_dictionary, add_features, call, copied, explanation, filled, prediction, score

from autointerp.errors import InputError
from autointerp.scorer_names import HEADLINE_SCORERS
from autointerp.store import Store, call_keys


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "x.duckdb"
    filled(path)[0].close()
    return path


@pytest.fixture()
def store(tmp_path: Path, template: Path) -> Iterator[Store]:
    with Store.open(copied(template, tmp_path)) as opened:
        yield opened


def labels(store: Store, columns: str) -> dict[int, tuple[object, ...]]:
    return {row[0]: row[1:] for row in store.rows(f"SELECT feature, {columns} FROM labels WHERE dictionary_id = 1")}


def test_contexts_are_dense_and_in_order(store: Store) -> None:
    found = store.contexts_of(1, 1, [4, 3, 0], "report", {"top": 1, "negative": None, "sampled": 2})
    assert sorted(found) == [0, 3, 4]
    assert found[3] == []  # dead
    of_kind = {kind: [c for c in found[4] if c.kind == kind] for kind in ("top", "sampled", "negative")}
    assert [len(v) for v in of_kind.values()] == [1, 2, 3]
    top = of_kind["top"][0]
    assert top.tokens == [" cat", " sat", " on", " the"]
    assert top.activations == [0.0, 0.5, 0.0, 5.0]
    assert (top.max_activation, top.text, top.document, top.split, top.decile) == (
        5.0, " cat sat on the", "doc4", "report", 9,
    )  # fmt: skip
    assert [c.rank for c in of_kind["sampled"]] == [0, 1]
    assert [c.tier for c in of_kind["negative"]] == ["neighbour", "random", "same_token"]
    assert all(c.activations == [0.0] * 4 for c in of_kind["negative"])
    assert store.contexts_of(1, 2, [4], "report", {"top": 5}) == {4: []}  # another harvest
    assert store.contexts_of(1, 1, [], "report", {"top": 5}) == {}


def test_python_and_sql_expand_the_same_contexts(store: Store) -> None:
    kinds = {"top": None, "sampled": None, "negative": None}
    in_sql = store.rows("SELECT context_id, feature, tokens, activations, max_activation, text FROM contexts")
    in_python = [
        (c.context_id, c.feature, c.tokens, c.activations, c.max_activation, c.text)
        for split in ("explain", "select", "report")
        for contexts in store.contexts_of(1, 1, range(6), split, kinds).values()
        for c in contexts
    ]
    assert sorted(in_python) == sorted(in_sql)


def test_explainers_see_the_explain_split_alone(store: Store) -> None:
    store.insert_vocab_projection(
        1, feature=np.array([4, 4, 4]), sign=np.array([1, 1, -1]), rank=np.array([1, 0, 0]),
        token_id=np.array([5, 6, 7]), token=["b", "a", "c"], logit=np.array([1.0, 2.0, -3.0]),
    )  # fmt: skip
    found = store.feature_evidence(1, 1, [4, 0], contexts=1)
    evidence = found[4]
    assert (evidence.status, evidence.max_activation, evidence.dictionary_id) == ("live", 4.25, 1)
    assert [len(x) for x in (evidence.top, evidence.sampled, evidence.negatives)] == [1, 1, 1]
    assert {c.split for c in (*evidence.top, *evidence.sampled, *evidence.negatives)} == {"explain"}
    assert [t.token for t in evidence.promoted] == ["a", "b"]
    assert [t.token for t in evidence.suppressed] == ["c"]
    assert found[0].promoted == []
    with pytest.raises(InputError, match="no feature 77"):
        store.feature_evidence(1, 1, [0, 77], contexts=1)


def test_labels_has_one_row_for_every_feature(store: Store) -> None:
    assert labels(store, "label, score, status") == {
        i: (None, None, s) for i, s in enumerate(["live", "live", "rare", "dead", "live", "no_heldout"])
    }
    refused = explanation(1, status="refused")
    good, late = explanation(0), explanation(0, seed=1, text="later words")
    store.insert_explanations([good, late, refused])
    store.insert_scores([
        score(good, value=0.9),
        score(late, value=0.4),
        score(late, value=0.1, control="shuffled"),
        score(late, value=0.2, part="select"),
        score(late, value=None, status="constant", method="other", seed=9),
    ])  # fmt: skip
    found = labels(store, "label, score, ci_low, ci_high, explanation_status, score_status, name, status")
    assert len(found) == 6
    assert found[0] == ("later words", None, None, None, "ok", "constant", "layer3", "live")
    assert found[1] == (None, None, None, None, "refused", None, "layer3", "live")
    assert found[3][-1] == "dead"
    store.insert_scores([score(late, value=0.45, seed=10)])
    assert labels(store, "score, ci_low, ci_high, scorer, model")[0] == (0.45, 0.25, 0.75, "simulation", "gpt")


def test_labels_follow_the_choice(store: Store) -> None:
    patterns = explanation(0, explainer="patterns", model="patterns", text="fires on cat")
    by_llm = explanation(0, text="animals")
    store.insert_explanations([patterns, by_llm])
    store.insert_scores([score(patterns, value=0.3), score(by_llm, value=0.6), score(by_llm, scorer="fuzz", value=0.8)])
    assert labels(store, "label, scorer, score")[0] == ("animals", "fuzz", 0.8)
    store.set_label_choice(1, "contexts", "simulation")
    assert labels(store, "label, scorer, score")[0] == ("animals", "simulation", 0.6)
    store.set_label_choice(1, "patterns", None)
    assert labels(store, "label, scorer, score")[0] == ("fires on cat", "simulation", 0.3)
    store.set_label_choice(1, "never run", None)
    assert labels(store, "label, explainer, score")[0] == (None, None, None)
    store.set_label_choice(1, None, None)
    assert labels(store, "label")[0] == ("animals",)


def test_a_label_that_gave_up_does_not_hide_an_answer(store: Store) -> None:
    store.insert_explanations([explanation(0)])
    store.insert_explanations([explanation(0, seed=1, status="gave_up"), explanation(1, status="gave_up")])
    found = labels(store, "label, explanation_status")
    assert found[0] == ("words about 0", "ok")
    assert found[1] == (None, "gave_up")
    store.insert_explanations([explanation(0, seed=2, status="refused")])  # that is an answer
    assert labels(store, "label, explanation_status")[0] == (None, "refused")


def test_labels_of_several_dictionaries_stay_apart(store: Store) -> None:
    second = add_dictionary(store, "layer4")
    with pytest.raises(InputError, match="no feature"):
        store.feature_page(second, 0)
    # Features of a dictionary whose evidence is not in the file would be refused at the next open; here only the view
    # counts.
    add_features(store, second, 1, ["live", "dead"])
    store.insert_explanations([explanation(0), explanation(0, dictionary_id=second, text="other words")])
    store.set_label_choice(second, "patterns", None)
    found = store.rows("SELECT dictionary_id, feature, label FROM labels WHERE feature < 2 ORDER BY ALL")
    assert found == [(1, 0, "words about 0"), (1, 1, None), (second, 0, None), (second, 1, None)]


def test_leaderboard_and_spending(store: Store) -> None:
    es = [explanation(f) for f in (0, 1, 2)]
    store.insert_explanations(es)
    store.insert_scores([score(es[0], value=0.2), score(es[0], value=0.4, seed=1), score(es[1], value=0.5)])
    store.insert_scores([score(es[2], status="constant"), score(es[1], value=0.9, control="empty")])
    store.insert_scores([score(es[0], scorer="detection_sensitivity", value=1.0)])
    floor = store.rows("SELECT control, mean_score, n FROM explainer_leaderboard WHERE control IS NOT NULL")
    assert floor == [("empty", 0.9, 1)]
    parts = store.rows("SELECT scorer FROM explainer_leaderboard_strata ANTI JOIN explainer_leaderboard USING (scorer)")
    assert parts == [("detection_sensitivity",)]
    assert [r["mean_score"] for r in store.label_summary(1)["scores"]] == [pytest.approx(0.4)]
    row = store.dicts("SELECT * FROM explainer_leaderboard WHERE control IS NULL")
    assert len(row) == 1
    assert (row[0]["explainer"], row[0]["n"], row[0]["n_without_score"]) == ("contexts", 2, 1)
    assert row[0]["mean_score"] == pytest.approx(0.4)
    error = np.std([0.3, 0.5], ddof=1) / np.sqrt(2)
    half = 12.706 * error  # Student's t of one degree of freedom
    assert (row[0]["ci_low"], row[0]["ci_high"]) == (pytest.approx(0.4 - half), pytest.approx(0.4 + half))
    assert (row[0]["se_features"], row[0]["se_both"], row[0]["n_documents"]) == (pytest.approx(error), None, None)
    store.insert_calls([call(1), call(2, stage="score", attempts=4), call(3, stage="score", status="refused")])
    spend = store.dicts("SELECT stage, n_calls, n_not_ok, n_requests, cost_usd FROM spend_by_stage ORDER BY stage")
    assert spend == [
        {"stage": "explain", "n_calls": 1, "n_not_ok": 0, "n_requests": 1, "cost_usd": 0.25},
        {"stage": "score", "n_calls": 2, "n_not_ok": 1, "n_requests": 5, "cost_usd": 0.5},
    ]


def test_a_label_that_is_scored_anew_after_another_harvest_is_shown_once(store: Store) -> None:
    """The first scoring gave up, the second one is over the contexts of another harvest."""
    e = explanation(0)
    store.insert_explanations([e])
    names = ("simulation_natural", "simulation_precision", "simulation_recall", "simulation")
    for harvest_id, status in ((1, "gave_up"), (2, "ok")):
        store.insert_scores(
            [
                score(e, scorer=name, harvest_id=harvest_id, status=status, score_id=f"{name}{harvest_id}")
                for name in names
            ]
        )
    columns = "score_id, score, precision, recall"
    assert store.rows(f"SELECT {columns} FROM labels WHERE feature = 0") == [("simulation_natural2", 0.5, 0.5, 0.5)]


def test_the_leaderboard_lists_every_headline_scorer_and_no_other(store: Store) -> None:
    e = explanation(0)
    store.insert_explanations([e])
    names = [*HEADLINE_SCORERS, "detection_specificity", "generation_clarity"]
    store.insert_scores([score(e, scorer=name) for name in names if name != "intruder"])
    intruder = score(e, scorer="intruder", explanation_id=None, score_id="i" * 32)
    store.insert_scores([intruder])
    assert {r[0] for r in store.rows("SELECT scorer FROM explainer_leaderboard")} == set(HEADLINE_SCORERS)
    assert store.rows("SELECT explainer FROM explainer_leaderboard WHERE scorer = 'intruder'") == [(None,)]
    assert {r[0] for r in store.rows("SELECT scorer FROM explainer_leaderboard_strata")} == set(names)


def test_search_prefers_more_words_then_the_score(store: Store) -> None:
    texts = {0: "names of cats", 1: "Cats and dogs", 2: "dogs", 4: "100% of numbers"}
    es = [explanation(f, text=t) for f, t in texts.items()]
    store.insert_explanations(es)
    store.insert_scores([score(es[0], value=0.1), score(es[1], value=0.9)])
    assert [r["feature"] for r in store.search_labels("cats")] == [1, 0]
    assert [r["feature"] for r in store.search_labels("CATS dogs")] == [1, 0, 2]
    assert [r["feature"] for r in store.search_labels("100%", 1)] == [4]
    assert store.search_labels("%' OR 1=1 --") == []
    assert store.search_labels("cats", 2) == []
    with pytest.raises(InputError):
        store.search_labels("  ")


def test_feature_page_and_status(store: Store) -> None:
    e = explanation(4)
    store.insert_explanations([e])
    first = store.contexts_of(1, 1, [4], "report", {"top": 1})[4][0]
    store.insert_scores([score(e, predictions=[prediction(first.context_id)])])
    store.begin_run("run", {}, {})
    page = store.feature_page(1, 4, contexts=2)
    assert page["label"]["label"] == "words about 4"
    assert page["feature"]["histogram_counts"] == [3, 1]
    assert len(page["contexts"]) == 18
    assert [len(page[k]) for k in ("explanations", "scores", "promoted")] == [1, 1, 0]
    with pytest.raises(InputError, match="features 0 to 5"):
        store.feature_page(1, 99)
    status = store.status()
    assert json.loads(json.dumps(status)) == status
    assert status["dictionaries"][0]["features"] == {"dead": 1, "live": 3, "no_heldout": 1, "rare": 1}
    assert status["dictionaries"][0]["without_label"] == 4
    assert status["rows"]["predictions"] == 1


def test_check_finds_what_does_not_hold(store: Store) -> None:
    assert store.check() == []
    store.insert_scores([score(explanation(0))])
    store.insert_explanations([explanation(0, dictionary_id=7)])
    assert store.check() == ["1 explanations of no feature", "1 scores of no explanation"]


def test_calls_are_found_in_a_store_opened_again(tmp_path: Path, template: Path) -> None:
    path = copied(template, tmp_path)
    with Store.open(path) as store:
        store.insert_calls([call(i, request_sha256=f"{(2**64 - 1 - i):016x}" + "0" * 48) for i in range(50)])
    with Store.open(path, read_only=True) as store:
        assert store.find_call(f"{(2**64 - 1 - 7):016x}" + "0" * 48, 0).feature == 7
        assert store.find_call(f"{(2**64 - 1 - 7):016x}" + "1" * 48, 0) is None
        assert store.find_call("0" * 64, 0) is None


def test_calls_are_found_whether_new_or_long_recorded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys move from the set of the new ones into the sorted array, group by group."""
    monkeypatch.setattr(call_keys, "KEYS_APART", 10)
    ours = [call(i, request_sha256=hashlib.sha256(str(i).encode()).hexdigest()) for i in range(64)]
    for first in range(0, len(ours), 7):
        assert store.find_call(ours[first].request_sha256, 0) is None
        store.insert_calls(ours[first : first + 7])
        assert [store.find_call(c.request_sha256, 0) for c in ours[: first + 7]] == ours[: first + 7]
