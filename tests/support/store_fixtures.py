"""A small store with evidence, and makers of records, for the tests of autointerp.store."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from autointerp.records import CallRecord, Explanation, Prediction, Score, stable_id
from autointerp.store import Store
from autointerp.store.connection import sql_file

ROOT = Path(__file__).resolve().parents[2]
TOKENS = ["<bos>", "The", " cat", " sat", " on", " the", " mat", "."]
N_FEATURES = 6
STATUSES = ["live", "live", "rare", "dead", "live", "no_heldout"]
SPLITS = ["explain", "select", "report"]
KINDS = [
    ("top", None, 0), ("top", None, 1), ("sampled", None, 0), ("sampled", None, 1), ("negative", "random", 0),
    ("negative", "same_token", 0), ("negative", "neighbour", 0),
]  # fmt: skip


def add_dictionary(store: Store, name: str = "layer3", **changed: Any) -> int:
    values: dict[str, Any] = {
        "name": name, "model": "demo", "revision": "abc", "hookpoint": "transformer.h.3", "output_hookpoint": None,
        "architecture": "topk", "d_in": 8, "d_out": 8, "d_sae": N_FEATURES, "sae_sha256": "sae", "config": {"k": 2},
        "tokenizer_sha256": "tok",
    }  # fmt: skip
    return store.add_dictionary(**{**values, **changed})


def add_features(store: Store, dictionary_id: int, harvest_id: int, statuses: list[str] = STATUSES) -> None:
    n = len(statuses)
    store.replace_features(
        dictionary_id,
        harvest_id,
        {
            "feature": np.arange(n), "status": statuses, "density": np.linspace(0.01, 0.5, n),
            "token_density": np.linspace(0.001, 0.05, n), "n_active_tiles": np.arange(n) * 10,
            "n_active_tokens": np.arange(n) * 12, "max_activation": np.arange(n) + 0.5,
            "mean_activation": np.arange(n) / 2.0, "explain_max_activation": np.arange(n) + 0.25,
            "histogram_edges": [np.array([0.5, 1.0, 2.0], dtype=np.float32)] * n, "histogram_counts": [[3, 1]] * n,
        },
    )  # fmt: skip


def write_evidence(file: Path, store_id: str | None, dictionary_id: int, harvest_id: int, corpus_id: int = 1) -> None:
    """Writes two windows per split, and for each feature and split two top contexts, two sampled contexts and three
    negatives (one per tier)."""
    with duckdb.connect(str(file)) as con:
        con.execute(sql_file("evidence_schema.sql"))
        con.begin()
        con.execute("INSERT INTO harvest_info VALUES (?, ?, ?, ?, 'sae', 0, NULL)",
                    [harvest_id, dictionary_id, corpus_id, store_id])  # fmt: skip
        for window in range(6):
            con.execute(
                "INSERT INTO windows VALUES (?, ?, ?, ?, 1, ?, ?, ?)",
                [window, corpus_id, f"doc{window}", 7 * (window % 2), SPLITS[window // 2], list(range(8)), TOKENS],
            )
        context_id = 0
        for feature in range(N_FEATURES):
            if STATUSES[feature] == "dead":
                continue
            for s, split in enumerate(SPLITS):
                for kind, tier, rank in KINDS:
                    silent = kind == "negative"
                    con.execute(
                        "INSERT INTO context_rows VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                        [context_id, dictionary_id, harvest_id, feature, split, kind, tier, None if silent else 9, 1.0,
                         rank, 2 * s + rank, 2, 4, 3, [] if silent else [1, 3], [] if silent else [0.5, feature + 1.0],
                         0.0 if silent else feature + 1.0, 1000 * context_id],
                    )  # fmt: skip
                    context_id += 1
        con.commit()


def filled(path: Path) -> tuple[Store, int, int]:
    """An open store with one dictionary of six features and its evidence: (store, dictionary_id, harvest_id)."""
    store = Store.open(path, create=True)
    corpus_id = store.add_corpus("stdlib", {"context_length": 8}, "tok", 6, 42)
    dictionary_id = add_dictionary(store)
    harvest_id = store.add_harvest(dictionary_id, corpus_id, 42, {"context_tokens": 4})
    new = path.with_name("new-evidence.duckdb")
    write_evidence(new, store.store_id, dictionary_id, harvest_id, corpus_id)
    store.replace_evidence(new)
    add_features(store, dictionary_id, harvest_id)
    return store, dictionary_id, harvest_id


def copied(template: Path, folder: Path) -> Path:
    """A copy of a closed store, its ledger and its evidence, in `folder`."""
    for file in template.parent.iterdir():
        shutil.copy(file, folder / file.name)
    return folder / template.name


def call(i: int, **changed: Any) -> CallRecord:
    values: dict[str, Any] = {
        "request_sha256": f"{i:064x}", "sample": 0, "run_id": "run", "dictionary_id": 1, "feature": i,
        "stage": "explain", "model": "gpt", "status": "ok", "reply": f'{{"n": {i}}}', "input_tokens": 10,
        "cached_tokens": 2, "output_tokens": 3, "cost_usd": 0.25, "latency_s": 0.5,
    }  # fmt: skip
    return CallRecord(**{**values, **changed})


def explanation(feature: int, **changed: Any) -> Explanation:
    values: dict[str, Any] = {
        "dictionary_id": 1, "feature": feature, "harvest_id": 1, "explainer": "contexts", "model": "gpt",
        "template_sha256": "t", "evidence_sha256": "e", "seed": 0, "text": f"words about {feature}", "status": "ok",
    }  # fmt: skip
    values.update(changed)
    if values["status"] != "ok":
        values["text"] = None
    key = [values[k] for k in ("dictionary_id", "feature", "explainer", "model", "template_sha256", "seed")]
    values.setdefault("explanation_id", stable_id(*key))
    return Explanation(**values)


def score(of: Explanation, **changed: Any) -> Score:
    values: dict[str, Any] = {
        "dictionary_id": of.dictionary_id, "feature": of.feature, "explanation_id": of.explanation_id,
        "harvest_id": of.harvest_id, "scorer": "simulation", "method": "numbers", "control": None, "part": "report",
        "model": "gpt", "template_sha256": "s", "seed": 0, "value": 0.5, "ci_low": 0.25, "ci_high": 0.75, "n": 30,
        "n_failed": 0, "status": "ok",
    }  # fmt: skip
    values.update(changed)
    if values["status"] != "ok":
        values.update(value=None, ci_low=None, ci_high=None)
    key = [values[k] for k in ("explanation_id", "scorer", "method", "control", "part", "model", "seed")]
    values.setdefault("score_id", stable_id(*key))
    return Score(**values)


def prediction(context_id: int, **changed: Any) -> Prediction:
    values = {"context_id": context_id, "truth": [0.0, 1.0], "predicted": [0.5, 2.0], "status": "ok"}
    return Prediction(**{**values, **changed})


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that runs `code` with the project and this folder on its path; arguments are in sys.argv."""
    head = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
