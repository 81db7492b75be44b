"""Labels with a seed from an endpoint that refuses the field."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from support.known_words import WORDS, World, job, strongest
from support.llm_server import BrainReply, Fault, LlmServer

from autointerp.ask.job import Outcome
from autointerp.config import Config, ExplainConfig, ScoreConfig
from autointerp.explain.best_of_n import TEMPERATURE
from autointerp.explain.explaining import explain
from autointerp.stages.labelling import describe_endpoint
from autointerp.store import Store


@pytest.fixture
def planted(bare_world: Any) -> Any:
    return bare_world


NOTE = "drawn without its seed, which the endpoint refuses"


def draws(body: dict[str, Any]) -> str:
    """The truth at temperature 0 for half of the words, and where the temperature lets it choose, another draw each
    time."""
    true = strongest(body)
    if body.get("temperature") == 0:
        return f"the word {true}" if len(true) > 4 else "nothing"
    return f"the word {random.Random(str(body['messages'])).choice([true, 'moon', 'sun'])}"


def refusing(status: str) -> World:
    def spoil(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault | None:
        return Fault(status) if "seed" in body else None

    return World(label=draws, spoil=spoil)


def run(store: Store, server: LlmServer, said: list[str], explainer: str = "best_of_n", **changed: Any) -> Outcome:
    settings = {"base": "contexts", "reply": "text", "samples": 4, **changed}
    config = ExplainConfig(explainer=explainer, model="m", base_url=server.url, **settings)
    score = ScoreConfig(model="m", base_url=server.url, contexts=3, scorers=("detection",))
    return asyncio.run(explain(replace(job(store), say=said.append), config, score))


@pytest.mark.parametrize("status", ["400", "403"])
def test_samples_without_a_seed(store: Store, status: str) -> None:
    said: list[str] = []
    with LlmServer(refusing(status)) as server:
        assert run(store, server, said).statuses == {"ok": len(WORDS)}
        sent = len(server.requests)
        assert run(store, server, said).pending == 0 and len(server.requests) == sent, "nothing is asked again"
        asked = [body for body in server.requests if "You study" in str(body["messages"])]
        refused = [body for body in server.requests if "seed" in body]
    assert len(refused) == 1, "the field is tried once, not for every label"
    assert Counter(body["temperature"] for body in asked) == {0.0: len(WORDS), TEMPERATURE: 3 * len(WORDS)}
    assert [line for line in said if "refuses `seed`" in line] == said and len(said) == 1
    samples = store.dicts("SELECT * FROM explanations WHERE explainer = 'contexts' ORDER BY feature, seed")
    assert Counter(row["seed"] for row in samples) == dict.fromkeys(range(4), len(WORDS))
    assert {(row["seed"] > 0, row["error"]) for row in samples} == {(False, None), (True, NOTE)}
    several = [{row["text"] for row in samples if row["feature"] == feature} for feature in range(len(WORDS))]
    assert max(map(len, several)) > 1, "they are different draws"
    best = store.dicts("SELECT * FROM explanations WHERE explainer = 'best_of_n' ORDER BY feature")
    for row, texts in zip(best, several, strict=True):
        assert row["text"] in texts
        if f"the word {WORDS[row['feature']].strip()}" in texts:
            assert row["text"] == f"the word {WORDS[row['feature']].strip()}"
    assert store.rows("SELECT count(*) FROM llm_calls WHERE status NOT IN ('ok')") == [(0,)]


def test_an_endpoint_that_takes_a_seed_gets_it(store: Store) -> None:
    said: list[str] = []
    with LlmServer(World(label=draws)) as server:
        assert run(store, server, said, samples=2).statuses == {"ok": len(WORDS)}
        seeds = Counter(body.get("seed") for body in server.requests if "You study" in str(body["messages"]))
    assert seeds == {None: len(WORDS), 1: len(WORDS)} and said == []
    assert store.rows("SELECT DISTINCT error FROM explanations WHERE explainer = 'contexts'") == [(None,)]


def test_a_seed_of_the_configuration_and_a_template_without_a_fence(store: Store) -> None:
    """Two seeds are two samples, even where their requests are equal."""
    said: list[str] = []
    with LlmServer(refusing("400")) as server:
        for seed in (2**32 - 1, 7):
            outcome = run(store, server, said, "contexts", seed=seed, temperature=None)
            assert outcome.statuses == {"ok": len(WORDS)}
    rows = store.rows("SELECT DISTINCT seed, error FROM explanations ORDER BY seed")
    assert rows == [(7, NOTE), (2**32 - 1, NOTE)]
    assert store.rows("SELECT DISTINCT sample FROM llm_calls WHERE stage = 'explain' ORDER BY 1") == [
        (7,),
        (2**31 - 1,),
    ]
    assert len(said) == 2


def test_the_doctor_says_so_before_a_run() -> None:
    with LlmServer(refusing("400")) as server:
        settings = ExplainConfig(explainer="best_of_n", model="m", base_url=server.url, temperature=0.5)
        assert "refuses `seed`" in asyncio.run(describe_endpoint(Config(), settings))
        plain = replace(settings, explainer="contexts")
        assert "seed" not in asyncio.run(describe_endpoint(Config(), plain))
