"""A store whose own text can be scanned: a harvest of a folder of texts by a real model, with labels of `patterns` and
their scores."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from autointerp.config import Config, CorpusConfig, ExplainConfig, ModelConfig, ScoreConfig, StoreConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import read_documents
from autointerp.corpus.windows import work_units
from autointerp.explain.explaining import explain
from autointerp.harvest.merge import CorpusFacts, bounds_of, merge
from autointerp.harvest.shards import HarvestFolder
from autointerp.harvest.text_pass import identity
from autointerp.score.scoring import score
from autointerp.store.store import Store
from support.evidence_helpers import BATCH_TOKENS, POINT, SMALL, WORDS, Setup
from support.known_words import job

HARVEST = replace(SMALL, negative_pool_windows=2000, sampled_contexts=40)


class ScannedWorld(NamedTuple):
    store: Path
    config: Config
    toml: Path
    text: Path


def scanned_world(model: Path, root: Path) -> ScannedWorld:
    """In the folder `root`, by the model in the folder `model`."""
    text = root / "text"
    text.mkdir()
    rng = random.Random(7)
    for i in range(12):
        (text / f"t{i:02}.txt").write_text(" ".join(rng.choices(WORDS, k=rng.choice((3, 60, 1000)))), encoding="utf-8")
    corpus = CorpusConfig(source=str(text), context_length=26, prepend_bos="always", heldout_fraction=0.6)
    setup = Setup(model)
    documents = read_documents(corpus, CorpusReport())
    setup.units = list(work_units(documents, setup.loaded.tokenizer, replace(corpus, unit_characters=20_000)))
    what = identity(setup.loaded, POINT, "sha", corpus, "print", HARVEST, BATCH_TOKENS)
    folder = HarvestFolder(root / "work", what, bounds_of(HARVEST))
    setup.harvest(folder, HARVEST)
    path = root / "x.duckdb"
    with Store.open(path, create=True) as store:
        sha = setup.loaded.tokenizer_sha256
        number = store.add_dictionary(
            name="a", model="m", revision="r", hookpoint=str(POINT), architecture="topk", d_in=setup.sae.d_in,
            d_out=setup.sae.d_out, d_sae=setup.sae.d_sae, sae_sha256="sha", tokenizer_sha256=sha, config={},
        )  # fmt: skip
        merge(store, number, folder, setup.sae, setup.text, HARVEST, CorpusFacts(str(text), {}, sha))
        asyncio.run(explain(job(store), ExplainConfig(explainer="patterns")))
        asyncio.run(score(job(store), "patterns", ScoreConfig(contexts=4)))
    config = Config(model=ModelConfig(name=str(model)), store=StoreConfig(path=str(path)))
    toml = root / "autointerp.toml"
    toml.write_text(f'[model]\nname = "{model}"\n[store]\npath = "{path}"\n')
    return ScannedWorld(path, config, toml, text)
