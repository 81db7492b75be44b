"""A planted dictionary through the whole pipeline: features that fire on one known token each, and nowhere else.

The SAE reads the token embeddings. Feature f's encoder is the embedding of its token, scaled so that the token's own
pre-activation is 1 and every other token's, by the bias, below 0: the truth is known from the text alone.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.llm_server import BrainReply, Fault, LlmServer
from test_cli_llm import TokenReader

from autointerp.ask.job import Job
from autointerp.config import BudgetConfig
from autointerp.config_file import from_table
from autointerp.llm.budget import Budget
from autointerp.model.load import load_model, load_tokenizer
from autointerp.sae.formats import save_saelens
from autointerp.sae.sae import Sae
from autointerp.score import scoring
from autointerp.stages import pipeline
from autointerp.store import Selection, Store
from autointerp.terminal import Terminal

WORDS = [" the", " and", " with", " from", " twice", " self"]
FILLERS = ["harbour", "lay", "quiet", "under", "a", "low", "grey", "sky", "boats", "turned", "slowly", "ropes", "lamps"]
BIAS = -0.9


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
    """A folder with corpus, SAE and a merged store."""
    folder = tmp_path_factory.mktemp("planted")
    config = from_table(table(folder, tiny_gpt2))
    tokenizer, loaded = load_tokenizer(config.model), load_model(config.model)
    embedding = loaded.model.get_input_embeddings().weight.detach().float()
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in WORDS]
    assert all(len(i) == 1 for i in ids), "every planted word must be one token"
    rows = embedding[torch.tensor([i[0] for i in ids])]
    W_enc = (rows / rows.square().sum(1, keepdim=True)).T.contiguous()
    others = embedding @ W_enc
    others[[i[0] for i in ids], range(len(ids))] = 0
    assert float(others.max()) < -BIAS, "another token reaches a planted feature's threshold"
    W_dec = torch.nn.functional.normalize(rows, dim=1)
    n = len(WORDS)
    sae = Sae(W_enc, torch.full((n,), BIAS), W_dec, torch.zeros(embedding.shape[1]), k=n)
    save_saelens(sae, folder / "sae", {"hook_name": "transformer.wte"})
    (folder / "texts").mkdir()
    rng = random.Random(0)
    for i in range(150):
        words = [rng.choice(FILLERS if rng.random() < 0.7 else [w.strip() for w in WORDS]) for _ in range(60)]
        (folder / "texts" / f"{i}.txt").write_text(f"text {i}: " + " ".join(words))
    pipeline.harvest(config, None, Terminal())
    return folder


def table(folder: Path, model: Path, url: str = "http://127.0.0.1:9/v1") -> dict[str, Any]:
    return {
        "model": {"name": str(model), "dtype": "float32"},
        "corpus": {"source": str(folder / "texts"), "context_length": 32},
        "sae": [{"name": "planted", "hookpoint": "transformer.wte", "path": str(folder / "sae")}],
        "harvest": {"context_tokens": 16, "top_contexts": 6, "sampled_contexts": 6, "negatives": 6},
        "explain": {"explainer": "combined", "model": "m", "base_url": url},
        "score": {"model": "m", "base_url": url, "contexts": 5, "bootstrap": 200},
        "llm": {"requests_per_minute": 60000.0},
        "store": {"path": str(folder / "planted.duckdb")},
    }


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
