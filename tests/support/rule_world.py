"""Features of an invented text whose truth is a rule: one for each kind of condition of the rule language, most of them
beyond what tables of tokens can learn. Each has a near miss and a wrong rule beside the true one.

The store is made directly, with every tile of the text as a known tile, so that natural correlations are exact.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from autointerp.records import SPLITS, Split
from autointerp.rules.language.matching import holds
from autointerp.rules.language.parsing import clauses_of
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule
from autointerp.store import Store
from autointerp.store.connection import sql_file
from support.known_words import _load
from support.store_fixtures import add_dictionary

TILE = 16
TILES = 4
"""Of a window, which is a document."""
FILLERS = [
    "the",
    "a",
    "of",
    "and",
    "in",
    "to",
    "was",
    "for",
    "it",
    "on",
    "with",
    "old",
    "new",
    "man",
    "house",
    "day",
    "road",
    "water",
    "light",
    "door",
    "hand",
    "night",
    "stone",
    "field",
    "voice",
    "paper",
    "table",
    "window",
    "garden",
    "letter",
]
RISE = ["rise"] * 8 + ["rises"] * 5 + ["rose"] * 4 + ["risen"] * 2 + ["rising"]
COSTS = ["price", "cost", "wage", "rent", "tax"]
MOVES = ["falls", "jumps", "grows", "drops", "slips", "climbs", "sinks", "holds"]
RIVER, MONEY = ["river", "shore", "boat", "fish", "flood"], ["loan", "cash", "credit", "account", "debt"]
STEMS = [
    first + second
    for first in ("bel", "dor", "fim", "gan", "hul", "kem", "lor", "mib", "nal", "pos")
    for second in ("ta", "ri", "mo", "cu", "sel", "vin")
]

Condition = dict[str, Any]


@dataclass(frozen=True)
class RuleFeature:
    """A feature that fires where its true rule holds, as strongly as that says, give or take a twentieth."""

    kind: str
    truth: list[dict[str, Any]]
    """Clauses as JSON."""
    near_miss: list[dict[str, Any]]
    wrong: list[dict[str, Any]]

    def label(self, quality: str) -> str:
        return f"{quality.replace('_', ' ')} of {self.kind}"

    def rule(self, quality: str) -> list[dict[str, Any]]:
        rules: Mapping[str, list[dict[str, Any]]] = {
            "truth": self.truth, "near_miss": self.near_miss, "wrong": self.wrong,
        }  # fmt: skip
        return rules[quality]

    def reply(self, quality: str) -> str:
        """What an LLM would answer that believes this."""
        return json.dumps(
            {"label": self.label(quality), "output": None, "clauses": self.rule(quality), "combine": "max"}
        )


def _one(*conditions: Condition, strength: float = 8, says: str = "what it says") -> dict[str, Any]:
    return {"says": says, "strength": strength, "all": list(conditions)}


def _features() -> list[RuleFeature]:
    bank, ness = {"word": ["bank"]}, {"suffix": ["ness"]}
    wrong = [_one({"word": ["garden", "letter"]}), _one({"suffix": ["ing"]}, {"left": {"word": ["road"], "within": 3}})]
    listed = {"word": [f"{stem}ness" for stem in STEMS[:12]]}
    return [
        RuleFeature("lemma", [_one({"lemma": ["rise"]})], [_one({"word": ["rise", "rises"]})], wrong),
        RuleFeature(
            "left", [_one({"word": MOVES}, {"left": {"lemma": COSTS, "within": 6}})], [_one({"word": MOVES})], wrong
        ),
        RuleFeature("topic", [_one(bank, {"topic": {"word": RIVER, "least": 1}})], [_one(bank)], wrong),
        RuleFeature("not_topic", [_one(bank, {"not": {"topic": {"word": MONEY, "least": 1}}})], [_one(bank)], wrong),
        RuleFeature("suffix", [_one(ness)], [_one(listed)], wrong),
        RuleFeature("prefix", [_one({"prefix": ["un"]}, {"not": ness})], [_one({"prefix": ["un"]})], wrong),
        RuleFeature("regex", [_one({"regex": "(19|20)[0-9]{2}"})], [_one({"class": ["number"]})], wrong),
        RuleFeature(
            "inside", [_one({"class": ["word"]}, {"inside": ["("]})], [_one({"left": {"token": ["("]}})], wrong
        ),
        RuleFeature("starts", [_one({"starts": ["line"]})], [_one({"starts": ["document"]})], wrong),
        RuleFeature("class", [_one({"class": ["capitals"]})], [_one({"regex": "[A-M][A-Z]+"})], wrong),
        RuleFeature(
            "two", [_one({"suffix": ["ful"]}, strength=9), _one({"suffix": ["less"]}, strength=5)],
            [_one({"suffix": ["ful"]}, strength=9)], wrong,
        ),
        RuleFeature(
            "number_left", [_one({"class": ["number"]}, {"left": {"lemma": ["year"], "within": 3}})],
            [_one({"class": ["number"]}, {"left": {"word": ["years"]}})], wrong,
        ),
    ]  # fmt: skip


FEATURES = _features()
MAX = 10.0


def held(clauses: list[dict[str, Any]], texts: ManyTexts) -> np.ndarray:
    """[tokens]: the strength of the strongest clause that holds."""
    read, _ = clauses_of({"clauses": clauses, "combine": "max"})
    found = np.zeros(int(texts.starts[-1]))
    for clause in read:
        found = np.maximum(found, clause.strength * holds(clause, texts))
    return found


def document(draw: random.Random) -> list[str]:
    """The tokens of one document: words with their leading space, signs, and line breaks."""
    topic = draw.choice([RIVER, MONEY, []])
    tokens: list[str] = []
    open_for = 0
    while len(tokens) < TILE * TILES:
        word = _word(draw, topic)
        if open_for == 1:
            word, open_for = ")", 0
        elif open_for:
            open_for -= 1
        elif draw.random() < 0.015:
            word, open_for = " (", draw.randint(3, 6)
        elif draw.random() < 0.04:
            word = "\n"
        tokens.append(word)
    return tokens


def _word(draw: random.Random, topic: Sequence[str]) -> str:
    at, stem = draw.random(), draw.choice(STEMS)
    kinds = [
        (0.015, lambda: draw.choice(RISE)), (0.03, lambda: draw.choice(COSTS)), (0.04, lambda: draw.choice(MOVES)),
        (0.03, lambda: "bank"), (0.02, lambda: stem + "ness"), (0.02, lambda: "un" + stem),
        (0.01, lambda: f"un{stem}ness"), (0.015, lambda: f"{draw.choice((19, 20))}{draw.randint(10, 99)}"),
        (0.02, lambda: str(draw.randint(200, 1800))), (0.015, lambda: draw.choice(["year", "years"])),
        (0.02, lambda: "".join(draw.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=3))), (0.015, lambda: stem + "ful"),
        (0.015, lambda: stem + "less"), (0.08 if topic else 0.0, lambda: draw.choice(topic)),
    ]  # fmt: skip
    for share, word in kinds:
        if at < share:
            return f" {word()}"
        at -= share
    return f" {draw.choice(FILLERS)}"


def world_store(path: Path, documents: int = 100, seed: int = 0, poison: str = "") -> Store:
    """An open store of the world, `documents` in each split; dictionary and harvest have the id 1. `poison`: a word
    that replaces every token of the report part."""
    draw = random.Random(f"rule world {seed}")
    splits = [split for split in SPLITS for _ in range(documents)]
    windows = [document(draw) for _ in splits]
    if poison:
        windows = [
            [f" {poison}"] * len(w) if split == "report" else w for w, split in zip(windows, splits, strict=True)
        ]
    tiles = [(i, at) for i in range(len(windows)) for at in range(0, TILE * TILES, TILE)]
    texts = ManyTexts(
        [windows[i][at : at + TILE] for i, at in tiles], ["document" if at == 0 else None for _, at in tiles]
    )
    noise = np.array([zlib.crc32(f"{k}".encode()) % 101 for k in range(len(tiles) * TILE)]) / 1000 + 0.95
    values = {f: (held(one.truth, texts) * noise).reshape(-1, TILE) for f, one in enumerate(FEATURES)}
    store = Store.open(path, create=True)
    corpus_id = store.add_corpus("rules", {}, "tok", len(windows), len(windows) * TILE * TILES)
    dictionary_id = add_dictionary(store, "rules", d_sae=len(FEATURES))
    harvest_id = store.add_harvest(dictionary_id, corpus_id, len(windows) * TILE * TILES, {})
    assert (dictionary_id, harvest_id) == (1, 1)
    new = path.with_name("new-evidence.duckdb")
    numbers = {split: [k for k, (i, _) in enumerate(tiles) if splits[i] == split] for split in SPLITS}
    with duckdb.connect(str(new)) as con:
        con.execute(sql_file("evidence_schema.sql"))
        con.execute("INSERT INTO harvest_info VALUES (1, 1, ?, ?, 'sae', 0, NULL)", [corpus_id, store.store_id])
        _load(
            con, "windows", "BIGINT INTEGER VARCHAR INTEGER INTEGER VARCHAR INTEGER[] VARCHAR[]",
            [(i, corpus_id, f"d{i}", 0, 0, splits[i], list(range(len(w))), w) for i, w in enumerate(windows)],
        )  # fmt: skip
        _load(
            con, "context_rows",
            "BIGINT INTEGER INTEGER INTEGER VARCHAR VARCHAR VARCHAR TINYINT DOUBLE INTEGER BIGINT INTEGER INTEGER "
            "INTEGER USMALLINT[] FLOAT[] FLOAT UBIGINT",
            _contexts(values, tiles, numbers, seed),
        )  # fmt: skip
        _load(
            con, "known_tiles", "INTEGER VARCHAR INTEGER BIGINT INTEGER INTEGER",
            [(1, split, n, *_place(tiles[k]), TILE) for split in SPLITS for n, k in enumerate(numbers[split])],
        )  # fmt: skip
        firing = {
            (f, split): [n for n, k in enumerate(numbers[split]) if of[k].max() > 0]
            for f, of in values.items()
            for split in SPLITS
        }
        _load(
            con, "firing_tiles", "INTEGER INTEGER VARCHAR INTEGER",
            [(1, f, split, n) for (f, split), of in sorted(firing.items()) for n in of],
        )  # fmt: skip
        _load(
            con, "active_tiles", "INTEGER INTEGER VARCHAR BIGINT",
            [(1, f, split, len(of)) for (f, split), of in firing.items()],
        )  # fmt: skip
    store.replace_evidence(new)
    with store.transaction() as con:
        counted = {f"n_tiles_{split}": len(numbers[split]) for split in SPLITS}
        con.execute("UPDATE harvests SET report = ?", [json.dumps(counted)])
    n = len(FEATURES)
    store.replace_features(
        dictionary_id, harvest_id,
        {
            "feature": np.arange(n), "status": ["live"] * n, "density": np.full(n, 0.1),
            "token_density": np.full(n, 0.01), "n_active_tiles": np.full(n, 100), "n_active_tokens": np.full(n, 200),
            "max_activation": np.full(n, MAX), "mean_activation": np.full(n, 2.0),
            "explain_max_activation": np.full(n, MAX),
            "histogram_edges": [np.array([0.5, 1.0, 2.0], dtype=np.float32)] * n, "histogram_counts": [[3, 1]] * n,
        },
    )  # fmt: skip
    return store


def _place(tile: tuple[int, int]) -> tuple[int, int]:
    window, offset = tile
    return window, offset


def _contexts(
    values: Mapping[int, np.ndarray], tiles: Sequence[tuple[int, int]], numbers: Mapping[str, Sequence[int]],
    seed: int,
) -> list[tuple[Any, ...]]:  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    for f, of in values.items():
        for split in SPLITS:
            draw = random.Random(f"contexts {seed} {f} {split}")
            active = [k for k in numbers[split] if of[k].max() > 0]
            silent = [k for k in numbers[split] if of[k].max() <= 0]
            strongest = sorted(active, key=lambda k, of=of: (-of[k].max(), k))  # type: ignore[misc]
            for kind, tier, chosen in (
                ("top", None, strongest[:10]), ("sampled", None, draw.sample(active, min(30, len(active)))),
                ("negative", "random", draw.sample(silent, min(10, len(silent)))),
            ):  # fmt: skip
                for rank, k in enumerate(chosen):
                    on = np.flatnonzero(of[k]).tolist()
                    window, offset = tiles[k]
                    decile = None if kind == "negative" else 9 - min(9, strongest.index(k) * 10 // len(strongest))
                    rows.append(
                        (len(rows), 1, 1, f, split, kind, tier, decile, 1.0, rank, window, offset, TILE,
                         offset + int(of[k].argmax()), on, [float(of[k][p]) for p in on], float(of[k].max()), len(rows))
                    )  # fmt: skip
    return rows


class Truths:
    """The truth about the tokens of a store of the world."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._texts: dict[str, ManyTexts] = {}

    def value(self, rule: Rule, feature: int, split: Split = "report") -> float:
        """The correlation of the rule with the truth over all tokens of a split."""
        if split not in self._texts:
            tiles = self._store.known_tiles(1, split)
            self._texts[split] = ManyTexts([tile.tokens for tile in tiles], [tile.begins for tile in tiles])
        texts = self._texts[split]
        return float(np.corrcoef(held(FEATURES[feature].truth, texts), texts.predict(rule))[0, 1])
