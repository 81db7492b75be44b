"""The free first pass: what a rule explains on the select part takes no call, and what is reported is untouched. A rule
explains what it predicts of text as it comes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from support.known_words import FILLERS, contexts, copy_of, count_tiles, job, planted_store
from support.llm_server import BrainReply, LlmServer

from autointerp.config import ExplainConfig
from autointerp.errors import InputError
from autointerp.explain.explaining import explain, forecast_explain
from autointerp.rules.patterns import Rule
from autointerp.store import Store

N = 4
N_TILES = 60
"""Of the select split; in PER_KIND of them a feature fires."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "planted.duckdb"
    planted_store(path, N).close()
    count_tiles(path, "select", N_TILES)
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Store:
    return copy_of(template, tmp_path / "x.duckdb")


@pytest.fixture
def server() -> LlmServer:
    with LlmServer(lambda *_: BrainReply("LABEL: something", input_tokens=1, output_tokens=1)) as server:
        yield server  # type: ignore[misc]


def config(server: LlmServer, above: float | None, explainer: str = "contexts") -> ExplainConfig:
    return ExplainConfig(explainer=explainer, model="m", base_url=server.url, reply="text", unless_patterns_above=above)


def select_scores(store: Store) -> dict[int, float]:
    """The correlation over all tokens of the select split, had it as many tiles of each kind as it has of one: written
    out, instead of weighted."""
    asyncio.run(explain(job(store), ExplainConfig(explainer="patterns")))
    found = {}
    for feature, text in store.rows("SELECT feature, rule FROM explanations WHERE explainer = 'patterns'"):
        own = contexts(feature, "select")
        firing = [c for c in own if c.kind == "sampled"]
        silent = [c for c in own if c.tier == "random"]
        tiles = firing * len(silent) + silent * (N_TILES - len(firing))
        truth = np.concatenate([c.activations for c in tiles])
        found[feature] = float(
            np.corrcoef(truth, [p for c in tiles for p in Rule.from_json(text).predict(c.tokens)])[0, 1]
        )
    return found


@pytest.mark.parametrize("labelled_before", [True, False])
def test_it_takes_those_at_or_above_the_threshold(
    store: Store, template: Path, tmp_path: Path, server: LlmServer, labelled_before: bool
) -> None:
    known = store if labelled_before else copy_of(template, tmp_path / "other.duckdb")
    values = select_scores(known)
    threshold = sorted(values.values())[N // 2] - 1e-9
    good = {feature for feature, value in values.items() if value >= threshold}
    assert 0 < len(good) < N
    forecast = forecast_explain(job(store), config(server, threshold))
    assert (forecast.features, forecast.calls, forecast.free) == (N, N - len(good), len(good))
    outcome = asyncio.run(explain(job(store), config(server, threshold)))
    assert outcome.statuses == {"ok": N} and f"{len(good)} features" in outcome.notes[0]
    assert len(server.requests) == N - len(good)
    rows = store.rows("SELECT feature, text, derived_from FROM explanations WHERE explainer = 'contexts' "
                      "AND model = 'patterns' ORDER BY feature")  # fmt: skip
    assert {row[0] for row in rows} == good
    bases = {row[0]: row for row in store.rows("SELECT explanation_id, feature, text FROM explanations "
                                               "WHERE explainer = 'patterns'")}  # fmt: skip
    assert [bases[ids[0]][1:] for _, _, ids in rows] == [(feature, text) for feature, text, _ in rows]
    again = asyncio.run(explain(job(store), config(server, threshold)))
    assert again.pending == 0 and len(server.requests) == N - len(good)
    # A higher bar sends them to the LLM after all.
    asyncio.run(explain(job(store), config(server, None)))
    assert len(server.requests) == N


def test_a_label_by_patterns_keeps_its_output_side(store: Store, server: LlmServer) -> None:
    """Nearly any of the fillers follows a planted word now and then."""
    n = len(FILLERS[:10])
    store.insert_vocab_projection(
        1, feature=np.repeat(np.arange(N), n), sign=np.ones(N * n), rank=np.tile(np.arange(n), N),
        token_id=np.tile(np.arange(n), N), token=FILLERS[:10] * N, logit=np.ones(N * n),
    )  # fmt: skip
    assert asyncio.run(explain(job(store), config(server, 0.01))).statuses == {"ok": N} and not server.requests
    told = {
        explainer: store.rows(
            "SELECT text, output_text FROM explanations WHERE explainer = ? ORDER BY feature", [explainer]
        )
        for explainer in ("contexts", "patterns")
    }
    assert told["contexts"] == told["patterns"] and all(output for _, output in told["patterns"])


def test_the_report_part_decides_nothing(store: Store, server: LlmServer) -> None:
    """Whatever happens to the report contexts, the same features are taken."""
    values = select_scores(store)
    threshold = sorted(values.values())[N // 2]
    original = store.contexts_of
    seen: list[str] = []

    def spied(*arguments, **named):  # type: ignore[no-untyped-def]
        seen.append(arguments[3])
        return original(*arguments, **named)

    store.contexts_of = spied  # type: ignore[method-assign]
    asyncio.run(explain(job(store), config(server, threshold)))
    assert "select" in seen and "report" not in seen


def test_an_explainer_of_what_follows_is_not_replaced(store: Store, server: LlmServer) -> None:
    with pytest.raises(InputError, match="vocab_projection"):  # it lacks its evidence: patterns does not fill in
        asyncio.run(explain(job(store), config(server, 0.01, "vocab_projection")))
    with pytest.raises(InputError, match="unless_patterns_above"):
        config(server, 1.5)


def test_a_harvest_that_did_not_count_its_tiles_is_refused(store: Store, server: LlmServer) -> None:
    with store.transaction() as con:
        con.execute("UPDATE harvests SET report = '{}'")
    with pytest.raises(InputError, match="did not count how many tiles"):
        asyncio.run(explain(job(store), config(server, 0.5)))
    assert not server.requests
