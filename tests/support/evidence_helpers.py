"""A slow, plain reference for the harvest, which computes all evidence of a small corpus with Python loops."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from autointerp.config import CorpusConfig, HarvestConfig, ModelConfig
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.windows import token_ids
from autointerp.harvest.merge import CorpusFacts, bounds_of, merge
from autointerp.harvest.shards import HarvestFolder
from autointerp.harvest.target import Target
from autointerp.harvest.text_hash import BASE, name_hash
from autointerp.harvest.text_pass import PassWatch, Shard, harvest, identity, unit_settings
from autointerp.model.hooks import Hookpoint, activations_at
from autointerp.model.load import LoadedModel, load_model
from autointerp.model.token_batches import eligible, make_batches
from autointerp.progress import Counting, uncounted
from autointerp.records import SPLITS, Split, Window, WorkUnit
from autointerp.sae.sae import Sae
from autointerp.store.store import Store

BATCH_TOKENS = 256
POINT = Hookpoint.parse("transformer.h.1")
PROSE = (
    "the harbour lay quiet under a low grey sky and boats turned slowly on their ropes as tide came in an old woman "
    "sold oranges by steps she counted coins twice def read lines path encoding yield number Zoë 東京 🙂 return"
)
WORDS = PROSE.split()
MASK = (1 << 64) - 1
SMALL = HarvestConfig(
    context_tokens=8,
    top_contexts=4,
    sampled_contexts=4,
    negatives=3,
    negative_pool_windows=24,
    neighbours=3,
    rare_below=4,
)


def small_units(
    tokenizer: PreTrainedTokenizerBase, n_units: int = 7, seed: int = 0, window: int = 26
) -> list[WorkUnit]:
    """Units of a few documents of very different lengths. Some documents copy others in part or in whole."""
    rng = random.Random(seed)
    boiler = " ".join(rng.choices(WORDS, k=40))
    units = []
    for index in range(n_units):
        windows: list[Window] = []
        n_documents = rng.randint(4, 7)
        for number in range(n_documents):
            words = rng.choices(WORDS[: rng.choice((8, len(WORDS)))], k=rng.choice((2, 5, 30, 60)))
            body = (boiler + " " if rng.random() < 0.4 else "") + " ".join(words)
            ids = token_ids([body], tokenizer)[0]
            split = SPLITS[rng.choices((0, 1, 2), (2, 1, 1))[0]]
            name = f"doc{index}-{number}"
            step = window - 1
            windows += [
                Window(name, start, split, [0, *ids[start : start + step]], 1) for start in range(0, len(ids) - 1, step)
            ]
        units.append(WorkUnit(index, windows, n_documents))
    return units


def small_sae(loaded: LoadedModel, units: Sequence[WorkUnit], d_sae: int = 48, k: int = 5, seed: int = 3) -> Sae:
    """An SAE whose decoder rows are centred activations of some tokens. All features fire but three dead ones."""
    batches = [b for unit in units for b in make_batches(unit.windows, BATCH_TOKENS, loaded.pad_id)]
    x = torch.cat([activations_at(loaded, POINT, b.ids)[eligible(b, [0])] for b in batches])
    mean = x.mean(0)
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:d_sae]
    W_dec = torch.nn.functional.normalize(x[chosen] - mean, dim=1)
    b_enc = torch.zeros(d_sae)
    b_enc[-3:] = -1e4
    return Sae(W_dec.T.contiguous(), b_enc, W_dec, mean, k=k)


class Setup:
    """A tiny model, an SAE and a corpus, with methods that harvest and merge them."""

    def __init__(self, model_folder: Path, **options: int) -> None:
        self.loaded: LoadedModel = load_model(ModelConfig(name=str(model_folder), device="cpu", dtype="float32"))
        self.text = TokenText(self.loaded.tokenizer)
        self.units = small_units(self.loaded.tokenizer, **options)
        self.sae = small_sae(self.loaded, self.units)

    def source(self, wanted: Callable[[int], bool]) -> Iterator[WorkUnit]:
        return (unit for unit in self.units if wanted(unit.index))

    def folder(self, root: Path, config: HarvestConfig = SMALL) -> HarvestFolder:
        what = identity(self.loaded, POINT, "sha", CorpusConfig(source="x"), "print", config, BATCH_TOKENS)
        return HarvestFolder(root, what, bounds_of(config))

    def harvest(
        self, folder: HarvestFolder, config: HarvestConfig = SMALL, shard: Shard | None = None,
        watch: PassWatch | None = None,
    ) -> None:  # fmt: skip
        self.harvest_all([Target(POINT, self.sae, folder)], config, shard, watch)

    def harvest_all(
        self, targets: Sequence[Target], config: HarvestConfig = SMALL, shard: Shard | None = None,
        watch: PassWatch | None = None,
    ) -> None:  # fmt: skip
        settings = unit_settings(self.loaded, self.text, config, BATCH_TOKENS, ())
        harvest(self.loaded, targets, self.source, settings, shard, watch)

    def store(self, path: Path, folder: HarvestFolder, config: HarvestConfig = SMALL) -> Path:
        with Store.open(path, create=True) as store:
            self.merge(store, folder, config)
        return path

    def merge(
        self, store: Store, folder: HarvestFolder, config: HarvestConfig = SMALL, name: str = "a",
        counting: Counting = uncounted,
    ) -> int:  # fmt: skip
        dictionary_id = store.add_dictionary(
            name=name, model="m", revision="r", hookpoint=str(POINT), architecture="topk", d_in=self.sae.d_in,
            d_out=self.sae.d_out, d_sae=self.sae.d_sae, sae_sha256="sha", tokenizer_sha256="t", config={},
        )  # fmt: skip
        merge(store, dictionary_id, folder, self.sae, self.text, config, CorpusFacts("x", {}, "t"), counting=counting)
        return dictionary_id


TABLES = ("evidence.context_rows", "evidence.windows", "features")


def tables_of(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of the tables that a merge makes, in the file's order."""
    with Store.open(path, read_only=True) as store:
        return {table: store.rows(f"SELECT * FROM {table}") for table in TABLES}


# --- the second opinion ----------------------------------------------------------------------------------------------


def mix(x: int) -> int:
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x ^= x >> 33
        x = x * factor & MASK
    return x ^ (x >> 33)


def text_hash(raw: bytes) -> int:
    total = 0
    for k, byte in enumerate(raw):
        total = (total + (byte + 1) * pow(BASE, k, 1 << 64)) & MASK
    return mix(total ^ mix(len(raw)))


def sample_key(raw: bytes, feature: int, seed: int) -> int:
    own = mix(mix((feature + 0x9E3779B97F4A7C15) & MASK) ^ (name_hash("sample", seed) & MASK))
    return mix(text_hash(raw) ^ own) >> 1


@dataclass
class Peak:
    """A stretch of text with its feature's activations."""

    value: float
    place: tuple[int, int, int]
    """(unit, window in the unit, position in the window); earlier places in the corpus are smaller."""
    document: str
    offset: int
    length: int
    text: bytes
    values: dict[int, float]
    key: int = 0


@dataclass
class Expected:
    """The evidence by definition, per (feature, split)."""

    top: dict[tuple[int, Split], list[Peak]] = field(default_factory=dict)
    sampled: dict[tuple[int, Split], list[Peak]] = field(default_factory=dict)
    probability: dict[tuple[int, Split], float] = field(default_factory=dict)
    tile_maxima: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    values: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    active_tiles: dict[tuple[int, Split], int] = field(default_factory=lambda: defaultdict(int))
    n_tokens: int = 0
    n_tiles: int = 0
    dense: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    """(document, start) -> activations [t, d_sae], zero on tokens that do not count."""


def dense_activations(setup: Setup, unit: WorkUnit) -> dict[int, np.ndarray]:
    """Window index -> [t, d_sae], computed in the harvest's batches, since other batches round differently."""
    found = {}
    for split in SPLITS:
        ordinal = [i for i, w in enumerate(unit.windows) if w.split == split]
        for batch in make_batches([unit.windows[i] for i in ordinal], BATCH_TOKENS, setup.loaded.pad_id):
            counted = eligible(batch, setup.text.special_ids)
            x = activations_at(setup.loaded, POINT, batch.ids)
            codes = setup.sae.encode_sparse(x[counted]).dense(setup.sae.d_sae)
            dense = torch.zeros(*counted.shape, setup.sae.d_sae)
            dense[counted] = codes
            for row, index in enumerate(batch.indices):
                found[ordinal[index]] = dense[row, : int(batch.lengths[row])].numpy()
    return found


def text_of(setup: Setup, ids: Sequence[int], start: int, end: int) -> bytes:
    """The text that tokens start .. end-1 of a window show. A character split over tokens belongs to the last one."""
    return "".join(setup.text.tokens(ids)[start:end]).encode()


def expected(setup: Setup, config: HarvestConfig) -> Expected:
    """Every list by its definition, from all the activations at once."""
    result = Expected()
    peaks: dict[tuple[int, Split], list[Peak]] = defaultdict(list)
    tiles: dict[tuple[int, Split], list[Peak]] = defaultdict(list)
    size = config.context_tokens
    for unit in setup.units:
        dense = dense_activations(setup, unit)
        for number, window in enumerate(unit.windows):
            acts, ids, first = dense[number], list(window.token_ids), window.n_prefix
            result.dense[window.document, window.start] = acts
            result.n_tokens += sum(i not in setup.text.special_ids for i in ids[first:])
            spans = [(s, min(s + size, len(ids))) for s in range(first, len(ids), size)]
            result.n_tiles += len(spans)
            for feature in np.flatnonzero(acts.max(0)).tolist():
                column = acts[:, feature]
                result.values[feature] += column[column > 0].tolist()

                def stretch(start: int, end: int, peak: int) -> Peak:
                    raw = text_of(setup, ids, start, end)  # noqa: B023 - called in this turn of the loop only
                    values = {i - start: float(column[i]) for i in range(start, end) if column[i] > 0}  # noqa: B023
                    place = unit.index, number, peak  # noqa: B023
                    key = sample_key(raw, feature, config.seed)  # noqa: B023
                    return Peak(float(column[peak]), place, window.document, start, end - start, raw, values, key)  # noqa: B023

                best = int(column.argmax())
                start = max(first, min(best - size // 2, len(ids) - size))
                peaks[feature, window.split].append(stretch(start, min(start + size, len(ids)), best))
                for start, end in spans:
                    if column[start:end].max() > 0:
                        best = start + int(column[start:end].argmax())
                        tiles[feature, window.split].append(stretch(start, end, best))
                        result.tile_maxima[feature].append(float(column[start:end].max()))
                        result.active_tiles[feature, window.split] += 1
    lists = {group: candidates(rows, config) for group, rows in peaks.items()}
    samples = {group: smallest_keys(rows, 2 * config.sampled_contexts) for group, rows in tiles.items()}
    first_split = earliest_split(lists, samples, pool_tiles(setup, config))
    for group, (documents, texts) in lists.items():
        result.top[group] = chosen_top(documents, texts, first_split, group[1], config.top_contexts)
    for group, rows in samples.items():
        own = [row for row in rows if first_split[row.text] == SPLITS.index(group[1])]
        result.sampled[group] = own[: config.sampled_contexts]
        if len(own) > config.sampled_contexts:
            result.probability[group] = own[config.sampled_contexts].key / 2**63
        else:
            result.probability[group] = rows[-1].key / 2**63 if len(rows) == 2 * config.sampled_contexts else 1.0
    return result


def ordered(rows: list[Peak]) -> list[Peak]:
    return sorted(rows, key=lambda r: (-r.value, r.place))


def candidates(rows: list[Peak], config: HarvestConfig) -> tuple[list[Peak], list[Peak]]:
    """The best peak of each document and the best peak of each text, twice as many of both as are kept."""
    documents: dict[str, Peak] = {}
    texts: dict[bytes, Peak] = {}
    for row in ordered(rows):
        documents.setdefault(row.document, row)
        texts.setdefault(row.text, row)
    n = 2 * config.top_contexts
    return list(documents.values())[:n], list(texts.values())[:n]


def smallest_keys(rows: list[Peak], n: int) -> list[Peak]:
    once: dict[int, Peak] = {}
    for row in sorted(rows, key=lambda r: (r.key, r.place[:2], r.offset)):
        once.setdefault(row.key, row)
    return list(once.values())[:n]


def chosen_top(
    documents: list[Peak], texts: list[Peak], first_split: dict[bytes, int], split: Split, n: int
) -> list[Peak]:
    chosen: dict[bytes, Peak] = {}
    for row in (*documents, *texts):
        if first_split[row.text] == SPLITS.index(split) and len(chosen) < n:
            chosen.setdefault(row.text, row)
    return ordered(list(chosen.values()))


def pool_key(window: Window, seed: int) -> int:
    return mix((name_hash(seed, window.document) & MASK) ^ mix(window.start)) >> 1


def pool_tiles(setup: Setup, config: HarvestConfig) -> dict[Split, dict[tuple[str, int, int], bytes]]:
    """split -> (document, start, offset) -> text of every tile of the pool's windows that may be a negative."""
    size, result = config.context_tokens, {}
    for split in SPLITS:
        every = [w for unit in setup.units for w in unit.windows if w.split == split]
        every.sort(key=lambda w: pool_key(w, config.seed))
        found: dict[tuple[str, int, int], bytes] = {}
        for window in every[: config.negative_pool_windows]:
            ids, first = list(window.token_ids), window.n_prefix
            for start in range(first, len(ids), size):
                end = min(start + size, len(ids))
                if start == first or 2 * (end - start) >= size:
                    found[window.document, window.start, start] = text_of(setup, ids, start, end)
        result[split] = found
    return result


def earliest_split(
    lists: dict[tuple[int, Split], tuple[list[Peak], list[Peak]]],
    samples: dict[tuple[int, Split], list[Peak]],
    pool: dict[Split, dict[tuple[str, int, int], bytes]],
) -> dict[bytes, int]:
    first: dict[bytes, int] = {}
    rows = [(r.text, split) for (_, split), both in lists.items() for part in both for r in part]
    rows += [(r.text, split) for (_, split), part in samples.items() for r in part]
    rows += [(raw, split) for split, tiles in pool.items() for raw in tiles.values()]
    for raw, split in rows:
        first[raw] = min(first.get(raw, 3), SPLITS.index(split))
    return first
