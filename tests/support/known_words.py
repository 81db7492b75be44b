"""Features that fire on known words: their evidence in a real store, and brains for the test server that answer from
the truth, at random, or wrongly."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from autointerp.ask.job import Job
from autointerp.config import BudgetConfig, LlmConfig
from autointerp.llm.budget import Budget
from autointerp.records import (
    ChangedToken,
    Context,
    Counterfactual,
    FeatureEvidence,
    PromotedToken,
    PrunedContext,
    RelatedWord,
    Split,
)
from autointerp.store import Selection, Store
from autointerp.store.connection import sql_file
from autointerp.store.evidence_file import LOOKED_AT, identity_of
from autointerp.store.findings import MethodRun
from autointerp.store.safety.paths import evidence_path_of
from support.llm_server import BrainReply, Fault, bag_of_words
from support.shown_excerpts import pieces_of
from support.store_fixtures import add_dictionary

WORDS = [" alpha", " beta", " gamma", " delta", " omega", " sigma"]
FILLERS = [" the", " a", " of", ",", "\n", " is", " tree", " seven", " (", ")", " ünï"]
RAW_MAX = 4.0
"""Raw activation of a planted word after ` the`. Elsewhere it is half of this."""
T = 16
"""Number of tokens in a context."""
PER_KIND = 8
SPLITS: list[Split] = ["explain", "select", "report"]
CHOICE_SCORERS = ("detection", "fuzzing")
MEASURED_SCORERS = ("generation", "output", "surprisal", "intervention", "embedding")
"""Scorers that also need the language model. `embedding` is one of them if its model is on this machine."""


def truth(feature: int, tokens: list[str]) -> list[float]:
    """The raw activations. Feature f fires on WORDS[f], fully after ` the`."""
    before = ["", *tokens]
    return [
        0.0 if t != WORDS[feature] else RAW_MAX if b == " the" else RAW_MAX / 2
        for b, t in zip(before, tokens, strict=False)
    ]


def text(seed: str, feature: int | None) -> list[str]:
    """T random tokens. The word of `feature`, if given, is once after ` the`, once elsewhere, and nowhere else."""
    rng = random.Random(seed)
    others = [w for i, w in enumerate(WORDS) if i != feature]
    tokens = [rng.choice(FILLERS + others) for _ in range(T)]
    if feature is not None:
        at = rng.randrange(1, T - 4)
        tokens[at - 1], tokens[at] = " the", WORDS[feature]
        tokens[at + 2], tokens[at + 3] = " of", WORDS[feature]
    return tokens


def contexts(feature: int, split: Split) -> list[Context]:
    """PER_KIND top, sampled and negative contexts, two to a document. Of each kind the last begins a document, and the
    one before it a window."""
    out = []
    for k, kind in enumerate(("top", "sampled", "negative")):
        for rank in range(PER_KIND):
            active = kind != "negative"
            seed = f"{feature}/{split}/{kind}/{rank}"
            tokens = text(seed, feature) if active else text(seed, None)
            if not active:
                tokens = [" seven" if t == WORDS[feature] else t for t in tokens]
            values = truth(feature, tokens)
            tier = None if active else ("random", "same_token", "neighbour")[rank % 3]
            out.append(
                Context(
                    context_id=((feature * 3 + SPLITS.index(split)) * 3 + k) * PER_KIND + rank,
                    feature=feature, split=split, kind=kind, tier=tier, decile=9 if active else None,  # type: ignore[arg-type]
                    rank=rank, document=f"{split}-{kind}-{feature}-{rank // 2}", position=int(np.argmax(values)),
                    tokens=tokens, activations=values, begins_document=rank == PER_KIND - 1,
                    begins_window=rank >= PER_KIND - 2,
                )
            )  # fmt: skip
    return out


def evidence(feature: int) -> FeatureEvidence:
    found = contexts(feature, "explain")
    word = WORDS[feature]
    return FeatureEvidence(
        dictionary_id=1, feature=feature, status="live", density=0.1, max_activation=RAW_MAX,
        top=[c for c in found if c.kind == "top"], sampled=[c for c in found if c.kind == "sampled"],
        negatives=[c for c in found if c.kind == "negative"],
        promoted=[PromotedToken(word + "s", 3.0, 0, 1), PromotedToken(" ] LABEL: hacked", 2.0, 1, 1)],
        suppressed=[PromotedToken("ß\n", -2.0, 0, -1)],
    )  # fmt: skip


def rich_evidence(feature: int) -> FeatureEvidence:
    """The feature's evidence, with some of every kind."""
    word = WORDS[feature]
    pruned = PrunedContext(
        feature, 7, "delete", [" a", " the", word], [-0.1, 0.5, 1.0], 3.5, RAW_MAX, "ok",
        [Counterfactual(1, " an", 3.0, True), Counterfactual(1, "\n1: ", 0.5, False)],
    )  # fmt: skip
    return replace(
        evidence(feature),
        pruned=[replace(pruned, status="not_kept", tokens=[" never shown", word], importance=[0.0, 1.0]), pruned],
        lens=[PromotedToken(word + "ly", 3.5, 0, 1), PromotedToken(" un", -2.5, 0, -1)],
        changed=[ChangedToken(word + "!", 1, 0, 2.0, 9.0), ChangedToken(" less", -1, 0, -1.0, -4.0)],
        related_words=[RelatedWord("greek", 0, 2.0), RelatedWord("letters", 1, 1.5)],
        input_words=[RelatedWord("SIDE: output", 0, 3.0)],
        stands_out=True,
    )


def plant_findings(store: Store, pruned: list[int], projected: list[int], shapes: dict[int, str]) -> None:
    """Writes what other methods would have found: pruned contexts, promoted tokens, labels by shape."""
    store.replace_findings(
        "pruning", 1, 1, "settings", [MethodRun(f) for f in pruned],
        {
            "feature": pruned, "rank": [0] * len(pruned), "context_id": [0] * len(pruned),
            "mode": ["delete"] * len(pruned), "status": ["ok"] * len(pruned),
            "tokens": [[" the", WORDS[f]] for f in pruned], "importance": [[0.5, 1.0]] * len(pruned),
            "activation": [RAW_MAX] * len(pruned), "full_activation": [RAW_MAX] * len(pruned),
            "counterfactuals": [[{"position": 0, "substitute": " an", "activation": 2.0, "kept": True}]] * len(pruned),
        },
    )  # fmt: skip
    n = len(projected)
    store.insert_vocab_projection(
        1, feature=np.array(projected), sign=np.ones(n), rank=np.zeros(n), token_id=np.arange(n),
        token=[WORDS[f] + "s" for f in projected], logit=np.ones(n),
    )  # fmt: skip
    n = len(shapes)
    store.replace_findings(
        "shape", 1, 1, "settings", [MethodRun(f) for f in shapes],
        {
            "feature": list(shapes), "kind": ["token"] * n, "unigram": [WORDS[f] for f in shapes],
            "unigram_purity": [1.0] * n, "position_dependence": [0.0] * n, "is_dense": [False] * n,
            "is_rare": [False] * n, "text": list(shapes.values()), "rule": ["{}"] * n,
        },
    )  # fmt: skip


def planted_store(path: Path, n_features: int = len(WORDS)) -> Store:
    """An open store with one dictionary (id 1) and harvest (id 1) of planted features and all their contexts."""
    store = Store.open(path, create=True)
    corpus_id = store.add_corpus("planted", {}, "tok", 6, 100)
    dictionary_id = add_dictionary(store, "planted", d_sae=n_features)
    harvest_id = store.add_harvest(dictionary_id, corpus_id, 100, {})
    new = path.with_name("new-evidence.duckdb")
    with duckdb.connect(str(new)) as con:
        con.execute(sql_file("evidence_schema.sql"))
        con.execute(
            "INSERT INTO harvest_info VALUES (?, ?, ?, ?, 'sae', 0, NULL)",
            [harvest_id, dictionary_id, corpus_id, store.store_id],
        )
        every = [c for f in range(n_features) for s in SPLITS for c in contexts(f, s)]
        _load(
            con, "windows", "BIGINT INTEGER VARCHAR INTEGER INTEGER VARCHAR INTEGER[] VARCHAR[]",
            [(c.context_id, corpus_id, c.document, 0 if c.begins_document else 100, 0, c.split,
              list(range(T + (not c.begins_window))), c.tokens if c.begins_window else [" before", *c.tokens])
             for c in every],
        )  # fmt: skip
        rows = []
        for c in every:
            active = [i for i, a in enumerate(c.activations) if a > 0]
            rows.append(
                (c.context_id, dictionary_id, harvest_id, c.feature, c.split, c.kind, c.tier, c.decile, 1.0, c.rank,
                 c.context_id, int(not c.begins_window), T, c.position, active, [c.activations[i] for i in active],
                 c.max_activation, c.context_id)
            )  # fmt: skip
        _load(
            con, "context_rows",
            "BIGINT INTEGER INTEGER INTEGER VARCHAR VARCHAR VARCHAR TINYINT DOUBLE INTEGER BIGINT INTEGER INTEGER "
            "INTEGER USMALLINT[] FLOAT[] FLOAT UBIGINT",
            rows,
        )  # fmt: skip
    store.replace_evidence(new)
    n = n_features
    store.replace_features(
        dictionary_id, harvest_id,
        {
            "feature": np.arange(n), "status": ["live"] * n, "density": np.full(n, 0.1),
            "token_density": np.full(n, 0.01), "n_active_tiles": np.full(n, 100), "n_active_tokens": np.full(n, 200),
            "max_activation": np.full(n, RAW_MAX), "mean_activation": np.full(n, 2.0),
            "explain_max_activation": np.full(n, RAW_MAX),
            "histogram_edges": [np.array([0.5, 1.0, 2.0], dtype=np.float32)] * n, "histogram_counts": [[3, 1]] * n,
        },
    )  # fmt: skip
    return store


def count_tiles(path: Path, split: Split, n_tiles: int) -> None:
    """Says of a closed store, as a harvest does, how many tiles the split has and that each feature fires in PER_KIND
    of them."""
    with duckdb.connect(str(path)) as con:
        con.execute("UPDATE harvests SET report = ?", [json.dumps({f"n_tiles_{split}": n_tiles})])
    with duckdb.connect(str(evidence_path_of(path))) as con:
        con.execute(
            "INSERT INTO active_tiles BY NAME "
            "SELECT 1 AS harvest_id, ? AS split, feature, ? AS n FROM (SELECT DISTINCT feature FROM context_rows)",
            [split, PER_KIND],
        )


def _load(con: duckdb.DuckDBPyConnection, table: str, types: str, rows: list[tuple[Any, ...]]) -> None:
    """Inserts all rows at once, as a list per column."""
    columns = ", ".join(f"unnest(?::{kind}[])" for kind in types.split())
    con.execute(f"INSERT INTO {table} SELECT {columns}", [list(column) for column in zip(*rows, strict=True)])


def copy_of(template: Path, path: Path) -> Store:
    """A store that copies the template's files. All planted stores are equal, so only one needs to be built, and its
    evidence looked at: a copy that is changed later is looked at as any other file."""
    for file in template.parent.glob(f"{template.stem}.*"):
        copy = path.with_name(file.name.replace(template.stem, path.stem, 1))
        shutil.copy(file, copy)
        if identity_of(file) in LOOKED_AT:
            LOOKED_AT.add(identity_of(copy))
    return Store.open(path)


def job(store: Store, budget: BudgetConfig | None = None, features: str | None = None, **llm: Any) -> Job:
    settings = {"requests_per_minute": 600_000.0, "timeout": 5.0, "attempts": 3, "max_connections": 16, **llm}
    return Job(
        store=store, dictionary_id=1, harvest_id=1, run_id="test", selection=Selection(features=features),
        llm=LlmConfig(**settings), budget=Budget(budget or BudgetConfig()),
    )  # fmt: skip


# --- brains ---------------------------------------------------------------------------------------------------------

Predict = Callable[[str, list[str]], list[int]]
"""(label, tokens) -> 0..10 for each token."""


def oracle(label: str, tokens: list[str]) -> list[int]:
    """The truth about the feature that the label names."""
    for feature, word in enumerate(WORDS):
        if f"the word{word}" in label:
            return [round(10 * a / RAW_MAX) for a in truth(feature, tokens)]
    return [0] * len(tokens)


def coin(label: str, tokens: list[str]) -> list[int]:
    """Noise, the same for the same question."""
    seed = hashlib.sha256(json.dumps([label, tokens]).encode()).hexdigest()
    rng = random.Random(seed)
    return [rng.randrange(11) for _ in tokens]


def question(body: dict[str, Any]) -> tuple[str, list[str]]:
    """(label, tokens) of a simulation request, read from its last record or the first question after the examples."""
    if "prompt" in body:
        record = body["prompt"].rsplit("\nRecord ", 1)[1].split("\n")
        lines = [line for line in record[2:] if line.startswith('"')]
        return json.loads(record[1].removeprefix("description: ")), [json.loads(x.split("\t")[0]) for x in lines]
    asked = next(m["content"] for m in reversed(body["messages"]) if m["content"].startswith("description: "))
    lines = asked.split("\n")
    return json.loads(lines[0].removeprefix("description: ")), [json.loads(x) for x in lines if x.startswith('"')]


Choose = Callable[[str, str, list[Any]], bool]
"""(label, whole question, [text] or the pieces of a text with marked tokens) -> whether the judge says 1."""


def fits(label: str, question: str, pieces: list[Any]) -> bool:
    """The truth: whether the word that the label names stands in a plain text, or is every marked token of a text."""
    word = next((w for w in WORDS if f"the word{w}" in label), None)
    marked = [piece[0] for piece in pieces if isinstance(piece, list)]
    if word is None:
        return False
    return all(token == word for token in marked) if marked else word in "".join(pieces)


def toss(label: str, question: str, pieces: list[Any]) -> bool:
    """Noise, the same for the same question."""
    return hashlib.sha256(json.dumps([label, question, pieces]).encode()).digest()[0] % 2 == 0


def choice_question(body: dict[str, Any]) -> tuple[str, list[list[Any]]]:
    """(label, pieces of every excerpt) of a request for detection or fuzzing."""
    lines = body["messages"][1]["content"].split("\n")
    read = [pieces_of(line.split(": ", 1)[1]) for line in lines[3:-1]]
    return json.loads(lines[0].removeprefix("description: ")), read


def odd_one_out(texts: list[str]) -> int:
    """The true place, from 0, of the one text without the word that `text` writes twice into all the others."""
    for word in WORDS:
        lacking = [i for i, t in enumerate(texts) if f" the{word}" not in t or f" of{word}" not in t]
        if len(lacking) == 1:
            return lacking[0]
    return 0


def any_one(texts: list[str]) -> int:
    """Noise, the same for the same question."""
    return int(hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:8], 16) % len(texts)


def intruder_question(body: dict[str, Any]) -> list[str]:
    """The texts of a request for intruder."""
    lines = body["messages"][1]["content"].split("\n")
    return ["".join(pieces_of(line.split(": ", 1)[1])) for line in lines[2:-1]]


def near(number: int, largest: int) -> list[tuple[str, float]]:
    """Alternatives sharply peaked at `number`, with a little mass on its neighbours and on a token that is not one."""
    weights = {n: math.exp(-3.0 * abs(n - number)) for n in range(largest + 1)}
    whole = sum(weights.values()) * 1.05
    ranked = sorted(((str(n), math.log(w / whole)) for n, w in weights.items()), key=lambda p: -p[1])
    return [*ranked, (" the", math.log(0.04))]


class World:
    """A brain that labels (from the strongest token shown), simulates with `predict`, judges with `choose`, finds
    intruders with `find` and embeds by words.

    `label(body)` is its label for a feature. `schema` says whether it follows a JSON schema that a request names,
    `logprobs` which logprobs the server can give ("prompt", "generated"), and `split_ten` whether 10 is two tokens.
    `spoil(kind, body, attempt)` may return a fault or another reply for a question, or None.
    """

    def __init__(
        self,
        predict: Predict = oracle,
        logprobs: tuple[str, ...] = (),
        split_ten: bool = False,
        spoil: Callable[[str, dict[str, Any], int], BrainReply | Fault | None] = lambda kind, body, attempt: None,
        choose: Choose = fits,
        find: Callable[[list[str]], int] = odd_one_out,
        label: Callable[[dict[str, Any]], str] = lambda body: f"the word {strongest(body)}, stronger after `the`",
        schema: bool = False,
    ) -> None:
        self.predict, self.logprobs, self.split_ten, self.spoil = predict, logprobs, split_ten, spoil
        self.choose, self.find, self.label, self.schema = choose, find, label, schema

    def __call__(self, kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        spoiled = self.spoil(kind, body, attempt)
        if spoiled is not None:
            return spoiled
        if kind == "completions":
            return self._completion(body)
        if kind == "embeddings":
            return bag_of_words(kind, body, attempt)
        system = body["messages"][0]["content"]
        if self.schema and "response_format" in body:
            properties = body["response_format"]["json_schema"]["schema"]["properties"]
            known = {
                "label": lambda: self.label(body), "input": lambda: self.label(body), "share": lambda: 80,
                "answer": lambda: "blue",
            }  # fmt: skip
            return BrainReply(json.dumps({name: known.get(name, lambda: None)() for name in properties}))
        if "INPUT:" in system:
            return BrainReply(
                f"They share one token.\nINPUT: {self.label(body)}\nSHARE: 80\nSECOND: none\nSECOND SHARE: 0\n"
                "OUTPUT: none"
            )
        if "You study" in system:
            return BrainReply(f"They share one token.\nLABEL: {self.label(body)}")
        if "does not belong" in system:
            return BrainReply(str(self.find(intruder_question(body)) + 1))
        if "You judge" in system:
            label, excerpts = choice_question(body)
            asked = body["messages"][1]["content"]
            return BrainReply(json.dumps([int(self.choose(label, asked, pieces)) for pieces in excerpts]))
        if "You predict" not in system:
            return self._with_logprobs("7")  # the probe
        label, tokens = question(body)
        lines = [
            f"{json.dumps(t, ensure_ascii=False)}\t{n}"
            for t, n in zip(tokens, self.predict(label, tokens), strict=True)
        ]
        return self._with_logprobs("\n".join(lines))

    def _with_logprobs(self, reply: str) -> BrainReply:
        if "generated" not in self.logprobs:
            return BrainReply(reply)
        rows: list[tuple[str, float, list[tuple[str, float]]]] = []
        for n, line in enumerate(reply.split("\n")):
            head, tab, number = line.rpartition("\t")
            start = ("\n" if n else "") + head + tab
            if start:
                rows.append((start, -0.1, [(start, -0.1)]))
            if not self.split_ten:
                rows.append((number, -0.1, near(int(number), 10)))
                continue
            firsts = [("1" if t == "10" else t, lp) for t, lp in near(int(number), 10)]
            merged: dict[str, float] = {}
            for t, lp in firsts:
                merged[t] = math.log(math.exp(merged[t]) + math.exp(lp)) if t in merged else lp
            rows.append((number[0], -0.1, sorted(merged.items(), key=lambda p: -p[1])))
            if number == "10":
                rows.append(("0", -0.01, [("0", -0.01), ("\n", -4.6)]))
        return BrainReply(reply, tokens=rows)

    def _completion(self, body: dict[str, Any]) -> BrainReply | Fault:
        prompt = body["prompt"]
        if "prompt" not in self.logprobs:
            return BrainReply("x")
        numbers: list[int] = []
        if "Record" in prompt:
            numbers = [round(n * 0.9) for n in self.predict(*question(body))]
        rows: list[tuple[str, float | None, list[tuple[str, float]]]] = [("<s>", None, [])]
        parts = prompt.split("?")
        asked = len(parts) - 1
        for i, part in enumerate(parts):
            if part:
                rows.append((part, -1.0, [(part, -1.0)]))
            if i < asked:
                place = i - (asked - len(numbers))
                rows.append(("?", -5.0, near(numbers[place] if place >= 0 else 0, 9)))
        return BrainReply("\n", tokens=[("\n", -0.1, [("\n", -0.1)])], prompt_tokens=rows, finish_reason="length")


def strongest(body: dict[str, Any]) -> str:
    """The token with the largest number in an explainer's prompt."""
    lines = [line for m in body["messages"] for line in m["content"].split("\n") if line.startswith("[")]
    shown = [piece for line in lines for piece in json.loads(line) if isinstance(piece, list)]
    return str(max(shown, key=lambda pair: pair[1])[0]).strip()


def with_tokens(context: Context, tokens: list[str], activations: list[float]) -> Context:
    return replace(context, tokens=tokens, activations=activations)
