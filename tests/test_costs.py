"""What work costs: prices, cached input, budgets under many calls at once, forecasts, and `status` beside a run."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import run
from support.known_words import WORDS, World, copy_of, job, planted_store
from support.llm_helpers import ask_all, chat, client_for
from support.llm_server import BrainReply, LlmServer
from support.prefix_cache import PrefixCache

from autointerp.ask.forecast import Estimate, Forecast, budget_lines, duration, forecast_lines
from autointerp.config import BudgetConfig, Config, ExplainConfig, LlmConfig, PriceConfig, ScoreConfig
from autointerp.errors import InputError, StoppedError
from autointerp.explain.explaining import explain
from autointerp.llm.budget import Budget, cost_usd
from autointerp.llm.replies import read_usage
from autointerp.score.scoring import score
from autointerp.stages import labelling
from autointerp.stages.labelling import Labelling
from autointerp.store import Selection, Store
from autointerp.store.pace import Latency, measured_latency
from autointerp.store.safety.paths import snapshot_path_of
from autointerp.terminal import Terminal


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "planted.duckdb"
    planted_store(path).close()
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Any:
    with copy_of(template, tmp_path / "planted.duckdb") as opened:
        yield opened


# --- prices ---------------------------------------------------------------------------------------------------------


def test_batch_prices() -> None:
    price = PriceConfig(input=4.0, cached_input=1.0, output=10.0)
    million = 1_000_000
    assert cost_usd(price, 2 * million, million, million) == pytest.approx(4 + 1 + 10)
    assert cost_usd(price.in_batch(), 2 * million, million, million) == pytest.approx((4 + 1 + 10) / 2)
    own = replace(price, batch_input=3.0, batch_output=6.0)
    assert cost_usd(own.in_batch(), 2 * million, million, million) == pytest.approx(3 + 3 + 6)
    assert cost_usd(replace(own, batch_cached_input=0.5).in_batch(), 2 * million, million, million) == pytest.approx(
        9.5
    )
    assert replace(price, batch_discount=0.25, batch_cached_input=0.0).in_batch() == PriceConfig(3.0, 0.0, 7.5)
    with pytest.raises(InputError, match=r"llm.prices.output must lie in 0..1000000000, not -1.0"):
        PriceConfig(output=-1.0)


@pytest.mark.parametrize(
    ("told", "cached"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 64}}, 64),  # OpenAI, vLLM, SGLang, llama.cpp, OpenRouter
        ({"prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36}, 64),  # DeepSeek
        ({"prompt_cache_hit_tokens": 64, "prompt_tokens_details": {"audio_tokens": 0}}, 64),
        ({"prompt_tokens_details": None}, 0),  # vLLM without the option that tells it
        ({"cached_tokens": 64}, 64),  # Moonshot
        ({"prompt_tokens_details": {"cached_tokens": 1000}}, 100),  # no more than was read
        ({"prompt_tokens_details": {"cached_tokens": "64"}}, 0),
    ],
)
def test_cached_tokens_as_endpoints_tell_them(told: dict[str, Any], cached: int) -> None:
    usage = read_usage({"usage": {"prompt_tokens": 100, "completion_tokens": 5, **told}})
    assert usage is not None and (usage.input_tokens, usage.cached_tokens) == (100, cached)


def test_a_prefix_cache_hits_and_is_paid_at_its_price(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """The same work with and without one: the price differs by what the fixed beginnings are worth."""
    price = PriceConfig(input=1.0, cached_input=0.1, output=2.0)
    cache = PrefixCache(World(), block=16, smallest=0)
    with LlmServer(cache) as server:
        endpoint = {"model": "m", "base_url": server.url, "temperature": 0.0}
        work = job(store, features="0-2", prices={"m": price}, max_connections=1)
        asyncio.run(explain(work, ExplainConfig(explainer="contexts", reply="text", **endpoint)))
        asyncio.run(score(work, "contexts", ScoreConfig(scorers=("simulation", "detection"), contexts=3, **endpoint)))
    read, cached, written, usd = store.rows(
        "SELECT sum(input_tokens), sum(cached_tokens), sum(output_tokens), sum(cost_usd) FROM llm_calls"
    )[0]
    assert (read, cached, written) == tuple(cache.totals[name] for name in ("input", "cached", "output"))
    assert usd == work.budget.usd == pytest.approx(cost_usd(price, read, cached, written))
    assert cached > 0.7 * read, "instructions and worked examples are most of these prompts"
    shares = dict(store.rows("SELECT stage, sum(cached_tokens) / sum(input_tokens) FROM llm_calls GROUP BY stage"))
    assert shares["simulate"] > 0.85 and min(shares["explain"], shares["detection"]) > 0.3, shares
    store.close()
    code, out, _ = run(capsys, "status", "--store", str(store.path))
    assert code == 0 and f"({100 * cached / read:.0f} % of the input cached)" in out


# --- budgets --------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_budget_is_overrun_at_most_by_calls_in_flight(data: st.DataObject) -> None:
    """Whatever calls really take. Where none takes more than was set aside for it, not at all."""
    in_flight = data.draw(st.integers(1, 8))
    honest = data.draw(st.booleans())
    calls = []
    for _ in range(data.draw(st.integers(1, 40))):
        reserved = data.draw(st.integers(1, 100))
        calls.append((reserved, data.draw(st.integers(0, reserved if honest else 500)), data.draw(st.integers(0, 3))))
    name = data.draw(st.sampled_from(["max_usd", "max_requests", "max_tokens"]))
    limit = data.draw(st.integers(1, 600))
    budget = Budget(BudgetConfig(**{name: limit}))  # type: ignore[arg-type]
    left, running, late = list(reversed(calls)), [0], []

    def spent() -> float:
        return {"max_usd": budget.usd, "max_requests": budget.requests, "max_tokens": budget.tokens}[name]

    async def worker() -> None:
        while left:
            reserved, taken, turns = left.pop()
            held = await budget.reserve(reserved, float(reserved))
            late.append(spent() >= limit)
            running[0] += 1
            for _ in range(turns):
                await asyncio.sleep(0)
            running[0] -= 1
            budget.settle(held, taken, float(taken))

    async def every() -> list[Any]:
        return await asyncio.gather(*(worker() for _ in range(in_flight)), return_exceptions=True)

    ends = asyncio.run(every())
    assert all(end is None or isinstance(end, StoppedError) for end in ends)
    assert running == [0] and not any(late), "nothing is sent once the budget is spent"
    largest = sorted((taken for _, taken, _ in calls), reverse=True)[:in_flight]
    assert spent() <= limit + (0 if honest or name == "max_requests" else sum(largest))
    if not left and all(end is None for end in ends):
        assert budget.requests == len(calls)


@pytest.mark.parametrize("name", ["max_usd", "max_requests", "max_tokens"])
@pytest.mark.parametrize("in_flight", [1, 7])
def test_calls_that_cost_more_than_was_expected(name: str, in_flight: int) -> None:
    """Through the client: each call takes 40 times the tokens that its length lets expect."""
    brain = BrainReply("hello", input_tokens=4_000, output_tokens=10)
    prices = {"test-model": PriceConfig(input=1.0, output=1.0)}
    limits = {"max_usd": 0.02, "max_requests": 9, "max_tokens": 20_000}
    with LlmServer(lambda kind, body, attempt: brain, latency=0.002) as server:
        budget = BudgetConfig(**{name: limits[name]})  # type: ignore[arg-type]
        client = client_for(server, budget=budget, prices=prices, max_connections=in_flight)
        with pytest.raises(StoppedError, match=f"budget.{name}"):
            ask_all(client, *(chat(f"question {i}") for i in range(40)))
        used = {
            "max_usd": client.budget.usd,
            "max_requests": client.budget.requests,
            "max_tokens": client.budget.tokens,
        }
        assert client.budget.requests == len(server.requests)
    one = {"max_usd": 4_010 / 1e6, "max_requests": 0, "max_tokens": 4_010}[name]
    assert limits[name] * 0.7 < used[name] <= limits[name] + in_flight * one


# --- forecasts ------------------------------------------------------------------------------------------------------


def settings_for(store: Store, url: str = "http://127.0.0.1:1/v1", **changed: Any) -> Config:
    parts: dict[str, Any] = {
        "explain": ExplainConfig(explainer="contexts", reply="text", model="m", base_url=url),
        "score": ScoreConfig(scorers=("simulation", "detection", "fuzzing", "intruder"), contexts=2, model="m",
                             base_url=url),
        "llm": LlmConfig(requests_per_minute=600_000, max_connections=16, prices={"m": PriceConfig(1.0, 0.1, 2.0)}),
        **changed,
    }  # fmt: skip
    return Config(**parts)


def labelling_of(config: Config, store: Store) -> Labelling:
    return Labelling(config, store, "run", Selection(), Terminal())


def told(store: Store, config: Config, capsys: pytest.CaptureFixture[str], **more: Any) -> tuple[list[Forecast], str]:
    found = labelling.forecast(labelling_of(config, store), [store.dictionary()], **more)
    return found, capsys.readouterr().out


def test_a_whole_run_is_forecast_before_its_labels_exist(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores of labels that are still to be made are counted; tokens, cost and shared beginnings come near."""
    with LlmServer(PrefixCache(World(), block=16, smallest=0)) as server:
        config = settings_for(store, server.url)
        (labels, scores), out = told(store, config, capsys)
        assert not server.requests
        row = store.dictionary()
        for stage in (labelling.explain, labelling.score):
            assert stage(labelling_of(config, store), row) == 0
        done, _ = told(store, config, capsys)
    assert [f.calls for f in done] == [0, 0]
    for forecast, stages in ((labels, "('explain')"), (scores, "('simulate', 'detection', 'fuzzing', 'intruder')")):
        calls, read, cached, usd = store.rows(
            "SELECT count(*), sum(input_tokens), sum(cached_tokens), sum(cost_usd) FROM llm_calls "
            f"WHERE stage IN {stages}"
        )[0]
        assert forecast.calls == calls and forecast.features == len(WORDS)
        assert forecast.input_tokens == pytest.approx(read, rel=0.35)
        assert forecast.shared_tokens == pytest.approx(cached, rel=0.4)
        assert forecast.cached_usd is not None and forecast.usd is not None
        assert forecast.cached_usd == pytest.approx(usd, rel=0.5) and forecast.cached_usd < 0.6 * forecast.usd
    assert re.search(r"explain: 6 pending, 6 calls, [\d,]+ input and [\d,]+ output tokens, cost \$0\.\d+, about", out)
    assert "where a prefix cache serves it" in out and "assumed, no call of it is on record" in out
    assert len(told(store, config, capsys)[0]) == 2


def test_what_a_stop_rule_is_likely_to_save(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with LlmServer(World()) as server:
        scoring = ScoreConfig(scorers=("detection",), contexts=8, examples_per_call=2, stop_threshold=0.6, model="m",
                              base_url=server.url)  # fmt: skip
        config = settings_for(store, server.url, score=scoring)
        (_, scores), out = told(store, config, capsys)
        assert scores.calls == 12 * len(WORDS) and 0.3 * scores.calls < scores.likely_calls < 0.95 * scores.calls
        assert f"likely: {scores.likely_calls:,} calls and $" in out
        for stage in (labelling.explain, labelling.score):
            assert stage(labelling_of(config, store), store.dictionary()) == 0
        sent = store.rows("SELECT count(*) FROM llm_calls WHERE stage = 'detection'")[0][0]
        assert sent < scores.likely_calls, "this judge is always right"
        # Of the same labels under another seed, now that earlier scores are known to be perfect.
        for rows in range(1, 3):
            asyncio.run(score(job(store), "contexts", replace(scoring, seed=rows)))
        known, _ = told(store, replace(config, score=replace(scoring, seed=9)), capsys)
    assert known[1].likely_calls == sent


def test_the_time_is_that_of_measured_calls(store: Store) -> None:
    assert measured_latency(store, "m") is None
    with LlmServer(World(), latency=0.02) as server:
        asyncio.run(explain(job(store), ExplainConfig(explainer="contexts", reply="text", model="m",
                                                      base_url=server.url)))  # fmt: skip
    found = measured_latency(store, "m")
    assert found is not None and found.calls == len(WORDS) and 0.02 <= found.seconds < 5
    forecast = Forecast.of({}, 1000, [("m", Estimate(1000, 3.5e6, 0, 3.5 * 1000 * 20))])
    fast = LlmConfig(requests_per_minute=1e6, max_connections=10)
    known = {"m": Latency(4.0, 20.0, 7)}
    assert duration(forecast, fast, known).seconds == pytest.approx(1000 * 4.0 / 10)
    assert duration(forecast, fast, {}).seconds == pytest.approx(1000 * 1.5 / 10), "1 s and 40 tokens a second"
    assert duration(forecast, replace(fast, requests_per_minute=100.0), known).seconds == pytest.approx(600)
    slow = replace(fast, tokens_per_minute=51_000.0)
    assert duration(forecast, slow, known).seconds == pytest.approx(60 * 1_020_000 / 51_000)
    lines = forecast_lines("score", forecast, slow, known)
    assert "about 20 min" in lines[0] and "bounded by 51,000 tokens a minute" in lines[-1]
    assert "after 7 earlier calls" in forecast_lines("score", forecast, fast, known)[-1]
    assert "up to a day" in forecast_lines("score", forecast, replace(fast, batch=True), known)[0]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (BudgetConfig(), None),
        (BudgetConfig(max_usd=9.0, max_requests=4000, max_tokens=10**9, deadline="3h"), None),
        (BudgetConfig(max_usd=0.5), "max_usd = 0.5 is not enough: it will end the work after about 25 %"),
        (BudgetConfig(max_requests=500), "max_requests = 500 is not enough: it will end the work after about 25 %"),
        (BudgetConfig(max_tokens=204_000), "max_tokens = 204,000 is not enough: it will end the work after about 10 %"),
        (BudgetConfig(deadline=80.0), "will not be met: about 80 s are left of about 13 min, enough for about 10 %"),
        (BudgetConfig(deadline="2020-01-01T00:00"), "will not be met: about 0 s are left of about 13 min"),
    ],
)
def test_a_forecast_says_what_will_not_suffice(budget: BudgetConfig, expected: str | None) -> None:
    """Two stages, which share the budget: 2,000 calls, 2,040,000 tokens, $2, 800 s."""
    price = {"m": PriceConfig(input=1.0)}
    one = Forecast.of(price, 1000, [("m", Estimate(1000, 3.5e6, 0, 3.5 * 1000 * 20))])
    llm = LlmConfig(requests_per_minute=1e6, max_connections=10)
    lines = budget_lines([one, one], llm, budget, {"m": Latency(4.0, 20.0, 7)})
    assert lines == [] if expected is None else len(lines) == 1 and expected in lines[0]


# --- status beside a run --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_status_beside_a_run(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another process explains, slowly; meanwhile `status` tells spent, remaining, pace and expected end."""
    path = store.path
    store.close()
    config = tmp_path / "autointerp.toml"
    seen: dict[str, Any] = {}
    said = ""
    brain = World()
    with LlmServer(PrefixCache(brain, block=16, smallest=0), latency=1.0) as server:
        config.write_text(
            f'[explain]\nexplainer = "contexts"\nreply = "text"\nmodel = "m"\nbase_url = "{server.url}"\n'
            f'[score]\nscorers = ["detection"]\ncontexts = 4\nmodel = "m"\nbase_url = "{server.url}"\n'
            "[llm]\nmax_connections = 2\n[llm.prices.m]\ninput = 1.0\ncached_input = 0.1\noutput = 2.0\n"
            "[budget]\nmax_usd = 1.5\nmax_requests = 5000\n"
            f'[store]\npath = "{path}"\nsnapshot_seconds = 0.1\n'
        )
        command = [sys.executable, "-m", "autointerp", "explain", "-c", str(config), "--features", "0-4"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            end = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
                if seen or not snapshot_path_of(path).exists():  # a reader must not be there before the writer
                    continue
                code, out, _ = run(capsys, "status", "--store", str(path), "--json")
                found = json.loads(out) if code == 0 else {}
                if (found.get("last_run") or {}).get("labels", {}).get("per_minute"):
                    _, said, _ = run(capsys, "status", "--store", str(path))
                    seen = found if "explain (running)" in said else {}
            assert process.wait(60) == 0, process.stdout and process.stdout.read()
    assert seen, "a pace was seen while it ran"
    progress = seen["last_run"]
    assert seen["snapshot_age_s"] is not None and (progress["command"], progress["status"]) == ("explain", "running")
    assert 0 < progress["usd"] < 0.1 and progress["requests"] >= 1
    assert progress["remaining"]["max_usd"] == pytest.approx(1.5 - progress["usd"])
    assert progress["remaining"]["max_requests"] == 5000 - progress["requests"]
    labels = progress["labels"]
    assert 1 <= labels["pending"] <= 4, "of the five chosen"
    assert labels["minutes_left"] == pytest.approx(labels["pending"] / labels["per_minute"])
    assert progress["minutes_left"] == labels["minutes_left"] and progress["ends_by"] == "done"
    assert progress["expected_end"] > seen["runs"][0]["started_at"].replace(" ", "T")[:19]
    assert re.search(r"last run: explain \(running\), \$0\.\d+ for \d+ requests; \d+ calls, \d+ labels a minute", said)
    assert re.search(r"left of its budget: max_usd 1\.\d+; max_requests 4,99\d", said)
    assert re.search(r"to do: \d labels; expected end at this pace 20\d\d-\d\d-\d\d \d\d:\d\d", said)
    code, out, _ = run(capsys, "status", "--store", str(path), "--json")
    over = json.loads(out)["last_run"]
    assert (over["status"], over["labels"]["pending"], over["expected_end"]) == ("ok", 0, None)
