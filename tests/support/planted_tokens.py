"""A planted dictionary: features that fire on one known token each, and nowhere else.

The SAE reads the token embeddings. Feature f's encoder is the embedding of its token, scaled so that the token's own
pre-activation is 1 and every other token's, by the bias, below 0: the truth is known from the text alone.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from autointerp.config_file import from_table
from autointerp.model.load import load_model, load_tokenizer
from autointerp.sae.formats import save_saelens
from autointerp.sae.sae import Sae
from autointerp.stages import pipeline
from autointerp.terminal import Terminal

WORDS = [" the", " and", " with", " from", " twice", " self"]

FILLERS = ["harbour", "lay", "quiet", "under", "a", "low", "grey", "sky", "boats", "turned", "slowly", "ropes", "lamps"]

BIAS = -0.9


def table(folder: Path, model: Path, url: str = "http://127.0.0.1:9/v1") -> dict[str, Any]:
    return {
        "model": {"name": str(model), "dtype": "float32"},
        "corpus": {"source": str(folder / "texts"), "context_length": 32},
        "sae": [{"name": "planted", "hookpoint": "transformer.wte", "path": str(folder / "sae"), "reading": "as read"}],
        "harvest": {"context_tokens": 16, "top_contexts": 6, "sampled_contexts": 6, "negatives": 6},
        "explain": {"explainer": "combined", "model": "m", "base_url": url},
        "score": {"model": "m", "base_url": url, "contexts": 5},
        "llm": {"requests_per_minute": 60000.0},
        "store": {"path": str(folder / "planted.duckdb")},
    }


def planted_in(folder: Path, model: Path) -> Path:
    """Puts corpus, SAE and a merged store into the folder, and returns it."""
    config = from_table(table(folder, model))
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
