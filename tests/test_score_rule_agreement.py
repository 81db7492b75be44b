"""Whether a label's words and its rule agree, by judges who follow the rule, contradict it, or toss a coin."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.known_words import copy_of, job
from support.llm_server import BrainReply, LlmServer
from support.scanned_world import ScannedWorld

from autointerp.config import ScoreConfig
from autointerp.rules.patterns import Rule
from autointerp.score.natural import CLAIM
from autointerp.score.scoring import forecast_score, score
from autointerp.store import Store

SCORER = "rule_agreement"


@pytest.fixture
def store(scanned: ScannedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_waits: None) -> Any:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    with copy_of(scanned.store, tmp_path / "y.duckdb") as opened:
        yield opened


class Judge:
    """Answers what `say(whether the rule of the label claims the text)` gives."""

    def __init__(self, store: Store, say: Callable[[bool], bool]) -> None:
        self.say = say
        self.rules = {row.text: Rule.from_json(row.rule) for row in store.rule_labels(1, None)}
        tiles = [(tile.tokens, tile.begins) for tile in store.known_tiles(1, "report")]
        contexts = store.contexts_of(1, 1, range(48), "report", {"sampled": None})
        tiles += [(c.tokens, c.begins) for some in contexts.values() for c in some]
        self.tiles = {"".join(tokens): (tokens, begins) for tokens, begins in tiles}

    def __call__(self, kind: str, body: dict[str, Any], attempt: int) -> BrainReply:
        lines = body["messages"][1]["content"].splitlines()
        label = json.loads(
            next(line for line in lines if line.startswith("description: ")).removeprefix("description: ")
        )
        shown = [json.loads(line.split(": ", 1)[1]) for line in lines if line[:1].isdigit()]
        answers = []
        for excerpt in shown:
            text = excerpt if isinstance(excerpt, str) else "".join(p for p in excerpt if isinstance(p, str))
            tokens, begins = self.tiles[text]
            answers.append(int(self.say(max(self.rules[label].predict(tokens, begins)) >= CLAIM)))
        return BrainReply(json.dumps(answers))


def scored(store: Store, say: Callable[[bool], bool], **more: Any) -> dict[str, list[tuple[Any, ...]]]:
    with LlmServer(Judge(store, say)) as server:
        config = ScoreConfig(scorers=(SCORER,), model="m", base_url=server.url, contexts=4, **more)
        forecast = forecast_score(job(store), "patterns", config)
        asyncio.run(score(job(store), "patterns", config))
        assert forecast.calls == pytest.approx(len(server.requests), rel=0.3)
        sent = len(server.requests)
        asyncio.run(score(job(store), "patterns", config))
        assert len(server.requests) == sent
    found: dict[str, list[tuple[Any, ...]]] = {}
    for name, *row in store.rows(
        f"SELECT scorer, value, ci_low, ci_high, n, status FROM scores WHERE starts_with(scorer, '{SCORER}') "
        "AND control IS NULL ORDER BY feature"
    ):
        found.setdefault(name, []).append(tuple(row))
    return found


def test_a_judge_who_follows_the_rule_agrees_with_it(store: Store) -> None:
    found = scored(store, lambda claimed: claimed)
    ok = [row for row in found[SCORER] if row[-1] == "ok"]
    assert len(ok) > 20 and all(value == 1.0 and low < 1.0 and n <= 16 for value, low, _, n, _ in ok)
    assert {row[-1] for row in found[SCORER]} <= {"ok", "no_claim", "no_contexts"}
    assert all(row[0] == 1.0 for part in ("sensitivity", "specificity") for row in found[f"{SCORER}_{part}"])
    assert store.rows(f"SELECT count(*) FROM explainer_leaderboard WHERE scorer = '{SCORER}'")[0][0] == 1
    assert store.check() == []


def test_one_who_contradicts_it_does_not_and_a_coin_is_at_chance(store: Store, tmp_path: Path) -> None:
    assert {row[0] for row in scored(store, lambda claimed: not claimed)[SCORER] if row[-1] == "ok"} == {0.0}
    coin = random.Random(3)
    values = [row[0] for row in scored(store, lambda claimed: coin.random() < 0.5, seed=1)[SCORER]]
    told = [value for value in values if value not in (None, 0.0)]
    assert 0.4 < sum(told) / len(told) < 0.6


def test_a_label_without_a_rule_has_no_agreement(store: Store) -> None:
    (label,) = store.explanations_of(1, [3])[3]
    store.insert_explanations([replace(label, explanation_id="words", explainer="combined", rule=None)])
    with LlmServer(Judge(store, bool)) as server:
        config = ScoreConfig(scorers=(SCORER,), model="m", base_url=server.url)
        outcome = asyncio.run(score(job(store), "combined", config))
        assert (dict(outcome.statuses), outcome.failed, server.requests) == ({"no_rule": 1}, 0, [])
