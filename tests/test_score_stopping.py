"""Stopping early: which contexts come first, that looking often does not make errors likelier, and the whole way
through a real server and store."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.known_words import CHOICE_SCORERS, WORDS, World, choice_question, contexts, fits, job, toss
from support.llm_server import BrainReply, Fault, LlmServer

from autointerp.config import ScoreConfig
from autointerp.score.detection_questions import DETECTION, FUZZING, Example, batches, choose_examples, counts
from autointerp.score.scoring import forecast_score, score
from autointerp.score.stopping import Look, decide, in_balance, interval_z, is_enough, plan, side
from autointerp.store import Store

# --- the order -------------------------------------------------------------------------------------------------------


def examples(deciles: list[int], tiers: list[str]) -> list[Example]:
    base = contexts(0, "report")[0]
    active = [replace(base, context_id=i, kind="sampled", decile=d) for i, d in enumerate(deciles)]
    silent = [
        replace(base, context_id=1000 + i, kind="negative", tier=t, decile=None)  # type: ignore[arg-type]
        for i, t in enumerate(tiers)
    ]
    return [Example(c) for c in (*active, *silent)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=24),
    st.lists(st.sampled_from(["random", "same_token", "neighbour"]), min_size=1, max_size=24),
    st.integers(0, 2**32),
)
def test_every_prefix_is_balanced(deciles: list[int], tiers: list[str], seed: int) -> None:
    every = examples(deciles, tiers)
    ordered = in_balance(every, random.Random(seed))
    assert Counter(map(id, ordered)) == Counter(map(id, every))
    for end in range(len(ordered) + 1):
        active = [e.context.decile for e in ordered[:end] if e.active]
        silent = [e.context.tier for e in ordered[:end] if not e.active]
        fewer = min(len(deciles), len(tiers))
        assert abs(len(active) - len(silent)) <= 1 or min(len(active), len(silent)) == fewer
        for shown, of in ((active, deciles), (silent, tiers)):
            whole, part = Counter(of), Counter(shown)
            for stratum, n in whole.items():  # type: ignore[attr-defined]
                assert abs(part[stratum] - n * len(shown) / len(of)) <= 1.0 + n * len(whole) / len(of)


def test_the_first_round_is_no_easier_than_the_rest() -> None:
    """Over seeds every decile comes as often into the first round as any other."""
    every = examples([*range(10)] * 2, ["random", "same_token", "neighbour"] * 6)
    first = Counter(
        e.context.decile for seed in range(600) for e in in_balance(every, random.Random(seed))[:10] if e.active
    )
    assert first.total() == 600 * 5 and 0.8 * 300 < min(first.values()) <= max(first.values()) < 1.2 * 300


def test_a_plan_keeps_the_requests_and_leaves_their_base_rate_to_chance() -> None:
    every = choose_examples(DETECTION, contexts(0, "report"), 10, 0, 1)
    plain = ScoreConfig()
    assert plan(DETECTION, every, plain, 1) == [batches(every, 5)]
    stopping = replace(plain, stop_width=0.3)
    rounds = plan(DETECTION, every, stopping, 1)
    assert rounds == plan(DETECTION, every, stopping, 1)
    assert sorted(e.context.context_id for r in rounds for b in r for e in b) == sorted(
        e.context.context_id for e in every
    )
    assert [len(r) for r in rounds] == [2, 2, 1] and all(len(b) <= 5 for r in rounds for b in r)
    assert all(any(e.active for e in b) for r in rounds for b in r)
    for done in itertools.accumulate(rounds):
        active = sum(e.active for b in done for e in b)
        assert abs(2 * active - sum(map(len, done))) <= 1 or sum(map(len, done)) - active == 8
    rates = Counter(
        sum(e.active for e in b)
        for seed in range(40)
        for r in plan(DETECTION, every, replace(stopping, seed=seed), 1)
        for b in r
    )
    assert {1, 2, 3, 4} <= set(rates)
    assert plan(DETECTION, [], stopping, 1) == []


# --- the rules -------------------------------------------------------------------------------------------------------


def looks_of(rng: np.random.Generator, sensitivity: float, specificity: float, at: list[int]) -> list[Look]:
    yes, no = (rng.random(at[-1]) < p for p in (sensitivity, specificity))
    return [Look(int(yes[:m].sum()), m, int(no[:m].sum()), m) for m in at]


@pytest.mark.parametrize("threshold", [0.55, 0.6, 0.7, 0.8, 0.9])
def test_a_score_on_the_threshold_is_called_clear_in_at_most_one_of_twenty(threshold: float) -> None:
    """However sensitivity and specificity make it up. (With the ordinary interval at every look it is up to one of
    five, see the next test.)"""
    rng = np.random.default_rng(5)
    at, reach, runs = [5, 10, 15, 20], min(threshold, 1 - threshold), 1500
    for share in (0.0, 0.5, 1.0):
        called = 0
        for _ in range(runs):
            looks = looks_of(rng, threshold + share * reach, threshold - share * reach, at)
            called += any(side(looks[: k + 1], len(at), threshold) for k in range(len(at)))
        assert called / runs <= 0.05


def called_wrongly(threshold: float, share: float, correlation: float, assumed: float) -> float:
    """How often a label on the threshold is called above or below it by a judge whose errors within a call have this
    correlation: each answer is the call's own with a chance of its root, else its own."""
    rng = np.random.default_rng(9)
    reach, runs = min(threshold, 1 - threshold), 500
    right = {True: threshold + share * reach, False: threshold - share * reach}
    every = examples([*range(10)] * 2, ["random"] * 10 + ["same_token", "neighbour"] * 5)
    plans = [plan(DETECTION, every, ScoreConfig(stop_threshold=threshold, seed=seed), 1) for seed in range(20)]
    called = 0
    for run in range(runs):
        calls: list[list[tuple[bool, bool]]] = []
        looks: list[Look] = []
        for round_ in plans[run % len(plans)]:
            for request in round_:
                asked = [e.active for e in request if counts(e.context)]
                luck = np.where(rng.random(len(asked)) < correlation**0.5, rng.random(), rng.random(len(asked)))
                calls.append([(a, a == bool(u < right[a])) for a, u in zip(asked, luck, strict=True)])
            looks.append(Look.of(calls))
            if side(looks, len(plans[0]), threshold, assumed):
                called += 1
                break
    return called / runs


@pytest.mark.parametrize("threshold", [0.6, 0.8])
@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.3])
def test_errors_that_go_together_within_a_call_are_allowed_for(threshold: float, correlation: float) -> None:
    """The level of 5 %, and what three standard errors of 500 runs add to it."""
    assert max(called_wrongly(threshold, share, correlation, correlation) for share in (0.0, 0.5)) <= 0.05 + 0.03
    if correlation == 0.3:  # what the allowance is for
        assert called_wrongly(threshold, 0.0, correlation, 0.0) > 0.08


def test_what_a_full_correlation_adds_to_the_variance() -> None:
    alone = [[(True, True)], [(True, False)], [(False, False)], [(False, True)]]
    assert Look.of(alone) == Look(1, 2, 1, 2, 0.0)
    assert Look.of([[one for call in alone for one in call]]) == Look(1, 2, 1, 2, 3.0)
    assert Look.of([alone[0] + alone[1], alone[2] + alone[3]]).shared == 1.0
    assert Look.of([[(True, True)] * 3]) == Look(3, 3, 0, 0, 0.0)


def test_looking_often_at_an_ordinary_interval_would_be_wrong() -> None:
    """What the correction is for: stopping at the first 95 % interval that leaves the threshold out errs twice as
    often."""
    from autointerp import stats

    rng = np.random.default_rng(6)
    naive = 0
    for _ in range(1500):
        for look in looks_of(rng, 0.8, 0.8, [5, 10, 15, 20]):
            e = stats.balanced_accuracy_interval(look.found, look.active, look.spared, look.silent)
            if not e.low <= 0.8 <= e.high:
                naive += 1
                break
    assert naive / 1500 > 0.1


def test_clear_scores_stop_early_and_the_errors_add_up_over_looks() -> None:
    best = [Look(m, m, m, m) for m in (5, 10, 15, 20)]
    assert [side(best[: k + 1], 4, 0.6) for k in range(4)] == [1, 1, 1, 1]
    assert side(best[:1], 4, 0.7) == 0 and side(best[:2], 4, 0.7) == 1
    worst = [Look(2, 5, 2, 5), Look(5, 10, 5, 10)]
    assert side(worst, 4, 0.9) == -1 and side(worst, 4, 0.5) == 0
    # The same counts say less where more looks are planned.
    assert side([Look(10, 10, 9, 10)], 1, 0.7) == 1 and side([Look(10, 10, 9, 10)], 8, 0.7) == 0
    assert side([Look(5, 5, 0, 0)], 4, 0.6) == 0  # one class only: no score yet


def test_the_width_rule_and_what_it_reports() -> None:
    assert is_enough([Look(20, 20, 20, 20)], 4, 0.2, None)
    assert not is_enough([Look(10, 20, 10, 20)], 4, 0.2, None)
    assert not is_enough([], 4, 0.2, None) and not is_enough([Look(3, 3, 0, 0)], 4, 0.9, None)
    assert not is_enough([Look(20, 20, 20, 20)], 4, None, None)
    assert interval_z(ScoreConfig(stop_width=0.2), 4) == pytest.approx(1.96, abs=1e-3)
    assert interval_z(ScoreConfig(stop_threshold=0.7), 4) == pytest.approx(2.498, abs=1e-3)


def test_intervals_cover_the_truth_wherever_asking_stops() -> None:
    from autointerp import stats

    rng = np.random.default_rng(7)
    at = [5, 10, 15, 20]
    for config in (ScoreConfig(stop_width=0.3), ScoreConfig(stop_threshold=0.8)):
        z, held = interval_z(config, 4), 0
        for _ in range(1500):
            p, q = rng.uniform(0.5, 1.0, 2)
            looks = looks_of(rng, p, q, at)
            stop = next(
                (k for k in range(4) if is_enough(looks[: k + 1], 4, config.stop_width, config.stop_threshold)), 3
            )
            e = stats.balanced_accuracy_interval(
                looks[stop].found, looks[stop].active, looks[stop].spared, looks[stop].silent, z
            )
            held += e.low <= (p + q) / 2 <= e.high
        assert held / 1500 > 0.935


# --- the whole way ---------------------------------------------------------------------------------------------------


def config_of(server: LlmServer, **changed: Any) -> ScoreConfig:
    given_ = {"model": "test-model", "base_url": server.url, "scorers": CHOICE_SCORERS, "contexts": 4,
              "examples_per_call": 2, "repeat_share": 0.0, **changed}  # fmt: skip
    return ScoreConfig(**given_)


def headline(store: Store, scorer: str) -> list[dict[str, Any]]:
    return store.dicts("SELECT * FROM scores WHERE scorer = ? AND control IS NULL ORDER BY feature", [scorer])


def test_a_clear_label_costs_less_and_an_unclear_one_all(store: Store) -> None:
    """16 contexts, 2 to a request: 8 requests in 4 rounds."""
    with LlmServer(World()) as server:
        config = config_of(server, scorers=(DETECTION,), stop_threshold=0.6)
        assert forecast_score(job(store), "combined", config).calls == 8 * len(WORDS)  # the most it can be
        outcome = asyncio.run(score(job(store), "combined", config))
        assert outcome.method == "answers_ordinary_sequential" and outcome.statuses == {"ok": len(WORDS)}
        rows = headline(store, DETECTION)
        # All right: after 12 answers that is clear where two of them are about random silent contexts and more.
        assert {(r["value"], r["n_failed"], r["method"]) for r in rows} == {(1.0, 0, "answers_ordinary_sequential")}
        asked = sum(r["n"] for r in rows)
        assert {r["n"] for r in rows} <= {12, 16} and asked < 16 * len(WORDS)
        assert len(server.requests) == asked / 2
        kept = store.rows("SELECT status, count(*) FROM predictions GROUP BY ALL")
        assert kept == [("ok", asked)]  # what was not asked is no failure
        again = asyncio.run(score(job(store), "combined", config))
        assert again.pending == 0 and len(server.requests) == asked / 2
    with LlmServer(World(choose=toss)) as server:
        asyncio.run(score(job(store), "combined", config_of(server, scorers=(FUZZING,), stop_threshold=0.5)))
        assert all(r["n"] == 16 for r in headline(store, FUZZING))


def test_without_a_rule_the_requests_are_the_old_ones(store: Store) -> None:
    """A label scored with a rule can be scored without, and the other way round: two methods, never mixed."""
    with LlmServer(World()) as server:
        asyncio.run(score(job(store, features="1"), "combined", config_of(server, examples_per_call=4, stop_width=0.9)))
        early = [json.dumps(b) for b in server.requests]
        asyncio.run(score(job(store, features="1"), "combined", config_of(server, examples_per_call=4)))
        assert len(early) == 2 * 2 and len(server.requests) - len(early) == 2 * 4
        assert {len(choice_question(b)[1]) for b in server.requests} == {4}
    for scorer in CHOICE_SCORERS:
        assert [(r["method"], r["n"]) for r in sorted(headline(store, scorer), key=lambda r: r["n"])] == [
            ("answers_ordinary_sequential", 8), ("answers_ordinary", 16),
        ]  # fmt: skip
    methods = store.rows("SELECT DISTINCT method, n FROM explainer_leaderboard WHERE scorer = 'detection' ORDER BY ALL")
    assert methods == [("answers_ordinary", 1), ("answers_ordinary_sequential", 1)]


def test_a_stopped_run_goes_on_where_it_was(store: Store) -> None:
    """An endpoint that gives up in the third round: nothing more is asked, and the next run pays for the rest only."""
    served: list[str] = []

    def fail_later(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault | None:
        served.append(json.dumps(body))
        return Fault("truncated_json") if len(served) > 4 else None

    few = job(store, features="0", attempts=1)
    with LlmServer(World(spoil=fail_later)) as server:
        config = config_of(server, scorers=(DETECTION,), stop_threshold=0.6)
        assert asyncio.run(score(few, "combined", config)).statuses == {"gave_up": 1}
        assert len(server.requests) == 6
        port = server.port
    assert headline(store, DETECTION)[0]["n"] == 12
    with LlmServer(World(choose=fits), port=port) as server:
        assert asyncio.run(score(few, "combined", config)).statuses == {"ok": 1}
        assert len(server.requests) == 2
    (row,) = headline(store, DETECTION)
    assert (row["value"], row["n"], row["n_failed"]) == (1.0, 12, 0)


def test_nothing_asked_is_never_enough() -> None:
    assert not decide([], 4, ScoreConfig(stop_width=0.5, stop_threshold=0.5))
    assert not decide([[]], 4, ScoreConfig(stop_width=0.5, stop_threshold=0.5))
