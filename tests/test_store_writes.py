"""Inserts: idempotent, whole groups, failures kept apart from values."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.store_fixtures import call, copied, explanation, filled, prediction, score

from autointerp.errors import AutointerpError, InputError
from autointerp.store import Store, connection


def count(store: Store, table: str) -> int:
    return int(store.rows(f"SELECT count(*) FROM {table}")[0][0])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "x.duckdb"
    store, dictionary_id, harvest_id = filled(path)
    store.close()
    assert (dictionary_id, harvest_id) == (1, 1)
    return path


@pytest.fixture()
def store(tmp_path: Path, template: Path) -> Iterator[Store]:
    with Store.open(copied(template, tmp_path)) as opened:
        yield opened


def contexts(store: Store, feature: int, split: str) -> list[int]:
    found = store.rows("SELECT context_id FROM contexts WHERE feature = ? AND split = ? ORDER BY ALL", [feature, split])
    return [row[0] for row in found]


def test_giving_memory_back_keeps_the_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB tells the limit rounded; set anew from what it tells each time, it would sink."""
    monkeypatch.setattr(connection, "GIVE_BACK_EVERY", 1)
    store.con.execute("SET memory_limit = '1234567890B'")
    store.insert_calls([call(0)])
    (first,) = store.con.execute("SELECT current_setting('memory_limit')").fetchall()[0]
    for i in range(1, 30):
        store.insert_calls([call(i)])
    assert store.con.execute("SELECT current_setting('memory_limit')").fetchall() == [(first,)]


def test_everything_comes_back_as_it_went_in(store: Store) -> None:
    c = call(1, dictionary_id=None, feature=None, reply="snow ☃ \x00 end", error=None, attempts=3)
    e = explanation(0, text="café ☃", rule='{"t": 1}', input_tokens=5, output_tokens=6, cost_usd=0.125, seed=2**40)
    store.insert_calls([c])
    store.insert_explanations([e])
    assert store.find_call(c.request_sha256, 0) == c
    assert store.find_call(c.request_sha256, 1) is None
    assert store.find_call("f" * 64, 0) is None
    assert store.explanations_of(1, [0, 1]) == {0: [e], 1: []}
    ids = contexts(store, 0, "report")[:2]
    s = score(e, predictions=[prediction(ids[0]), prediction(ids[1], predicted=None, status="unparseable")])
    store.insert_scores([s])
    row = store.dicts("SELECT * FROM scores")[0]
    for field in dataclasses.fields(s):
        if field.name != "predictions":
            assert row[field.name] == getattr(s, field.name)
    assert store.rows("SELECT * FROM predictions ORDER BY context_id") == [
        (s.score_id, ids[0], [0.0, 1.0], [0.5, 2.0], "ok"),
        (s.score_id, ids[1], [0.0, 1.0], None, "unparseable"),
    ]


def test_writing_twice_changes_nothing(store: Store) -> None:
    e = explanation(0)
    s = score(e, predictions=[prediction(contexts(store, 0, "report")[0])])
    for _ in range(2):
        store.insert_calls([call(1), call(2), call(1)])
        store.insert_explanations([e, e])
        store.insert_scores([s, s])
    assert [count(store, t) for t in ("llm_calls", "explanations", "scores", "predictions")] == [2, 1, 1, 1]
    assert store.spent().requests == 2
    store.insert_explanations([dataclasses.replace(e, text="another wording")])
    assert store.rows("SELECT text FROM explanations") == [(e.text,)]


def test_second_reply_to_one_request_is_paid_but_not_kept(store: Store) -> None:
    store.insert_calls([call(1)])
    store.insert_calls([call(1, reply="later", latency_s=0.75)])
    assert store.find_call(call(1).request_sha256, 0).reply == call(1).reply
    spent = store.spent()
    assert (spent.requests, spent.input_tokens, spent.output_tokens, spent.usd) == (2, 20, 6, 0.5)
    assert store.spent("run") == spent
    assert store.spent("other").requests == 0


def test_gave_up_is_replaced_by_the_answer_and_its_cost_stays(store: Store) -> None:
    lost = call(1, status="gave_up", reply=None, error="timeout", cost_usd=0.5, latency_s=9.0, attempts=6)
    store.insert_calls([lost])
    assert store.find_call(lost.request_sha256, 0) is None  # has to be sent again
    store.insert_calls([call(1)])
    found = store.find_call(lost.request_sha256, 0)
    assert (found.status, found.reply, found.error) == ("ok", call(1).reply, None)
    assert (found.attempts, found.cost_usd) == (7, 0.75)

    e, s = explanation(0, status="gave_up", error="timeout"), score(explanation(0), status="gave_up")
    store.insert_explanations([e])
    store.insert_scores([s])
    answered = explanation(0)
    assert answered.explanation_id == e.explanation_id
    store.insert_explanations([answered])
    store.insert_scores([score(answered, predictions=[prediction(contexts(store, 0, "report")[0])])])
    assert store.explanations_of(1, [0])[0] == [answered]
    assert store.rows("SELECT status, value FROM scores") == [("ok", 0.5)]
    assert count(store, "predictions") == 1
    assert store.rows("SELECT label, score, explanation_status FROM labels WHERE feature = 0") == [
        ("words about 0", 0.5, "ok")
    ]


def test_one_group_with_one_key_twice_takes_the_answer(store: Store) -> None:
    store.insert_calls([call(1, status="gave_up", reply=None, latency_s=8.0), call(1)])
    assert store.find_call(call(1).request_sha256, 0).status == "ok"
    store.insert_explanations([explanation(0, status="gave_up"), explanation(0)])
    assert store.rows("SELECT status FROM explanations") == [("ok",)]


@pytest.mark.parametrize("same_time", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("second", ["ok", "bad_reply", "gave_up"])
@pytest.mark.parametrize(
    "first", ["ok", "gave_up", *(pytest.param(s, marks=pytest.mark.slow) for s in ("refused", "bad_reply"))]
)
def test_one_key_twice_comes_to_the_same_in_one_group_as_in_two(
    tmp_path: Path, first: str, second: str, same_time: bool
) -> None:
    one = call(1, status=first, run_id="first", reply="1", error="one", latency_s=0.5, cost_usd=1.0)
    two = call(1, status=second, run_id="second", reply="2", error="two", latency_s=0.5 if same_time else 0.6)
    rows = []
    for name, groups in (("apart", [[one], [two]]), ("together", [[one, two]])):
        with Store.open(tmp_path / f"{name}.duckdb", create=True) as store:
            for group in groups:
                store.insert_calls(group)
            rows.append(store.rows("SELECT * EXCLUDE (created_at, sequence) FROM llm_calls"))
            found = store.find_call(one.request_sha256, 0)
    assert rows[0] == rows[1]
    if second == "ok" and first in ("bad_reply", "gave_up"):  # an answer is never lost, nor what came before it
        assert found is not None and (found.status, found.reply, found.cost_usd) == ("ok", "2", 1.25)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(store: Store, bad: float) -> None:
    e = explanation(0)
    context_id = contexts(store, 0, "report")[0]
    with pytest.raises(AutointerpError, match="value is"):
        store.insert_scores([score(e, value=bad)])
    with pytest.raises(AutointerpError, match="ci_low"):
        store.insert_scores([score(e, ci_low=bad)])
    with pytest.raises(AutointerpError, match="predicted that is not finite"):
        store.insert_scores([score(e, predictions=[prediction(context_id, predicted=[bad, 1.0])])])
    with pytest.raises(AutointerpError, match="cost_usd"):
        store.insert_calls([call(1, cost_usd=bad)])
    assert [count(store, t) for t in ("llm_calls", "scores", "predictions")] == [0, 0, 0]


def test_a_failure_is_a_status_and_never_a_value(store: Store) -> None:
    e = explanation(0)
    with pytest.raises(AutointerpError, match="only 'ok' rows have a text"):
        store.insert_explanations([dataclasses.replace(e, status="refused")])
    with pytest.raises(AutointerpError, match="only 'ok' rows have a text"):
        store.insert_explanations([dataclasses.replace(e, text=None)])
    with pytest.raises(AutointerpError, match="and only then"):
        store.insert_scores([dataclasses.replace(score(e), status="unparseable")])
    with pytest.raises(AutointerpError, match="and only then"):
        store.insert_scores([dataclasses.replace(score(e), value=None)])


def test_scores_may_only_use_contexts_of_their_part_and_feature(store: Store) -> None:
    e = explanation(0)
    for context_id, reason in (
        (contexts(store, 0, "explain")[0], "lies in split 'explain'"),
        (contexts(store, 0, "select")[0], "lies in split 'select'"),
        (contexts(store, 1, "report")[0], "not among the feature's contexts"),
        (10**9, "not among the feature's contexts"),
    ):
        with pytest.raises(AutointerpError, match=reason):
            store.insert_scores([score(e, predictions=[prediction(context_id)])])
    assert count(store, "scores") == 0
    store.insert_scores([score(e, part="select", predictions=[prediction(contexts(store, 0, "select")[0])])])
    assert count(store, "predictions") == 1


def test_lone_surrogates_do_not_stop_a_run(store: Store) -> None:
    store.insert_calls([call(1, reply="half \ud83d of a smile", error="\udcff")])
    assert store.find_call(call(1).request_sha256, 0).reply == "half ? of a smile"
    store.insert_explanations([explanation(0, text="a \ud83d b")])


def test_a_group_is_all_or_nothing(store: Store) -> None:
    wrong = score(explanation(0), predictions=[prediction(10**9)])
    with pytest.raises(AutointerpError):
        store.insert_group([call(1)], [explanation(0)], [wrong])
    assert [count(store, t) for t in ("llm_calls", "explanations", "scores")] == [0, 0, 0]
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.insert_calls([call(5)])
        assert count(store, "llm_calls") == 1  # the block sees its own writes
        raise ZeroDivisionError
    assert count(store, "llm_calls") == 0


def test_columns_without_any_value_keep_their_type(store: Store) -> None:
    many = [explanation(f, status="refused", error=None, rule=None) for f in range(6)]
    store.insert_explanations(many)
    assert count(store, "explanations") == 6


def test_runs_metrics_and_choice(store: Store) -> None:
    run = store.begin_run("run", {"a": Path("x")}, {"torch": "2"})
    assert store.rows("SELECT status, exit_code, finished_at FROM runs") == [("running", None, None)]
    store.finish_run(run, "done", 0)
    assert store.rows("SELECT status, exit_code, finished_at > started_at FROM runs") == [("done", 0, True)]
    with pytest.raises(InputError, match="no run"):
        store.finish_run("x", "done", 0)

    for value in (1.0, 2.0):
        store.insert_metrics(1, [
            {"step": 10, "metric": "loss", "value": value}, {"step": 20, "metric": "loss", "value": math.nan},
            {"metric": "ce_recovered", "split": "report", "corpus_id": 1, "value": value, "ci_low": 0.0},
        ])  # fmt: skip
    assert store.rows("SELECT step, value FROM training_metrics ORDER BY step") == [(10, 2.0), (20, None)]
    assert store.rows("SELECT metric, value, n_tokens FROM sae_metrics") == [("ce_recovered", 2.0, None)]


def test_vocab_projection_is_replaced(store: Store) -> None:
    for logit in (1.0, 2.0):
        store.insert_vocab_projection(
            1, feature=np.array([1, 1, 0]), sign=np.array([1, -1, 1]), rank=np.array([0, 0, 0]),
            token_id=np.array([5, 6, 7]), token=[" cat", "☃", "\ud800"], logit=np.array([logit, -logit, 0.5]),
        )  # fmt: skip
    found = store.projected_tokens(1, [0, 1, 2])
    assert [(t.token, t.logit, t.sign) for t in found[1]] == [(" cat", 2.0, 1), ("☃", -2.0, -1)]
    assert found[2] == []
    assert count(store, "vocab_projection") == 3


def test_features_are_checked(store: Store) -> None:
    columns = {
        "feature": [0], "status": ["alive"], "density": [0.1], "token_density": [0.1], "n_active_tiles": [1],
        "n_active_tokens": [1], "max_activation": [1.0], "mean_activation": [1.0], "explain_max_activation": [1.0],
        "histogram_edges": [[1.0]], "histogram_counts": [[1]],
    }  # fmt: skip
    with pytest.raises(AutointerpError, match="alive"):
        store.replace_features(1, 1, columns)
    with pytest.raises(AutointerpError, match="density"):
        store.replace_features(1, 1, {**columns, "status": ["live"], "density": [math.nan]})
    with pytest.raises(AutointerpError, match="need the columns"):
        store.replace_features(1, 1, {"feature": [0]})
    assert count(store, "features") == 6


def test_bulk_insert_is_not_row_by_row(store: Store) -> None:
    many = [explanation(f, dictionary_id=2) for f in range(20_000)]
    start = time.perf_counter()
    store.insert_explanations(many)
    assert time.perf_counter() - start < 60  # row by row it is minutes
    assert count(store, "explanations") == 20_000
