"""Explaining and scoring through the real client, a real server and a real store: planted features, an oracle and a
coin-flipper behind the endpoint, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.known_words import RAW_MAX, WORDS, World, coin, job, question
from support.llm_server import BrainReply, Fault, Kind, LlmServer

from autointerp.ask.job import Job, Outcome
from autointerp.config import BudgetConfig, ExplainConfig, PriceConfig, ScoreConfig
from autointerp.errors import CredentialsError, InputError, StoppedError
from autointerp.explain.explaining import explain, forecast_explain
from autointerp.jackknife import MIN_DOCUMENTS
from autointerp.score.scoring import forecast_score, score
from autointerp.store import Store

N = 4
"""Contexts of a kind in a score."""
METHODS = {"prompt_logprobs": ("prompt", "generated"), "generated_logprobs": ("generated",), "numbers": ()}


@pytest.fixture
def planted(bare_world: Path) -> Path:
    return bare_world


def explain_config(server: LlmServer, **changed: Any) -> ExplainConfig:
    base = {"explainer": "combined", "model": "test-model", "base_url": server.url, "reply": "text"}
    return ExplainConfig(**{**base, **changed})


def score_config(server: LlmServer | None = None, **changed: Any) -> ScoreConfig:
    there = {} if server is None else {"model": "test-model", "base_url": server.url}
    return ScoreConfig(**{"contexts": N, **there, **changed})


def run_explain(work: Job, config: ExplainConfig) -> Outcome:
    return asyncio.run(explain(work, config))


def run_score(work: Job, explainer: str, config: ScoreConfig, control: str | None = None) -> Outcome:
    return asyncio.run(score(work, explainer, config, control))


def scores(
    store: Store, scorer: str = "simulation", part: str = "report", control: str | None = None
) -> list[dict[str, Any]]:
    return store.dicts(
        "SELECT * FROM scores WHERE scorer = ? AND part = ? AND control IS NOT DISTINCT FROM ?::VARCHAR "
        "ORDER BY feature",
        [scorer, part, control],
    )


def labels(store: Store) -> list[dict[str, Any]]:
    return store.dicts("SELECT * FROM explanations ORDER BY explainer, feature")


def simulation_requests(server: LlmServer) -> list[dict[str, Any]]:
    return [
        b for b in server.requests
        if "Record" in b.get("prompt", "") or "You predict" in b.get("messages", [{"content": ""}])[0]["content"]
    ]  # fmt: skip


# --- the planted world ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("split_ten", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_oracle_scores_one_by_every_method(store: Store, method: str, split_ten: bool) -> None:
    with LlmServer(World(logprobs=METHODS[method], split_ten=split_ten)) as server:
        told = run_explain(job(store), explain_config(server))
        outcome = run_score(
            job(store), "combined", score_config(server, scorers=("simulation", "simulation_calibrated"))
        )
    assert told.statuses == {"ok": len(WORDS)}
    assert [row["text"] for row in labels(store)] == [f"the word{w}, stronger after `the`" for w in WORDS]
    assert outcome.method == method and outcome.statuses == {"ok": len(WORDS)} and outcome.failed == 0
    for row in [*scores(store), *scores(store, "simulation_random"), *scores(store, part="select")]:
        assert row["value"] > 0.97 and row["method"] == method
        # Of so few documents there is no interval; which they were, and what kinds of contexts, is kept.
        assert row["ci_low"] is None and row["n_documents"] == len(row["documents"]) < MIN_DOCUMENTS
        assert sum(json.loads(row["n_by_kind"]).values()) == row["n"]
    assert all(row["value"] > 0.9 for row in scores(store, "simulation_calibrated"))
    assert [row["n"] for row in scores(store)] == [3 * N] * len(WORDS)
    kept = store.rows("SELECT status, len(truth), len(predicted), max(list_max(truth)) FROM predictions GROUP BY ALL")
    assert kept == [("ok", 16, 16, 10.0)]
    assert store.rows("SELECT count(*) FROM predictions")[0][0] == 2 * 3 * N * len(WORDS)


def test_a_coin_and_shuffled_labels_score_about_zero(store: Store) -> None:
    with LlmServer(World(coin)) as server:
        run_explain(job(store), explain_config(server))
        run_score(job(store), "combined", score_config(server, contexts=8))
    coin_values = [row["value"] for row in scores(store)]
    assert abs(sum(coin_values)) / len(coin_values) < 0.1
    with LlmServer(World()) as server:
        run_score(job(store), "combined", score_config(server), control="shuffled")
        run_score(job(store), "combined", score_config(server), control="empty")
    # Another feature's word is silence here, or noise: it happens to stand in some contexts.
    shuffled = scores(store, control="shuffled")
    assert len(shuffled) == len(WORDS)
    values = [row["value"] for row in shuffled]
    assert max(values) < 0.2 and abs(sum(values)) / len(values) < 0.1
    empty = scores(store, control="empty")
    assert {(row["status"], row["value"], row["ci_low"]) for row in empty} == {("constant_prediction", 0.0, None)}
    mean = store.rows(
        "SELECT mean_score, n FROM explainer_leaderboard WHERE control = 'empty' AND scorer = 'simulation'"
    )
    assert mean == [(0.0, len(WORDS))]
    # Controls never show as labels' scores.
    shown = store.rows("SELECT score FROM labels ORDER BY feature")
    assert [s for (s,) in shown] == coin_values


def test_patterns_and_the_lookup_baseline(store: Store) -> None:
    for explainer in ("patterns", "token_lookup"):
        assert run_explain(job(store), ExplainConfig(explainer=explainer)).statuses == {"ok": len(WORDS)}
        outcome = run_score(job(store), explainer, score_config())
        assert (outcome.method, outcome.statuses) == ("rule", {"ok": len(WORDS)})
    found = store.rows(
        "SELECT e.explainer, min(s.value), max(s.value) FROM scores s JOIN explanations e USING (explanation_id) "
        "WHERE s.scorer = 'simulation' AND s.part = 'report' AND s.control IS NULL GROUP BY ALL ORDER BY ALL"
    )
    (patterns, lowest, _), (lookup, _, highest) = found
    assert (patterns, lookup) == ("patterns", "token_lookup") and lowest > 0.95 > highest
    assert all(row["value"] > 0.9 for row in scores(store, "simulation_calibrated") if row["value"] > highest)
    run_score(job(store), "patterns", score_config(), control="shuffled")
    assert all(row["value"] < 0.2 for row in scores(store, control="shuffled"))
    assert labels(store)[0]["text"].startswith("the word `alpha`") or "`alpha`" in labels(store)[0]["text"]


def test_a_patterns_label_can_be_scored_by_an_llm_too(store: Store) -> None:
    run_explain(job(store), ExplainConfig(explainer="patterns"))
    with LlmServer(World(lambda label, tokens: [9 * (t.strip() == label.split("`")[1]) for t in tokens])) as server:
        outcome = run_score(job(store, features="0-1"), "patterns", score_config(server, method="numbers"))
    assert outcome.statuses == {"ok": 2}
    assert all(row["method"] == "numbers" and row["value"] > 0.8 for row in scores(store))


def test_numbers_need_no_probe(store: Store) -> None:
    run_explain(job(store), ExplainConfig(explainer="patterns"))
    world = World(lambda label, tokens: [0] * len(tokens))

    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        return Fault("401") if "digit 7" in str(body) or kind == "completions" else world(kind, body, attempt)

    with LlmServer(brain) as server:
        outcome = run_score(job(store, features="0-1"), "patterns", score_config(server, method="numbers"))
        assert sum(outcome.statuses.values()) == 2 and len(server.requests) > 2
        with pytest.raises(CredentialsError):
            run_score(job(store, features="2-3"), "patterns", score_config(server, method="generated_logprobs"))
    assert store.rows("SELECT count(*) FROM llm_calls WHERE stage = 'probe'") == [(0,)]


# --- resuming -------------------------------------------------------------------------------------------------------


def test_a_second_run_asks_for_nothing(store: Store) -> None:
    with LlmServer(World(logprobs=("generated",))) as server:
        seen: list[tuple[int, int]] = []
        first = run_explain(job(store), explain_config(server))
        run_score(job(store), "combined", score_config(server))
        asked = len(server.requests)
        rows = store.row_counts()
        assert run_explain(job(store), explain_config(server)).pending == 0
        again = Job(
            **{**{f: getattr(job(store), f) for f in Job.__dataclass_fields__}, "progress": lambda *a: seen.append(a)}
        )
        assert run_score(again, "combined", score_config(server)).pending == 0
        assert len(server.requests) == asked and store.row_counts() == rows and not seen
    assert first.pending == len(WORDS)


def test_a_stopped_run_goes_on_and_pays_for_nothing_twice(store: Store) -> None:
    """The budget ends after some calls; with more of it the run ends as if it had never stopped."""
    with LlmServer(World(), latency=0.01) as server:
        with pytest.raises(StoppedError):
            run_explain(job(store, BudgetConfig(max_requests=2), max_connections=2), explain_config(server))
        run_explain(job(store), explain_config(server))
        assert len(server.requests) == len(WORDS)
        with pytest.raises(StoppedError):
            run_score(job(store, BudgetConfig(max_requests=25), max_connections=4), "combined", score_config(server))
        run_score(job(store), "combined", score_config(server))
        asked = simulation_requests(server)
    assert len(asked) == 3 * N * len(WORDS)
    assert Counter(map(str, map(question, asked))).most_common(1)[0][1] == 1
    assert len(scores(store)) == len(WORDS) and all(row["value"] > 0.97 for row in scores(store))
    assert store.rows("SELECT count(*) FROM llm_calls WHERE stage = 'explain'")[0][0] == len(WORDS)


def test_a_chosen_few_and_progress(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    base = job(store, features="1,3")
    watched = Job(
        **{**{f: getattr(base, f) for f in Job.__dataclass_fields__}, "progress": lambda d, n: seen.append((d, n))}
    )
    with LlmServer(World()) as server:
        assert run_explain(watched, explain_config(server)).statuses == {"ok": 2}
        assert sorted(seen) == [(1, 2), (2, 2)]
        assert run_score(watched, "combined", score_config(server)).statuses == {"ok": 2}
    assert [row["feature"] for row in scores(store)] == [1, 3]


# --- faults ---------------------------------------------------------------------------------------------------------


def first_time(
    fault: Callable[[], BrainReply | Fault],
) -> Callable[[str, dict[str, Any], int], BrainReply | Fault | None]:
    """Spoils the first attempt of every explain and simulate request, probes excepted."""

    def spoil(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault | None:
        system = body.get("messages", [{"content": ""}])[0]["content"]
        asked = "You study one feature" in system or "You predict" in system
        return fault() if asked and attempt == 0 else None

    return spoil


@pytest.mark.parametrize(
    "fault",
    [
        "429",
        "truncated_json",
        *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("500", "hang", "reset", "empty_choices")),
    ],
)
def test_a_passing_fault_changes_nothing(store: Store, fault: str) -> None:
    spoil = first_time(lambda: Fault(fault, retry_after=0.05 if fault == "429" else None))
    few = job(store, features="0-1", timeout=0.6 if fault == "hang" else 5.0)
    with LlmServer(World(spoil=spoil)) as server:
        assert run_explain(few, explain_config(server)).statuses == {"ok": 2}
        assert run_score(few, "combined", score_config(server, contexts=2)).statuses == {"ok": 2}
        assert set(server.faults) == {fault}
    assert all(row["value"] > 0.97 and row["n_failed"] == 0 for row in scores(store))


def test_an_endpoint_that_gives_up_is_a_status_and_asked_again(store: Store) -> None:
    broken = {"on": True}

    def spoil(kind: str, body: dict[str, Any], attempt: int) -> Fault | None:
        if not broken["on"]:
            return None
        simulated = "You predict" in body.get("messages", [{"content": ""}])[0]["content"]
        about = question(body)[0] if simulated else str(body)
        return Fault("truncated_json") if "the word alpha" in about or '[" alpha", 10]' in about else None

    few = job(store, features="0-1", attempts=2)
    with LlmServer(World(spoil=spoil)) as server:
        assert run_explain(few, explain_config(server)).statuses == {"gave_up": 1, "ok": 1}
        broken["on"] = False
        assert run_explain(few, explain_config(server)).statuses == {"ok": 1}
        broken["on"] = True
        outcome = run_score(few, "combined", score_config(server))
        assert outcome.statuses == {"gave_up": 1, "ok": 1} and outcome.failed == 1
        assert [row["value"] is None for row in scores(store)] == [True, False]
        broken["on"] = False
        assert run_score(few, "combined", score_config(server)).statuses == {"ok": 1}
    assert all(row["value"] > 0.97 for row in scores(store))


def test_a_wrong_number_of_tokens_is_asked_again_once(store: Store) -> None:
    def spoil(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | None:
        if kind != "chat":
            return None
        messages = body["messages"]
        again = "could not be used" in messages[-1]["content"]
        if "You predict" not in messages[0]["content"] or again:
            return None
        return BrainReply('" only"\t0\n" two"\t10')

    with LlmServer(World(spoil=spoil)) as server:
        few = job(store, features="0")
        run_explain(few, explain_config(server))
        run_score(few, "combined", score_config(server))
        assert len(simulation_requests(server)) == 2 * 3 * N
    assert scores(store)[0]["value"] > 0.97 and scores(store)[0]["n_failed"] == 0


def test_a_wrong_number_of_tokens_never_becomes_zeros(store: Store) -> None:
    """Spoilt for good: for three contexts of twelve the rest are scored, for all of them there is no score."""

    def short(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | None:
        if "You predict" not in body.get("messages", [{"content": ""}])[0]["content"]:
            return None
        return BrainReply('" alpha"\t10') if sum(map(len, question(body)[1])) % 4 == 0 else None

    few = job(store, features="0")
    with LlmServer(World(spoil=short)) as server:
        run_explain(few, explain_config(server))
        run_score(few, "combined", score_config(server))
    row = scores(store)[0]
    assert row["status"] == "ok" and 0 < row["n_failed"] < row["n"] and row["value"] > 0.97
    failed = store.rows("SELECT count(*), min(status) FROM predictions WHERE predicted IS NULL")
    assert failed == [(row["n_failed"], "token_count")]
    with LlmServer(World(spoil=lambda kind, body, attempt: BrainReply("no idea"))) as server:
        outcome = run_score(few, "combined", score_config(server, seed=1))
    assert outcome.statuses == {"token_count": 1} and outcome.failed == 1
    hopeless = [r for r in scores(store) if r["seed"] == 1][0]
    assert hopeless["value"] is None and hopeless["n_failed"] == hopeless["n"] == 3 * N
    assert "no idea" in hopeless["error"]


def test_logprobs_that_go_missing_after_the_probe(store: Store) -> None:
    def spoil(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | None:
        if "You predict" not in body.get("messages", [{"content": ""}])[0]["content"]:
            return None
        label, tokens = question(body)
        plain = World()(kind, body, attempt)
        assert isinstance(plain, BrainReply)
        return BrainReply(plain.text)

    with LlmServer(World(logprobs=("generated",), spoil=spoil)) as server:
        few = job(store, features="0")
        run_explain(few, explain_config(server))
        outcome = run_score(few, "combined", score_config(server))
        # Another method would be another measurement: it is not slipped in.
        assert outcome.method == "generated_logprobs" and outcome.statuses == {"no_logprobs": 1}
        assert scores(store)[0]["value"] is None
        with pytest.raises(InputError, match="prompt_logprobs.*supports generated_logprobs, numbers"):
            run_score(few, "combined", score_config(server, method="prompt_logprobs"))
        assert run_score(few, "combined", score_config(server, method="numbers")).statuses == {"ok": 1}
    assert Counter(r["method"] for r in scores(store)) == {"generated_logprobs": 1, "numbers": 1}


def test_replies_without_a_label(store: Store) -> None:
    def spoil(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault | None:
        text = str(body)
        if '[" beta", 10]' in text:
            return BrainReply("LABEL: no pattern")
        if '[" gamma", 10]' in text:
            return BrainReply("", refusal="I would rather not.")
        if '[" delta", 10]' in text:
            return BrainReply("It is delta.")
        if '[" omega", 10]' in text and "no line that begins" not in text:
            return BrainReply("It is omega.")
        if '[" sigma", 10]' in text:
            return BrainReply("LABEL: the", finish_reason="length")
        return None

    with LlmServer(World(spoil=spoil)) as server:
        outcome = run_explain(job(store), explain_config(server))
        assert len(server.requests) == len(WORDS) + 3
        assert run_explain(job(store), explain_config(server)).pending == 0
    found = labels(store)
    assert [row["status"] for row in found] == ["ok", "abstained", "refused", "unparseable", "ok", "truncated"]
    assert [row["text"] is None for row in found] == [False, True, True, True, False, True]
    assert "It is delta" in found[3]["error"]
    assert outcome.failed == 3
    assert found[4]["input_tokens"] > found[0]["input_tokens"]


def test_a_prompt_too_long_is_halved_twice_at_most(store: Store) -> None:
    def spoil(kind: str, body: dict[str, Any], attempt: int) -> Fault | None:
        if kind != "chat":
            return None
        messages = body["messages"]
        if "You study one feature" in messages[0]["content"]:
            shown = sum(line.startswith("[") for line in messages[-1]["content"].split("\n"))
            return Fault("ctx_too_long") if shown > (2 if '[" alpha", 10]' in str(messages) else 1) else None
        return Fault("ctx_too_long") if "You predict" in messages[0]["content"] and len(messages) > 4 else None

    with LlmServer(World(spoil=spoil)) as server:
        run_explain(job(store, features="0-1"), explain_config(server, contexts=8, random_contexts=0, negatives=0))
        assert len([b for b in server.requests if "You study" in b["messages"][0]["content"]]) == 6
        found = labels(store)
        assert [row["status"] for row in found] == ["ok", "ctx_too_long"]
        assert "2 contexts instead of 8" in found[0]["error"]
        outcome = run_score(job(store, features="0"), "combined", score_config(server, contexts=1))
    assert outcome.statuses == {"ok": 1} and scores(store)[0]["value"] > 0.9


def test_what_ends_a_run(store: Store) -> None:
    refused = lambda kind, body, attempt: Fault("401")  # noqa: E731
    with LlmServer(refused) as server, pytest.raises(CredentialsError):
        run_explain(job(store), explain_config(server))
    assert labels(store) == []
    with pytest.raises(InputError, match="explain.model"):
        run_explain(job(store), ExplainConfig(explainer="contexts"))
    with pytest.raises(InputError, match="no explainer 'contxts'.*contexts"):
        run_explain(job(store), ExplainConfig(explainer="contxts"))
    with pytest.raises(InputError, match="score.model"):
        run_score(job(store), "contexts", score_config())
    with pytest.raises(InputError, match="no scorer 'simulaton'.*simulation"):
        run_score(job(store), "patterns", score_config(scorers=("simulaton",)))
    with pytest.raises(InputError, match="no control"):
        run_score(job(store), "patterns", score_config(), control="x")
    run_explain(job(store, features="0"), ExplainConfig(explainer="patterns"))
    with pytest.raises(InputError, match="two features"):
        run_score(job(store, features="0"), "patterns", score_config(), control="shuffled")


# --- forecasts ------------------------------------------------------------------------------------------------------


def test_forecasts_come_near_what_is_asked(store: Store) -> None:
    priced = {"prices": {"test-model": PriceConfig(input=1.0, output=2.0)}}
    with LlmServer(World()) as server:
        told = forecast_explain(job(store, **priced), explain_config(server))
        assert forecast_score(job(store), "combined", score_config(server)).calls == 0
        assert len(server.requests) == 0
        run_explain(job(store, **priced), explain_config(server))
        scored = forecast_score(job(store), "combined", score_config(server))
        run_score(job(store), "combined", score_config(server))
        asked = len(simulation_requests(server))
    assert (told.features, told.calls) == (len(WORDS), len(WORDS))
    assert told.usd == pytest.approx((told.input_tokens + 2 * told.output_tokens) / 1e6)
    assert (scored.features, scored.calls, scored.usd) == (len(WORDS), asked, None)
    spent: dict[str, int] = dict(store.rows("SELECT stage, sum(input_tokens) FROM llm_calls GROUP BY stage"))
    assert told.input_tokens == pytest.approx(spent["explain"], rel=0.5)
    assert scored.input_tokens == pytest.approx(spent["simulate"], rel=0.5)
    free = forecast_explain(job(store), ExplainConfig(explainer="patterns"))
    assert (free.features, free.calls, free.usd) == (len(WORDS), 0, 0.0)


def test_truth_is_on_the_scale_of_the_explain_split(store: Store) -> None:
    run_explain(job(store, features="0"), ExplainConfig(explainer="patterns"))
    run_score(job(store, features="0"), "patterns", score_config())
    found = store.rows(
        "SELECT p.truth, c.activations FROM predictions p JOIN contexts c USING (context_id) WHERE c.kind = 'top'"
    )
    assert found and all(t == pytest.approx([10 * a / RAW_MAX for a in raw]) for t, raw in found)
