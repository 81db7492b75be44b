"""Judges that are asked twice: what is made of their answers, on simulated judges of known correlation, and the whole
way through a real server and store."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.known_words import WORDS, World, choice_question, contexts, job
from support.llm_server import LlmServer

from autointerp.config import ScoreConfig
from autointerp.records import Explanation, JudgeRepeat
from autointerp.score.detection_questions import DETECTION, Example, answer_of, batches
from autointerp.score.judge_consistency import assumed_correlation, is_repeated, judge_repeat
from autointerp.score.score_rows import Answer, Identity
from autointerp.score.scorer import MadeBy, Run
from autointerp.score.scoring import forecast_score, score
from autointerp.score.stopping import UNMEASURED
from autointerp.store import Store

BASE = contexts(0, "report")
SILENT = next(c for c in BASE if c.tier == "random")
EXAMPLES = [
    *(Example(replace(BASE[0], context_id=i)) for i in range(20)),
    *(Example(replace(SILENT, context_id=100 + i)) for i in range(20)),
]


def label(number: int, dictionary_id: int = 1) -> Explanation:
    return Explanation(f"{dictionary_id}/{number}", dictionary_id, number, 1, "x", "m", "t", "v", 0, "a label", "ok")


def identity(number: int, dictionary_id: int = 1) -> Identity:
    return Identity(label(number, dictionary_id), 1, "answers_ordinary", None, "judge", "t" * 64, 0)


def asked_twice(rng: np.random.Generator, correlation: float, right: float) -> list[list[list[Answer]]]:
    """A judge that is right with this chance, twice; some contexts are harder than others for it."""
    hard = {e.context.context_id: 0.25 * (rng.random() - 0.5) for e in EXAMPLES}
    order = [EXAMPLES[i] for i in rng.permutation(len(EXAMPLES))]
    times = []
    for again in (False, True):
        calls = []
        for batch in batches(order, 5, again):
            luck = np.where(rng.random(len(batch)) < correlation**0.5, rng.random(), rng.random(len(batch)))
            calls.append(
                [
                    answer_of(e, e.active == bool(u < right + hard[e.context.context_id]), "ok")
                    for e, u in zip(batch, luck, strict=True)
                ]
            )
        times.append(calls)
    return times


def test_sums_over_pairs() -> None:
    """Two contexts of one class in one call, then in two: the errors are .5 and -.5 each time."""
    one, two = EXAMPLES[0], EXAMPLES[1]
    right, wrong = answer_of(one, True, "ok"), answer_of(two, False, "ok")
    row = judge_repeat(identity(0), DETECTION, [[[right, wrong]], [[right], [wrong]]])
    assert row is not None
    assert (row.n_twice, row.n_agreed, row.n_answers, row.square_sum) == (2, 2, 4, 1.0)
    assert (row.n_within, row.within_sum) == (1, -0.25)
    assert (row.n_between, row.between_sum) == (3, -0.75)
    failed = answer_of(two, None, "truncated")
    assert judge_repeat(identity(0), DETECTION, [[[right, failed]], [[right]]]) is None
    other = judge_repeat(identity(0), DETECTION, [[[right, wrong]], [[answer_of(one, False, "ok")], [failed]]])
    assert other is not None and (other.n_twice, other.n_agreed, other.n_answers) == (1, 0, 3)


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3]))
def test_every_pair_is_counted_once(seed: int, correlation: float) -> None:
    times = asked_twice(np.random.default_rng(seed), correlation, 0.7)
    row = judge_repeat(identity(0), DETECTION, times)
    assert row is not None and row.n_twice == 40 and row.n_answers == 80
    assert row.n_within == 16 * 10 and row.n_within + row.n_between + row.n_twice == 80 * 79 // 2


def measured(path: Path, correlation: float, judges: int, labels: int) -> list[tuple[float, float, float]]:
    """(correlation, both ends) of as many judges, each in a dictionary of its own."""
    rng = np.random.default_rng(3)
    rows: list[JudgeRepeat] = []
    for judge in range(1, judges + 1):
        for number in range(labels):
            found = judge_repeat(
                identity(number, judge), DETECTION, asked_twice(rng, correlation, rng.uniform(0.6, 0.8))
            )
            assert found is not None
            rows.append(found)
    with Store.open(path, create=True) as store:
        store.insert_judge_repeats(rows)
        store.insert_judge_repeats(rows[:1])  # written before
        assert store.row_counts()["judge_repeats"] == len(rows)
        return store.rows("SELECT correlation, ci_low, ci_high FROM judge_consistency ORDER BY dictionary_id")


@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.3])
def test_the_correlation_within_a_call_is_found(tmp_path: Path, correlation: float) -> None:
    found = measured(tmp_path / "x.duckdb", correlation, judges=12, labels=24)
    # Of what is common to a call, contexts of different difficulty share a part only: (E min(p, q) - E p E q) / var.
    assert np.mean([value for value, _, _ in found]) == pytest.approx(0.8 * correlation, abs=0.025)
    assert sum(low <= 0.8 * correlation <= high for _, low, high in found) >= 9


def test_few_labels_have_no_interval_and_a_perfect_judge_no_correlation(tmp_path: Path) -> None:
    with Store.open(tmp_path / "x.duckdb", create=True) as store:
        times = asked_twice(np.random.default_rng(0), 0.0, 2.0)
        perfect = judge_repeat(identity(0), DETECTION, times)
        assert perfect is not None
        store.insert_judge_repeats([perfect])
        (row,) = store.dicts("SELECT * FROM judge_consistency")
    assert (row["n_labels"], row["n_contexts"], row["agreement"], row["n_pairs"]) == (1, 40, 1.0, 160)
    assert row["correlation"] is row["ci_low"] is row["ci_high"] is None


def test_which_labels_are_asked_twice_hangs_on_feature_and_seed_alone(store: Store) -> None:
    def chosen(share: float, seed: int = 0, control: str | None = None) -> set[int]:
        run = Run(job(store), "combined", ScoreConfig(repeat_share=share, seed=seed), control)
        return {feature for feature in range(2000) if is_repeated(run, DETECTION, feature)}

    assert 140 < len(chosen(0.1)) < 260 and chosen(0.1) < chosen(0.3)
    assert chosen(0.1) != chosen(0.1, seed=1)
    assert not chosen(0.0) and len(chosen(1.0)) == 2000 and not chosen(1.0, control="empty")


# --- the whole way ---------------------------------------------------------------------------------------------------


def moody(label: str, question: str, pieces: list[object]) -> bool:
    """All of a call is answered alike, by a toss."""
    return bool(random.Random(question).random() < 0.5)


def test_labels_are_asked_twice_and_forecast(store: Store) -> None:
    with LlmServer(World(choose=moody)) as server:
        config = ScoreConfig(
            model="test-model", base_url=server.url, scorers=(DETECTION,), contexts=4, examples_per_call=4,
            repeat_share=1.0,
        )  # fmt: skip
        told = forecast_score(job(store), "combined", config)
        asyncio.run(score(job(store), "combined", config))
        assert told.calls == len(server.requests) == 2 * 4 * len(WORDS)
        asked = [tuple(sorted(map(str, choice_question(b)[1]))) for b in server.requests]
        assert len(set(asked)) > 7 * len(WORDS)  # in other company the second time
        control = forecast_score(job(store), "combined", config, "shuffled")
        asyncio.run(score(job(store), "combined", config, "shuffled"))
        assert control.calls == len(server.requests) - told.calls == 4 * len(WORDS)  # nothing twice
    rows = store.dicts("SELECT * FROM judge_repeats ORDER BY feature")
    assert [r["feature"] for r in rows] == list(range(len(WORDS))) and {r["n_twice"] for r in rows} == {16}
    assert {r["method"] for r in rows} == {"answers_ordinary"}
    assert [n for (n,) in store.rows("SELECT n FROM scores WHERE scorer = 'detection' AND control IS NULL")] == [16] * 6
    (judge,) = store.dicts("SELECT * FROM judge_consistency")
    assert judge["n_labels"] == len(WORDS) and 0.2 < judge["agreement"] < 0.8
    assert store.check() == []


def test_the_stop_rule_uses_what_was_measured(store: Store) -> None:
    by = MadeBy("answers_ordinary_sequential", "judge", "t" * 64)
    run = Run(job(store), "combined", ScoreConfig(stop_threshold=0.7))
    correlation, note = assumed_correlation(run, DETECTION, by)
    assert correlation == UNMEASURED and "measured on 0 labels so far" in note
    rng = np.random.default_rng(1)
    rows = [judge_repeat(identity(i), DETECTION, asked_twice(rng, 0.3, 0.7)) for i in range(30)]
    store.insert_judge_repeats([row for row in rows if row is not None])
    correlation, note = assumed_correlation(run, DETECTION, by)
    assert 0.25 < correlation < 0.45 and "measured on 30 labels" in note
    other = assumed_correlation(run, DETECTION, replace(by, model="another"))
    assert other[0] == UNMEASURED
    with LlmServer(World()) as server:
        config = ScoreConfig(
            model="test-model", base_url=server.url, scorers=(DETECTION,), contexts=4, examples_per_call=2,
            stop_threshold=0.6, repeat_share=0.0,
        )  # fmt: skip
        outcome = asyncio.run(score(job(store), "combined", config))
    assert any("assumes that errors within a call correlate by 0.1" in line for line in outcome.notes)
