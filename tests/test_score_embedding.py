"""Embedding: vectors compared and scored; then the whole way through the real client, a real server whose vectors are
counts of words, and a real store."""

from __future__ import annotations

import asyncio
import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.known_words import WORDS, World, contexts, job
from support.llm_server import BrainReply, Fault, LlmServer, bag_of_words

from autointerp import stats
from autointerp.ask.chat import ReplyError
from autointerp.ask.job import Job, Outcome
from autointerp.config import BudgetConfig, ExplainConfig, PriceConfig, ScoreConfig
from autointerp.errors import InputError, StoppedError
from autointerp.explain.explaining import explain
from autointerp.records import Explanation
from autointerp.score.auroc import auroc_result, auroc_rows, number_answer
from autointerp.score.detection_questions import DETECTION, choose_examples
from autointerp.score.embedding import EMBEDDING, INPUTS_PER_CALL, cosine, in_batches, is_local
from autointerp.score.score_rows import Answer, Identity
from autointerp.score.scoring import forecast_score, score
from autointerp.store import Store

# --- vectors --------------------------------------------------------------------------------------------------------

numbers = st.floats(-3e38, 3e38, allow_nan=False).map(lambda x: x if abs(x) > 1e-200 else 0.0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), st.floats(1e-3, 1e3))
def test_cosine_is_a_cosine_or_our_own_error(pairs: list[tuple[float, float]], factor: float) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    try:
        found = cosine(a, b)
    except ReplyError as error:
        assert error.status == "zero_vector" and (not any(a) or not any(b))
        return
    assert -1.0 <= found <= 1.0
    assert cosine(b, a) == pytest.approx(found, abs=1e-12)
    assert cosine([x / 1e4 for x in a], [x / 1e3 * factor / 1e3 for x in b]) == pytest.approx(found, abs=1e-6)


def test_cosine() -> None:
    assert cosine([3.0, 4.0], [4.0, 3.0]) == pytest.approx(0.96)
    assert cosine([1e-200, 0.0], [5.0, 0.0]) == 1.0 and cosine([1.0, 0.0], [-1.0, 0.0]) == -1.0
    with pytest.raises(ReplyError, match="of 2 and of 3"):
        cosine([1.0, 2.0], [1.0, 2.0, 3.0])


def test_batches_do_not_depend_on_the_order_drawn() -> None:
    every = contexts(0, "report")
    drawn = [choose_examples(DETECTION, every, 8, seed, 1) for seed in (0, 1)]
    assert drawn[0] != drawn[1] and in_batches(drawn[0]) == in_batches(drawn[1])
    assert [len(b) for b in in_batches(drawn[0])] == [INPUTS_PER_CALL] * 3


# --- scores ---------------------------------------------------------------------------------------------------------

LABEL = Explanation("e" * 32, 1, 0, 1, "contexts", "m", "t", "v", 0, "a label", "ok")
IDENTITY = Identity(LABEL, 1, "cosine", None, "embedder", "t" * 64, 0)


def answers(failed: dict[int, str] | None = None) -> list[Answer]:
    """8 activating and 8 silent contexts; cosines at random, higher for activating ones."""
    rng = random.Random(0)
    chosen = sorted(choose_examples(DETECTION, contexts(0, "report"), 4, 0, 1), key=lambda e: e.context.context_id)
    out = []
    for i, e in enumerate(chosen):
        value, status = rng.random() + 0.5 * e.active, (failed or {}).get(i, "ok")
        out.append(number_answer(e, value if status == "ok" else None, status, None if status == "ok" else "why"))
    return out


def test_the_rows_of_a_label() -> None:
    found = answers()
    rows = auroc_rows(IDENTITY, EMBEDDING, found)
    names = ["embedding_random", "embedding_same_token", "embedding_neighbour", "embedding"]
    assert [r.scorer for r in rows] == names and [r.n for r in rows] == [11, 11, 10, 16]
    for row, tier in zip(rows, ("random", "same_token", "neighbour", None), strict=True):
        cosines = [(a.prediction.predicted or [0.0])[0] for a in found]
        active = [c for a, c in zip(found, cosines, strict=True) if a.context.kind != "negative"]
        silent = [
            c for a, c in zip(found, cosines, strict=True)
            if a.context.tier == (tier or "random")
        ]  # fmt: skip
        assert row.value == stats.auroc(active, silent)
        documents = {a.context.document for a in found if a.context.tier == (tier or "random")}
        if tier == "neighbour":  # its two documents are too few
            assert row.ci_low is None
        else:
            assert row.ci_low is not None and row.value is not None and row.ci_low < row.value
        assert documents <= set(row.documents or [])
    assert [len(r.predictions) for r in rows] == [0, 0, 0, 16] and len({r.score_id for r in rows}) == 4
    assert {p.truth[0] for p in rows[-1].predictions} == {0.0, 1.0}


def test_failures_are_counted_and_never_cosines() -> None:
    headline = auroc_rows(IDENTITY, EMBEDDING, answers({0: "zero_vector", 12: "zero_vector"}))[-1]
    assert (headline.n, headline.n_failed, headline.status, headline.error) == (16, 2, "ok", "why")
    assert sum(p.predicted is None for p in headline.predictions) == 2
    assert auroc_result(answers({3: "gave_up"})).status == "gave_up"
    assert auroc_result(answers(dict.fromkeys(range(9), "ctx_too_long"))).status == "ctx_too_long"
    one_class = auroc_result(answers(dict.fromkeys(range(8), "zero_vector")))
    assert one_class.status == "constant_truth" and one_class.estimate.value is None
    assert [(r.status, r.value) for r in auroc_rows(IDENTITY, EMBEDDING, [])] == [("no_contexts", None)]


# --- the whole way --------------------------------------------------------------------------------------------------

N = 4
"""2 N activating and 2 N silent contexts in a score."""
PER_LABEL = 1 + 4 * N // INPUTS_PER_CALL
"""Requests: the label, and its feature's contexts."""


def config(server: LlmServer, **changed: Any) -> ScoreConfig:
    there = {"embedding_model": "embedder", "base_url": server.url, "scorers": ("embedding",)}
    return ScoreConfig(**{"contexts": N, **there, **changed})


def run_score(work: Job, settings_: ScoreConfig, control: str | None = None, explainer: str = "combined") -> Outcome:
    return asyncio.run(score(work, explainer, settings_, control))


def scores(store: Store, scorer: str = "embedding", control: str | None = None) -> list[dict[str, Any]]:
    return store.dicts(
        "SELECT * FROM scores WHERE scorer = ? AND control IS NOT DISTINCT FROM ?::VARCHAR ORDER BY feature",
        [scorer, control],
    )


def noise(kind: str, body: dict[str, Any], attempt: int) -> BrainReply:
    """A vector at random for each text."""
    draws = [random.Random(text) for text in body["input"]]
    return BrainReply("", vectors=[[draw.gauss(0, 1) for _ in range(8)] for draw in draws])


def test_similar_texts_score_one(store: Store) -> None:
    with LlmServer(World()) as server:
        outcome = run_score(job(store), config(server))
        assert server.kinds == ["embeddings"] * (PER_LABEL * len(WORDS))
        assert {b["model"] for b in server.requests} == {"embedder"}
        assert all(len(b["input"]) <= INPUTS_PER_CALL for b in server.requests)
        rows = store.row_counts()
        assert run_score(job(store), config(server)).pending == 0
        assert len(server.requests) == PER_LABEL * len(WORDS) and store.row_counts() == rows
    assert (outcome.method, outcome.statuses) == ("cosine_ordinary", {"ok": len(WORDS)})
    for name in ("embedding", "embedding_random", "embedding_same_token", "embedding_neighbour"):
        found = scores(store, name)
        assert [(r["value"], r["n_failed"], r["model"], r["method"]) for r in found] == [
            (1.0, 0, "embedder", "cosine_ordinary")
        ] * len(WORDS)
    assert all(0.5 < r["ci_low"] < 0.9 and r["n"] == 4 * N for r in scores(store))
    kept = store.rows(
        "SELECT c.kind = 'negative', p.truth, min(p.predicted[1]) >= -1, count(*) FROM predictions p "
        "JOIN contexts c USING (context_id) GROUP BY ALL ORDER BY ALL"
    )
    assert kept == [(False, [1.0], True, 2 * N * len(WORDS)), (True, [0.0], True, 2 * N * len(WORDS))]
    assert store.check() == []


def test_noise_and_other_labels_score_about_a_half(store: Store) -> None:
    with LlmServer(noise) as server:
        run_score(job(store), config(server))
    values = [row["value"] for row in scores(store)]
    # Eight contexts of each class: a deviation of 0.06 of the mean.
    assert sum(values) / len(values) == pytest.approx(0.5, abs=0.18)
    assert sum(r["ci_low"] <= 0.5 <= r["ci_high"] for r in scores(store)) >= len(WORDS) - 1
    with LlmServer(bag_of_words) as server:
        for control in ("shuffled", "token_lookup"):
            run_score(job(store), config(server, embedding_model="words"), control)
    shuffled, lookup = ([row["value"] for row in scores(store, control=c)] for c in ("shuffled", "token_lookup"))
    assert sum(shuffled) / len(shuffled) < 0.65 < 0.95 < min(lookup)


def test_the_contexts_of_a_feature_are_embedded_once(store: Store) -> None:
    """Whatever label is compared with them, whoever wrote it, and with whatever seed."""
    few = job(store, features="0-1")
    asyncio.run(explain(few, ExplainConfig(explainer="patterns")))
    with LlmServer(World()) as server:
        run_score(few, config(server))
        first = len(server.requests)
        run_score(few, config(server), explainer="patterns")
        run_score(few, config(server), control="empty")
        run_score(few, config(server, seed=1))
        added = [b["input"] for b in server.requests[first:]]
    # The empty label is the same for all, and another seed asks nothing new of an embedding.
    assert len(added) == 2 + 1 and all(len(texts) == 1 for texts in added)
    assert len(scores(store)) == 3 * 2 and len(scores(store, control="empty")) == 2


def test_a_stopped_run_goes_on_and_pays_for_nothing_twice(store: Store) -> None:
    with LlmServer(World(), latency=0.01) as server:
        with pytest.raises(StoppedError):
            run_score(job(store, BudgetConfig(max_requests=7), max_connections=4), config(server))
        run_score(job(store), config(server))
        asked = [json.dumps(b) for b in server.requests]
    assert len(asked) == len(set(asked)) == PER_LABEL * len(WORDS)
    assert [row["value"] for row in scores(store)] == [1.0] * len(WORDS)


def test_texts_too_long_are_parted(store: Store) -> None:
    """One context is too long by itself: that is its failure alone."""
    examples = choose_examples(DETECTION, contexts(0, "report"), N, 0, 1)
    longest = next(e.context.text for e in examples if not e.active)

    def spoil(kind: str, body: dict[str, Any], attempt: int) -> Fault | None:
        return Fault("ctx_too_long") if len(body["input"]) > 3 or longest in body["input"] else None

    with LlmServer(World(spoil=spoil)) as server:
        run_score(job(store, features="0"), config(server))
    row = scores(store)[0]
    assert (row["value"], row["status"], row["n"], row["n_failed"]) == (1.0, "ok", 4 * N, 1)
    failed = store.rows("SELECT status, count(*) FROM predictions WHERE predicted IS NULL GROUP BY ALL")
    assert failed == [("ctx_too_long", 1)]


def test_vectors_that_cannot_be_compared(store: Store) -> None:
    def spoil(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault | None:
        if len(body["input"]) == 1:
            return BrainReply("", vectors=[[0.0] * 256] if "alpha" in body["input"][0] else [[1.0, 2.0]])
        return None

    with LlmServer(World(spoil=spoil)) as server:
        run_score(job(store, features="0-1"), config(server))
    assert [(r["value"], r["status"], r["n_failed"]) for r in scores(store)] == [
        (None, "zero_vector", 4 * N), (None, "vector_length", 4 * N),
    ]  # fmt: skip


def test_an_endpoint_that_gives_up_is_asked_again_later(store: Store) -> None:
    few = job(store, features="0", attempts=1)

    def spoil(kind: str, body: dict[str, Any], attempt: int) -> Fault:
        return Fault("truncated_json")

    with LlmServer(World(spoil=spoil)) as server:
        assert run_score(few, config(server)).statuses == {"gave_up": 1}
        assert len(server.requests) == 1  # contexts are of no use without the label's vector
    with LlmServer(World()) as server:
        assert run_score(few, config(server)).statuses == {"ok": 1}
    assert scores(store)[0]["value"] == 1.0 and store.check() == []


def test_the_model_must_be_named_and_may_be_a_folder(store: Store) -> None:
    with pytest.raises(InputError, match="set score.embedding_model to a model that score.base_url offers"):
        run_score(job(store), ScoreConfig(scorers=("embedding",)))
    local = ScoreConfig(scorers=("embedding",), embedding_model="local:/models/small")
    assert is_local(local) and not is_local(ScoreConfig(embedding_model="small"))
    assert run_score(job(store), local).waiting == len(WORDS)
    told = forecast_score(job(store), "combined", local)
    assert (told.features, told.calls, told.usd) == (len(WORDS), 0, 0.0)


def test_it_goes_with_other_scorers_and_is_forecast(store: Store) -> None:
    prices = {"test-model": PriceConfig(input=1.0, output=2.0), "embedder": PriceConfig(input=10.0)}
    with LlmServer(World()) as server:
        both = config(server, scorers=("intruder", "embedding", "detection"), model="test-model")
        told = forecast_score(job(store, prices=prices), "combined", both)
        only = forecast_score(job(store, prices=prices), "combined", config(server))
        unpriced = forecast_score(job(store), "combined", both)
        assert not server.requests
        outcome = run_score(job(store, BudgetConfig(max_usd=1.0), prices=prices), both)
        assert told.calls == len(server.requests)
        assert forecast_score(job(store), "combined", both).calls == 0
    assert (outcome.pending, outcome.method) == (3 * len(WORDS), "answers_ordinary, choice, cosine_ordinary")
    assert outcome.statuses == {"ok": 3 * len(WORDS)}
    assert (told.features, only.features, only.calls) == (len(WORDS), len(WORDS), PER_LABEL * len(WORDS))
    assert only.usd == pytest.approx(10 * only.input_tokens / 1e6) and only.output_tokens == 0
    assert told.usd is not None and only.usd is not None and told.usd > only.usd and unpriced.usd is None
    spent = store.rows("SELECT sum(input_tokens), sum(cost_usd) FROM llm_calls WHERE stage = 'embedding'")[0]
    assert only.input_tokens == pytest.approx(spent[0], rel=0.3)
    assert math.isclose(spent[1], 10 * spent[0] / 1e6)
