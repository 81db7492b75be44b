"""The intruder: which questions are drawn, how replies are read and scored; then the whole way through the real client,
a real server and a real store."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.known_words import (
    WORDS,
    World,
    any_one,
    contexts,
    intruder_question,
    job,
)
from support.llm_server import BrainReply, Fault, LlmServer

from autointerp import stats
from autointerp.ask.chat import ReplyError
from autointerp.ask.job import Job, Outcome
from autointerp.ask.question import Asked
from autointerp.config import BudgetConfig, PriceConfig, ScoreConfig
from autointerp.errors import InputError, StoppedError
from autointerp.records import Context
from autointerp.score.intruder import answer_of, beyond_chance, draw_lineups, intruder_rows, read_place
from autointerp.score.score_rows import Identity
from autointerp.score.scoring import forecast_score, score
from autointerp.store import Store

SHOWN = 5


def with_deciles(deciles: dict[int, int], silent: int = 30) -> list[Context]:
    """So many sampled contexts in each decile, and silent ones of the three tiers."""
    base = contexts(0, "report")
    active = [
        replace(base[8], context_id=100 * d + i, decile=d, rank=i, position=100 * d + i)
        for d, n in deciles.items()
        for i in range(n)
    ]
    negatives = [
        replace(base[16], context_id=5000 + i, rank=i // 3, tier=("random", "same_token", "neighbour")[i % 3])
        for i in range(silent)
    ]
    return [*active, *negatives]


# --- questions ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(0, 9), st.integers(1, 12)), st.integers(0, 20), st.integers(3, 6), st.integers(1, 30),
    st.integers(0, 1000),
)  # fmt: skip
def test_every_question_has_one_intruder_and_no_context_comes_twice(
    deciles: dict[int, int], silent: int, shown: int, most: int, seed: int
) -> None:
    every = with_deciles(deciles, silent)
    lineups = draw_lineups(every, shown, most, seed, 1)
    assert lineups == draw_lineups(every[::-1], shown, most, seed, 1)
    used = [c.context_id for lineup in lineups for c in lineup.contexts]
    assert len(used) == len(set(used))
    for lineup in lineups:
        assert len(lineup.contexts) == shown and lineup.intruder.kind == "negative"
        assert [c.kind == "negative" for c in lineup.contexts].count(True) == 1
    groups = sum(deciles.values()) // (shown - 1)
    assert len(lineups) == min(groups, silent, most)
    if len(lineups) == groups:
        # As many questions within one decile as there are whole groups in the deciles.
        pure = [lineup for lineup in lineups if len({c.decile for c in lineup.contexts if c.decile is not None}) == 1]
        assert len(pure) >= sum(n // (shown - 1) for n in deciles.values())


def test_what_is_left_over_goes_with_its_neighbours() -> None:
    lineups = draw_lineups(with_deciles({0: 5, 1: 3, 5: 6, 6: 2}), SHOWN, 20, 0, 1)
    deciles = sorted(sorted(c.decile for c in q.contexts if c.decile is not None) for q in lineups)
    assert deciles == [[0, 0, 0, 0], [0, 1, 1, 1], [5, 5, 5, 5], [5, 5, 6, 6]]


def test_tiers_take_turns_and_places_are_uniform() -> None:
    every = with_deciles(dict.fromkeys(range(10), 4))
    assert Counter(q.intruder.tier for q in draw_lineups(every, SHOWN, 9, 0, 1)) == {
        "random": 3, "same_token": 3, "neighbour": 3,
    }  # fmt: skip
    places = Counter(q.place for seed in range(200) for q in draw_lineups(every, SHOWN, 10, seed, 1))
    # 2,000 draws over five places: 400 each, with a deviation of 18.
    assert set(places) == set(range(SHOWN)) and all(330 < n < 470 for n in places.values())
    assert draw_lineups(every, SHOWN, 9, 0, 1) != draw_lineups(every, SHOWN, 9, 1, 1)


def test_a_top_context_that_was_sampled_too_is_shown_once() -> None:
    every = with_deciles({9: 4})
    twin = replace(every[0], kind="top", context_id=777)
    other = replace(every[0], kind="top", context_id=778, position=9999)
    shown = {c.context_id for q in draw_lineups([*every, twin], 3, 20, 0, 1) for c in q.contexts}
    assert 777 not in shown and len(draw_lineups([*every, twin, other, twin], 6, 20, 0, 1)) == 1
    assert draw_lineups([c for c in every if c.kind != "negative"], SHOWN, 20, 0, 1) == []
    assert draw_lineups([c for c in every if c.kind == "negative"], SHOWN, 20, 0, 1) == []
    assert draw_lineups(with_deciles({9: 3}), SHOWN, 20, 0, 1) == []


# --- replies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "3", " 3.\n", "[3]", "[\n  3\n]", "```json\n[3]\n```", "`3`", "**3**", '"3"', "Excerpt 3", "#3", "ANSWER: 3",
        "Answer: **3**.", '{"answer": 3}', '{\n "answer": [3]\n}', "The answer is excerpt 3.",
        "All but 4 share a colon (2 is odd, too).\n\nANSWER: 3", "1\nNo, wait.\n3", "I compare [1] and [2].\n[3]",
        "ANSWER: 1\nANSWER: 3", "answer = 3",
    ],
)  # fmt: skip
def test_places_are_read(text: str) -> None:
    assert read_place(text, 5) == 2


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", "no_answer"), ("the third", "no_answer"), ("Excerpts 1 and 3 differ", "no_answer"), ("-3", "no_answer"),
        ("3.5", "no_answer"), ("[1, 3]", "no_answer"), ("[\n1,\n3\n]", "no_answer"), ("ANSWER: 1 or 3", "no_answer"),
        ("ANSWER: 2, 3", "no_answer"), ("ANSWER: not 3", "no_answer"), ("[3", "no_answer"), ("3e0", "no_answer"),
        ("0", "out_of_range"), ("6", "out_of_range"), ("3\n17", "out_of_range"), ("ANSWER: 0", "out_of_range"),
        ("٣", "no_answer"),
    ],
)  # fmt: skip
def test_unusable_replies_are_errors(text: str, status: str) -> None:
    with pytest.raises(ReplyError) as caught:
        read_place(text, 5)
    assert caught.value.status == status


def test_a_long_reply_is_read_in_no_time() -> None:
    for text in ("[" * 300_000, "answer" * 100_000, "answer:" + " " * 300_000, "[" + " " * 300_000, "1\n" * 100_000):
        try:
            read_place(text, 5)
        except ReplyError as error:
            assert error.status == "no_answer"


# --- scores ---------------------------------------------------------------------------------------------------------

IDENTITY = Identity(None, 1, "choice", None, "judge", "t" * 64, 0, (1, 0))


def test_the_rows_are_corrected_for_chance() -> None:
    lineups = draw_lineups(with_deciles(dict.fromkeys(range(10), 4)), SHOWN, 10, 0, 1)
    right = [answer_of(q, Asked(q.place, "ok")) for q in lineups]
    plain, headline = intruder_rows(IDENTITY, right, SHOWN)
    assert (plain.scorer, headline.scorer) == ("intruder_accuracy", "intruder")
    assert plain.value == headline.value == headline.ci_high == 1.0
    assert plain.ci_low == stats.wilson(10, 10).low
    assert headline.ci_low == pytest.approx((stats.wilson(10, 10).low - 0.2) / 0.8)
    assert (headline.explanation_id, headline.dictionary_id, headline.feature, headline.n) == (None, 1, 0, 10)
    assert plain.predictions == [] and [p.truth for p in headline.predictions] == [[q.place + 1.0] for q in lineups]
    wrong = [answer_of(q, Asked((q.place + 1) % SHOWN, "ok")) for q in lineups]
    assert intruder_rows(IDENTITY, wrong, SHOWN)[1].value == pytest.approx(-0.25)
    assert intruder_rows(IDENTITY, [*right[:2], *wrong[2:]], SHOWN)[1].value == pytest.approx(0.0)
    assert beyond_chance(stats.Estimate(None, None, None, 0), 0.2) == stats.Estimate(None, None, None, 0)


def test_failures_are_counted_and_never_answers() -> None:
    lineups = draw_lineups(with_deciles(dict.fromkeys(range(10), 4)), SHOWN, 10, 0, 1)
    answers = [answer_of(q, Asked(q.place, "ok")) for q in lineups]
    failed = answer_of(lineups[0], Asked(None, "no_answer", "why"))
    row = intruder_rows(IDENTITY, [failed, *answers[1:]], SHOWN)[1]
    assert (row.value, row.n, row.n_failed, row.error) == (1.0, 10, 1, "why")
    gave_up = answer_of(lineups[0], Asked(None, "gave_up", "why"))
    assert [(r.value, r.status) for r in intruder_rows(IDENTITY, [gave_up, *answers[1:]], SHOWN)] == [
        (None, "gave_up")
    ] * 2
    assert [r.status for r in intruder_rows(IDENTITY, [], SHOWN)] == ["no_contexts"] * 2
    with pytest.raises(ValueError, match="neither a label nor a feature"):
        intruder_rows(replace(IDENTITY, feature=None), answers, SHOWN)


# --- the whole way --------------------------------------------------------------------------------------------------

QUESTIONS = 4
"""16 activating contexts of a feature on `report`, four to a question."""


@pytest.fixture
def planted(bare_world: Path) -> Path:
    return bare_world


def config(server: LlmServer, **changed: Any) -> ScoreConfig:
    there = {"model": "test-model", "base_url": server.url, "scorers": ("intruder",)}
    return ScoreConfig(**{"contexts": 4, "intruder_shown": SHOWN, **there, **changed})


def run_score(work: Job, settings_: ScoreConfig, control: str | None = None) -> Outcome:
    return asyncio.run(score(work, "patterns", settings_, control))


def scores(store: Store, scorer: str = "intruder") -> list[dict[str, Any]]:
    return store.dicts("SELECT * FROM scores WHERE scorer = ? ORDER BY feature, seed", [scorer])


def test_an_oracle_scores_one_without_any_label(store: Store) -> None:
    with LlmServer(World()) as server:
        outcome = run_score(job(store), config(server))
        assert len(server.requests) == QUESTIONS * len(WORDS)
        assert all(len(intruder_question(b)) == SHOWN for b in server.requests)
        rows = store.row_counts()
        again = run_score(job(store), config(server))
        assert (again.pending, again.method) == (0, None)
        assert len(server.requests) == QUESTIONS * len(WORDS) and store.row_counts() == rows
    assert (outcome.method, outcome.statuses) == ("choice", {"ok": len(WORDS)})
    for row in scores(store):
        assert (row["value"], row["n"], row["n_failed"], row["explanation_id"]) == (1.0, QUESTIONS, 0, None)
        assert row["ci_low"] == pytest.approx((stats.wilson(QUESTIONS, QUESTIONS).low - 0.2) / 0.8)
    assert [r["value"] for r in scores(store, "intruder_accuracy")] == [1.0] * len(WORDS)
    kept = store.rows("SELECT c.kind, p.truth = p.predicted, count(*) FROM predictions p JOIN contexts c USING "
                      "(context_id) GROUP BY ALL")  # fmt: skip
    assert kept == [("negative", True, QUESTIONS * len(WORDS))]
    assert store.check() == []


def test_a_coin_scores_about_zero(store: Store) -> None:
    with LlmServer(World(find=any_one)) as server:
        for seed in range(2):
            run_score(job(store), config(server, seed=seed))
    values = [row["value"] for row in scores(store)]
    # 48 questions with a chance of a fifth: a deviation of 0.07 of the mean corrected accuracy.
    assert len(values) == 2 * len(WORDS) and abs(sum(values) / len(values)) < 0.2


def test_a_stopped_run_goes_on_and_pays_for_nothing_twice(store: Store) -> None:
    with LlmServer(World(), latency=0.01) as server:
        with pytest.raises(StoppedError):
            run_score(job(store, BudgetConfig(max_requests=9), max_connections=4), config(server))
        run_score(job(store), config(server))
        asked = [json.dumps(b) for b in server.requests]
    assert len(asked) == len(set(asked)) == QUESTIONS * len(WORDS)
    assert [row["value"] for row in scores(store)] == [1.0] * len(WORDS)


def test_an_unusable_reply_is_asked_again_once(store: Store) -> None:
    few = job(store, features="0")

    def spoil(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | None:
        return BrainReply("[2, 3]") if len(body["messages"]) == 2 else None

    with LlmServer(World(spoil=spoil)) as server:
        run_score(few, config(server))
        assert len(server.requests) == 2 * QUESTIONS
        seconds = [b["messages"] for b in server.requests if len(b["messages"]) == 4]
        assert all(m[2]["content"] == "[2, 3]" and "from 1 to 5" in m[3]["content"] for m in seconds)
    assert scores(store)[0]["value"] == 1.0
    with LlmServer(World(spoil=lambda kind, body, attempt: BrainReply("9"))) as server:
        assert run_score(few, config(server, seed=1)).statuses == {"out_of_range": 1}
    hopeless = scores(store)[1]
    assert hopeless["value"] is None and hopeless["n_failed"] == hopeless["n"] == QUESTIONS


def test_an_endpoint_that_gives_up_is_asked_again_later(store: Store) -> None:
    few = job(store, features="0", attempts=1)
    with LlmServer(World(spoil=lambda kind, body, attempt: Fault("truncated_json"))) as server:
        assert run_score(few, config(server)).statuses == {"gave_up": 1}
    with LlmServer(World(spoil=lambda kind, body, attempt: Fault("ctx_too_long"))) as server:
        assert run_score(few, config(server, seed=1)).statuses == {"ctx_too_long": 1}
        assert run_score(few, config(server, seed=1)).pending == 0
    with LlmServer(World()) as server:
        assert run_score(few, config(server)).statuses == {"ok": 1}
    assert [r["value"] for r in scores(store)] == [1.0, None] and store.check() == []


def test_too_few_contexts_are_a_status(store: Store) -> None:
    with LlmServer(World()) as server:
        assert run_score(job(store, features="0"), config(server, intruder_shown=18)).statuses == {"no_contexts": 1}
        assert not server.requests
    assert scores(store)[0]["value"] is None


def test_controls_and_missing_models(store: Store) -> None:
    with LlmServer(World()) as server:
        outcome = run_score(job(store), config(server), control="empty")
        assert not server.requests
    assert outcome.pending == 0 and outcome.notes == ("intruder needs no label, so no control of it is run",)
    with pytest.raises(InputError, match="'intruder' asks an LLM; set score.model"):
        run_score(job(store), ScoreConfig(scorers=("intruder",)))


def test_forecasts_come_near_what_is_asked(store: Store) -> None:
    priced = job(store, prices={"test-model": PriceConfig(input=1.0, output=2.0)})
    with LlmServer(World()) as server:
        told = forecast_score(priced, "patterns", config(server))
        assert not server.requests
        run_score(job(store), config(server))
        read = store.rows("SELECT sum(input_tokens) FROM llm_calls WHERE stage = 'intruder'")[0][0]
    assert (told.features, told.calls) == (len(WORDS), QUESTIONS * len(WORDS))
    assert told.input_tokens == pytest.approx(read, rel=0.3)
    assert told.usd == pytest.approx((told.input_tokens + 2 * told.output_tokens) / 1e6)
