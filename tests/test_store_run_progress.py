"""What `status` tells of the running or last run, on a store whose calls were written at known times."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.store_fixtures import call, explanation, filled, score

from autointerp.store.run_progress import run_progress
from autointerp.store.store import Store


def test_pace_spending_and_what_is_left(tmp_path: Path) -> None:
    store, _, _ = filled(tmp_path / "x.duckdb")
    assert run_progress(store) is None
    budget = {"max_usd": 10.0, "max_requests": None, "max_tokens": 1000, "deadline": "2099-01-01T00:00"}
    config = {"budget": budget, "explain": {"explainer": "contexts"}, "score": {"scorers": ["simulation"]}}
    run_id = store.begin_run("run", config, {})
    store.insert_calls([call(i, run_id=run_id) for i in range(6)] + [call(9, run_id="another")])
    labels = [explanation(f, input_tokens=10) for f in (0, 1)]
    store.insert_explanations(labels)
    # Ten minutes of work: one call each two minutes, and the labels with the last two.
    store.con.execute("UPDATE runs SET started_at = TIMESTAMP '2026-01-01 00:00:00'")
    store.con.execute(
        "UPDATE llm_calls SET created_at = TIMESTAMP '2026-01-01 00:00:00' + to_minutes(2 * feature) WHERE feature < 9"
    )
    store.con.execute("UPDATE explanations SET created_at = TIMESTAMP '2026-01-01 00:06:00' + to_minutes(2 * feature)")
    found = run_progress(store)
    assert found is not None
    assert (found["command"], found["status"], found["requests"], found["usd"]) == ("run", "running", 6, 1.5)
    assert found["remaining"] == {"max_usd": 8.5, "max_tokens": 1000 - 6 * 13, "deadline": "2099-01-01T00:00"}
    assert found["calls_per_minute"] == pytest.approx(3 / 5)  # at 6, 8 and 10 of the last five minutes
    assert found["usd_per_minute"] == pytest.approx(3 * 0.25 / 5) and found["cached_tokens"] == 6 * 2
    assert found["labels"] == {"pending": 3, "per_minute": pytest.approx(2 / 5), "minutes_left": pytest.approx(7.5)}
    # Nothing is known of the scores' pace; all that is known is when the money will be gone.
    assert found["scores"] == {"pending": 5, "per_minute": 0.0, "minutes_left": None}
    assert (found["minutes_left"], found["ends_by"]) == (None, "max_usd")
    store.insert_scores([score(labels[0])])
    store.con.execute("UPDATE scores SET created_at = TIMESTAMP '2026-01-01 00:09:00'")
    found = run_progress(store)
    assert found is not None
    assert found["scores"] == {"pending": 4, "per_minute": pytest.approx(1 / 5), "minutes_left": pytest.approx(20)}
    assert found["minutes_left"] == pytest.approx(7.5 + 20)
    assert (found["expected_end"], found["ends_by"]) == ("2026-01-01T00:37:30+00:00", "done")
    # A scorer that reads no label.
    patch = (
        """UPDATE runs SET config = json_merge_patch(config, '{"score": {"scorers": ["simulation", "intruder"]}}')"""
    )
    store.con.execute(patch)
    unread = score(labels[0], explanation_id=None, scorer="intruder", score_id="intruder 0")
    for pending, scores in ((9, []), (8, [unread])):
        store.insert_scores(scores)
        found = run_progress(store)
        assert found is not None and found["scores"]["pending"] == pending
    store.con.execute('UPDATE runs SET config = json_merge_patch(config, \'{"score": {"scorers": ["simulation"]}}\')')
    store.con.execute('UPDATE runs SET config = json_merge_patch(config, \'{"budget": {"max_requests": 9}}\')')
    found = run_progress(store)
    assert found is not None and (found["expected_end"], found["ends_by"]) == (
        "2026-01-01T00:15:00+00:00",
        "max_requests",
    )
    store.con.execute('UPDATE runs SET config = json_merge_patch(config, \'{"selection": {"features": "0-1"}}\')')
    found = run_progress(store)
    assert found is not None and found["labels"]["pending"] == 0 and found["scores"]["pending"] == 1
    store.finish_run(run_id, "stopped", 4)
    over = run_progress(store)
    assert over is not None and (over["status"], over["minutes_left"], over["expected_end"]) == ("stopped", None, None)


def test_a_run_that_was_killed_is_not_running(tmp_path: Path) -> None:
    """Its row says "running" still; but nobody holds the store, so it is not."""
    store, _, _ = filled(tmp_path / "x.duckdb")
    run_id = store.begin_run("explain", {"budget": {"max_usd": 10.0}}, {})
    store.insert_calls([call(1, run_id=run_id)])
    assert store.status()["runs"][0]["status"] == "running"
    store.close()
    with Store.open(tmp_path / "x.duckdb", read_only=True) as read:
        found = run_progress(read)
        assert found is not None and (found["status"], found["expected_end"]) == ("killed", None)
        assert read.status()["runs"][0]["status"] == "killed"
    with Store.open(tmp_path / "x.duckdb") as again:
        again.begin_run("score", {}, {})
        assert again.rows("SELECT command, status FROM runs WHERE command <> 'harvest' ORDER BY started_at") == [
            ("explain", "killed"),
            ("score", "running"),
        ]


def test_the_pace_of_scores_counts_from_the_first_question_of_a_scorer(tmp_path: Path) -> None:
    store, _, _ = filled(tmp_path / "x.duckdb")
    config = {"explain": {"explainer": "contexts"}, "score": {"scorers": ["simulation"]}}
    run_id = store.begin_run("run", config, {})
    calls = [call(i, run_id=run_id, stage="explain" if i < 4 else "simulate") for i in range(6)]
    store.insert_calls(calls)
    labels = [explanation(f, input_tokens=10) for f in (0, 1)]
    store.insert_explanations(labels)
    store.insert_scores([score(labels[0])])
    store.con.execute("UPDATE llm_calls SET created_at = TIMESTAMP '2026-01-01 00:00:00' + to_seconds(30 * feature)")
    for table in ("explanations", "scores"):
        store.con.execute(f"UPDATE {table} SET created_at = TIMESTAMP '2026-01-01 00:02:20'")
    found = run_progress(store)
    assert found is not None
    assert found["scores"]["per_minute"] == pytest.approx(2), "one in the half minute since 2:00"
    assert found["labels"]["per_minute"] == pytest.approx(2 / 2.5)
