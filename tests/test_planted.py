"""A planted dictionary (see support/planted_tokens.py) through the whole pipeline."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.llm_server import BrainReply, Fault, LlmServer
from support.planted_tokens import BIAS, WORDS, planted_in, table
from support.token_reader import TokenReader

from autointerp.ask.job import Job
from autointerp.config import BudgetConfig
from autointerp.config_file import from_table
from autointerp.llm.budget import Budget
from autointerp.score import scoring
from autointerp.stages import pipeline
from autointerp.store import Selection, Store
from autointerp.terminal import Terminal


class Coin(TokenReader):
    """Labels like a reader, but predicts by chance."""

    def __call__(self, kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        reply = super().__call__(kind, body, attempt)
        if isinstance(reply, BrainReply) and "\t" in reply.text:
            rng = random.Random(str(body["messages"][-1]["content"]))
            lines = [line.rpartition("\t")[0] + f"\t{rng.choice((0, 10))}" for line in reply.text.splitlines()]
            return BrainReply(text="\n".join(lines))
        return reply


@pytest.fixture(scope="module")
def planted(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_in(tmp_path_factory.mktemp("planted"), tiny_gpt2)


def scores(folder: Path, model: Path, brain: TokenReader, control: str | None = None) -> list[float]:
    """Headline scores of all planted features, labelled and scored through the server."""
    with LlmServer(brain) as server:
        config = from_table(table(folder, model, server.url))
        pipeline.explain(config, None, Selection(), Terminal())
        if control is None:
            pipeline.score(config, None, Selection(), Terminal())
        else:
            with Store.open(Path(config.store.path)) as store:
                row = store.dictionary("planted")
                harvest_id = store.current_harvest(row.dictionary_id)
                assert harvest_id is not None
                job = Job(store, row.dictionary_id, harvest_id, "run", Selection(), config.llm, Budget(BudgetConfig()))
                asyncio.run(scoring.score(job, "combined", config.score, control))
    with Store.open(folder / "planted.duckdb", read_only=True) as store:
        found = store.rows(
            "SELECT value FROM scores WHERE scorer = 'simulation' AND part = 'report' "
            "AND control IS NOT DISTINCT FROM ?::VARCHAR ORDER BY feature",
            [control],
        )
    return [value for (value,) in found]


@pytest.fixture
def copy(planted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(planted, tmp_path / "planted"))


def test_the_harvest_finds_what_was_planted(planted: Path) -> None:
    with Store.open(planted / "planted.duckdb", read_only=True) as store:
        rows = store.rows("SELECT feature, tokens, activations, kind FROM contexts")
        assert store.rows("SELECT count(*) FROM features WHERE status = 'live'") == [(len(WORDS),)]
    for feature, tokens, activations, kind in rows:
        expected = [1 + BIAS if token == WORDS[feature] else 0.0 for token in tokens]
        assert activations == pytest.approx(expected, abs=1e-5)
        assert (kind == "negative") == (not any(expected))


def test_an_oracle_scores_about_one(copy: Path, tiny_gpt2: Path) -> None:
    values = scores(copy, tiny_gpt2, TokenReader())
    assert len(values) == len(WORDS)
    assert min(values) > 0.98


def test_a_coin_scores_about_zero(copy: Path, tiny_gpt2: Path) -> None:
    values = scores(copy, tiny_gpt2, Coin())
    assert len(values) == len(WORDS)
    assert abs(sum(values) / len(values)) < 0.15


def test_shuffled_labels_score_about_zero(copy: Path, tiny_gpt2: Path) -> None:
    values = [v for v in scores(copy, tiny_gpt2, TokenReader(), "shuffled") if v is not None]
    assert not values or abs(sum(values) / len(values)) < 0.2
