"""The control `token_lookup`: whose label stands in, and that every scorer of labels takes it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.known_words import WORDS, World, choice_question, job, planted_store
from support.llm_server import LlmServer

from autointerp.config import ExplainConfig, ScoreConfig
from autointerp.errors import InputError
from autointerp.explain.explaining import explain
from autointerp.records import Explanation
from autointerp.score.controls import stand_ins
from autointerp.score.scoring import score
from autointerp.store import Selection, Store


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "planted.duckdb"
    with planted_store(path) as made:
        asyncio.run(explain(job(made), ExplainConfig(explainer="patterns")))
    return path


def labels(store: Store, explainer: str = "patterns") -> list[Explanation]:
    return list(store.explanations_to_score(1, explainer, "x", None, "", "", "report", Selection()))


def told(store: Store) -> list[Explanation]:
    return [e for e in stand_ins(job(store), "patterns", 0, "token_lookup", labels(store)) if e is not None]


def test_the_label_is_the_same_whether_stored_or_made_for_the_purpose(store: Store) -> None:
    made = told(store)
    assert labels(store, "token_lookup") == []  # nothing was stored
    for e, word in zip(made, WORDS, strict=True):
        assert e.explainer == "token_lookup" and e.text is not None and f"`{word.strip()}`" in e.text
    asyncio.run(explain(job(store, features="0-2"), ExplainConfig(explainer="token_lookup", seed=3)))
    mixed = told(store)
    stored = labels(store, "token_lookup")
    assert mixed[:3] == stored and mixed[3:] == made[3:]
    assert [(e.text, e.rule) for e in mixed] == [(e.text, e.rule) for e in made]
    some = stand_ins(job(store), "patterns", 0, "token_lookup", labels(store))
    assert len(some) == len(WORDS) and list(some[1:5:2]) == [mixed[1], mixed[3]]


def test_every_scorer_of_labels_takes_it(store: Store) -> None:
    def run(config: ScoreConfig, control: str | None) -> None:
        assert asyncio.run(score(job(store, features="0-1"), "patterns", config, control)).failed == 0

    def values(scorer: str, method: str, control: str | None) -> list[float]:
        rows = store.rows(
            "SELECT value FROM scores WHERE scorer = ? AND method = ? AND control IS NOT DISTINCT FROM ?::VARCHAR "
            "AND part = 'report' ORDER BY feature", [scorer, method, control],
        )  # fmt: skip
        return [v for (v,) in rows]

    def judge(label: str, question: str, pieces: list[Any]) -> bool:
        """By the tokens that the label quotes, whichever label it is."""
        asked.append(label)
        marked = [p[0] for p in pieces if isinstance(p, list)] or ["".join(pieces)]
        return all(any(f" {w.strip()}" in m for w in WORDS if f"`{w.strip()}`" in label) for m in marked)

    def predict(label: str, tokens: list[str]) -> list[int]:
        asked.append(label)
        return [9 * (f"`{t.strip()}`" in label) for t in tokens]

    asked: list[str] = []
    free = ScoreConfig(contexts=4)
    for control in (None, "token_lookup"):
        run(free, control)
    # The rule that stands in knows tokens only, not that ` the` before one doubles the activation.
    assert all(a > b > 0.5 for a, b in zip(values("simulation", "rule", None),
                                           values("simulation", "rule", "token_lookup"), strict=True))  # fmt: skip
    with LlmServer(World(predict, choose=judge)) as server:
        paid = ScoreConfig(
            contexts=2, model="test-model", embedding_model="embedder", base_url=server.url,
            method="numbers", scorers=("simulation", "detection", "fuzzing", "embedding", "intruder"),
        )  # fmt: skip
        run(paid, "token_lookup")
        judged = [choice_question(b)[0] for b in server.requests
                  if "You judge" in b.get("messages", [{"content": ""}])[0]["content"]]  # fmt: skip
    assert judged and {*asked, *judged} == {e.text for e in told(store)[:2]}
    methods = {
        "simulation": "numbers", "detection": "answers_ordinary", "fuzzing": "answers_ordinary",
        "embedding": "cosine_ordinary",
    }  # fmt: skip
    for scorer, method in methods.items():
        found = values(scorer, method, "token_lookup")
        assert len(found) == 2 and min(found) > 0.8, scorer
    assert values("intruder", "choice", None) == [] and store.check() == []


def test_a_random_model_is_another_run(store: Store) -> None:
    with pytest.raises(InputError, match="needs `autointerp run --control random_model`"):
        asyncio.run(score(job(store), "patterns", ScoreConfig(), "random_model"))
    with pytest.raises(InputError, match="no control 'tokens'; there are shuffled, neighbour_label, empty, token_loo"):
        asyncio.run(score(job(store), "patterns", ScoreConfig(), "tokens"))
