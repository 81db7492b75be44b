"""In which order features are worked on, and that a budget that ends early is spent in it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from support.known_words import copy_of, job
from support.llm_server import BrainReply, LlmServer
from support.store_fixtures import explanation, score

from autointerp.config import BudgetConfig, ExplainConfig, ScoreConfig
from autointerp.errors import InputError, StoppedError
from autointerp.explain import explaining
from autointerp.score import scoring
from autointerp.store import Selection, Store

N = 6


@pytest.fixture
def store(bare_world: Path, tmp_path: Path) -> Store:
    store = copy_of(bare_world, tmp_path / "x.duckdb")
    store.con.execute("UPDATE features SET density = [0.1, 0.4, 0.2, 0.4, 0.05, 0.3][feature + 1]")
    return store


def order(store: Store, name: str | None, **more: object) -> list[int]:
    return store.selected_features(1, Selection(order=name, **more))  # type: ignore[arg-type]


def test_orders(store: Store) -> None:
    assert order(store, None) == list(range(N))
    assert order(store, "density") == [1, 3, 5, 2, 0, 4]
    assert order(store, "density", limit=2) == [1, 3], "the first so many of this order"
    drawn = order(store, "random")
    assert sorted(drawn) == list(range(N)) and drawn == order(store, "random")
    assert len({tuple(order(store, "random", seed=s)) for s in range(5)}) > 1
    assert order(store, "random", limit=3) == drawn[:3]
    with pytest.raises(InputError, match="Did you mean density"):
        order(store, "densety")


def test_the_worst_label_comes_first_and_none_before_it(store: Store) -> None:
    labels = [explanation(f, explainer="patterns") for f in range(N)]
    store.insert_explanations(labels)
    values = [0.9, 0.2, 0.5, None, 0.7]
    store.insert_scores(
        [score(labels[f], value=v, status="ok" if v else "constant_truth") for f, v in enumerate(values)]
    )
    assert order(store, "score") == [3, 5, 1, 2, 4, 0]
    # What counts is neither a control, nor the select part, nor a part of a score; and the latest.
    store.insert_scores(
        [score(labels[0], value=0.0, control="shuffled"), score(labels[0], value=0.0, part="select"),
         score(labels[0], value=0.0, scorer="simulation_random"), score(labels[2], value=0.1, seed=1)]
    )  # fmt: skip
    assert order(store, "score") == [3, 5, 2, 1, 4, 0]
    store.set_label_choice(1, "combined", "simulation")  # a new explainer has no labels yet: the old scores guide it
    assert order(store, "score") == [3, 5, 2, 1, 4, 0]


def test_a_budget_that_ends_early_is_spent_on_the_first(store: Store) -> None:
    config = ExplainConfig(explainer="contexts", model="m", reply="text", shape_labels=False)
    free = ExplainConfig(explainer="patterns")
    with LlmServer(lambda *_: BrainReply("LABEL: something", input_tokens=1, output_tokens=1)) as server:
        here = replace(config, base_url=server.url)
        work = job(store, BudgetConfig(max_requests=2), max_connections=1)
        with pytest.raises(StoppedError):
            asyncio.run(explaining.explain(replace(work, selection=Selection(order="density")), here))
    assert store.rows("SELECT feature FROM explanations ORDER BY sequence") == [(1,), (3,)]
    asyncio.run(explaining.explain(replace(job(store), selection=Selection(order="density")), free))
    scored = replace(job(store), selection=Selection(order="density", limit=4))
    asyncio.run(scoring.score(scored, "patterns", ScoreConfig(contexts=2)))
    done = store.rows("SELECT feature FROM scores WHERE scorer = 'simulation' AND part = 'report' "
                      "AND control IS NULL ORDER BY sequence")  # fmt: skip
    assert done == [(1,), (3,), (5,), (2,)]
