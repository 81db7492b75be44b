"""The accumulators on made-up triples full of ties, in any batches, against plain Python."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.evidence_helpers import sample_key
from support.evidence_helpers import text_hash as slow_hash

from autointerp.harvest.accumulators import SUM_SCALE, TILE_BITS, TOKEN_BITS, bin_edges, bins_of, n_bins
from autointerp.harvest.split_pass import Block, ListSizes, SplitPass
from autointerp.harvest.text_hash import TokenHashes, signed
from autointerp.harvest.tiles import SplitWindows
from autointerp.records import Window

CPU = torch.device("cpu")
TILE, N_FEATURES, SIZE, SEED = 3, 5, 3, 7
BYTES = [bytes([65 + i]) for i in range(4)]


def make(rng: random.Random) -> tuple[list[Window], dict[tuple[int, int, int], float]]:
    """Windows over four tokens (texts repeat), and (window, position, feature) -> one of three values (peaks tie)."""
    windows = []
    for document in range(rng.randint(1, 5)):
        for start in range(rng.randint(1, 3)):
            ids = [rng.randrange(4) for _ in range(rng.randint(2, 8))]
            windows.append(Window(f"d{document}", 100 * start, "explain", ids, rng.choice((0, 1))))
    triples = {
        (w, p, f): rng.choice((0.5, 1.0, 3.0))
        for w, window in enumerate(windows)
        for p in range(window.n_prefix, len(window.token_ids))
        for f in range(N_FEATURES)
        if rng.random() < 0.3
    }
    return windows, triples


def run(
    windows: list[Window], triples: dict[tuple[int, int, int], float], rng: random.Random, block: Block
) -> tuple[dict[str, dict[str, np.ndarray]], SplitWindows]:
    documents = np.array([int(w.document[1:]) for w in windows])
    split = SplitWindows(windows, np.arange(len(windows)) * 2, documents, TILE, TokenHashes(BYTES, CPU))
    pooled = torch.tensor([i % 3 != 1 for i in range(len(windows))])
    accumulated = SplitPass(split, pooled, block, ListSizes(SIZE, SIZE), SEED)
    accumulated._slab_windows = rng.choice((1, 2, 100))
    order = list(range(len(windows)))
    rng.shuffle(order)
    while order:
        n = rng.randint(1, 4)
        batch, order = order[:n], order[n:]
        rows = [
            (row, p, f - block.low, value)
            for row, window in enumerate(batch)
            for (w, p, f), value in sorted(triples.items())
            if w == window and block.low <= f < block.high
        ]
        columns = list(zip(*rows, strict=True)) or [()] * 4
        row, position, feature = (torch.tensor(c, dtype=torch.int64) for c in columns[:3])
        accumulated.add(torch.tensor(batch), row, position, feature, torch.tensor(columns[3], dtype=torch.float32))
        if rng.random() < 0.3:
            accumulated._forget()
    return accumulated.finish(), split


@given(st.integers(0, 10**6), st.sampled_from([Block(0, N_FEATURES), Block(1, 4)]))
@settings(max_examples=60, deadline=None)
def test_lists_and_counts(seed: int, block: Block) -> None:
    rng = random.Random(seed)
    windows, triples = make(rng)
    tables, _ = run(windows, triples, rng, block)
    tables = {name: dict(columns) for name, columns in tables.items()}
    found = tables["candidates"]
    acts = defaultdict(dict)
    for candidate, position, value in zip(*tables["activations"].values(), strict=True):
        acts[int(candidate)][int(position)] = float(value)
    got = {"documents": defaultdict(list), "texts": defaultdict(list), "sampled": defaultdict(list)}
    for i in range(len(found["feature"])):
        row = {name: column[i].item() for name, column in found.items()}
        window = windows[row["window"] // 2]
        span = range(row["offset"], row["offset"] + row["length"])
        want = {p - span[0]: triples[row["window"] // 2, p, row["feature"]] for p in span
                if (row["window"] // 2, p, row["feature"]) in triples}  # fmt: skip
        assert acts[i] == want
        assert row["text_hash"] == signed(slow_hash(b"".join(BYTES[window.token_ids[p]] for p in span)))
        for bit, name in ((1, "documents"), (2, "texts"), (4, "sampled")):
            if row["lists"] & bit:
                got[name][row["feature"]].append((row["window"] // 2, row["offset"], row["peak"], row["value"]))
    for feature in range(block.low, block.high):
        documents, texts, sampled = wanted(windows, triples, feature)
        assert got["documents"][feature] == documents
        assert got["texts"][feature] == texts
        assert got["sampled"][feature] == sampled
    check_counts(tables, windows, triples, block)


def wanted(windows: list[Window], triples: dict[tuple[int, int, int], float], feature: int) -> tuple[list, list, list]:
    """The three lists of one feature as (window, offset, peak, value)."""
    documents, texts, tiles = {}, {}, {}
    peaks = []
    for number, window in enumerate(windows):
        values = {p: v for (w, p, f), v in triples.items() if w == number and f == feature}
        if not values:
            continue
        peak = min(values, key=lambda p: (-values[p], p))
        start = max(window.n_prefix, min(peak - TILE // 2, len(window.token_ids) - TILE))
        peaks.append((number, start, peak, values[peak]))
        for low in range(window.n_prefix, len(window.token_ids), TILE):
            inside = {p: v for p, v in values.items() if low <= p < low + TILE}
            if inside:
                best = min(inside, key=lambda p: (-inside[p], p))
                raw = b"".join(BYTES[i] for i in window.token_ids[low : low + TILE])
                tiles.setdefault(sample_key(raw, feature, SEED), (number, low, best, inside[best]))
    for row in sorted(peaks, key=lambda r: (-r[3], r[0], r[2])):
        window = windows[row[0]]
        documents.setdefault(window.document, row)
        texts.setdefault(tuple(window.token_ids[row[1] : row[1] + TILE]), row)
    keyed = sorted(tiles.items())
    return list(documents.values())[:SIZE], list(texts.values())[:SIZE], [row for _, row in keyed][:SIZE]


def check_counts(
    tables: dict[str, dict[str, np.ndarray]], windows: list[Window], triples: dict[tuple[int, int, int], float],
    block: Block,
) -> None:  # fmt: skip
    values, tiles = defaultdict(list), defaultdict(list)
    for (w, p, f), value in triples.items():
        if block.low <= f < block.high:
            values[f].append(value)
            tiles[f, w, (p - windows[w].n_prefix) // TILE].append(value)
    stats = tables["stats"]
    assert stats["feature"].tolist() == sorted(values)
    for i, f in enumerate(stats["feature"].tolist()):
        assert stats["n_active_tokens"][i] == len(values[f])
        assert stats["n_active_tiles"][i] == sum(key[0] == f for key in tiles)
        assert stats["scaled_sum"][i] == sum(values[f]) * SUM_SCALE
        assert stats["max"][i] == max(values[f])
    for name, bits, rows in (
        ("token_bins", TOKEN_BITS, values), ("tile_bins", TILE_BITS, {k: [max(v)] for k, v in tiles.items()})
    ):  # fmt: skip
        counted = defaultdict(int)
        for where, numbers in rows.items():
            for number in numbers:
                feature = where if isinstance(where, int) else where[0]
                counted[feature, int(np.searchsorted(bin_edges(bits), number, "right"))] += 1
        columns = (tables[name][c].tolist() for c in ("feature", "bin", "n"))
        assert {(f, b): n for f, b, n in zip(*columns, strict=True)} == counted
    per_window = max(-(-(len(w.token_ids) - w.n_prefix) // TILE) for w in windows)
    pooled = [i for i in range(len(windows)) if i % 3 != 1]
    active = {
        (f, 64 * int(g) + b)
        for g, f, mask in zip(*(tables["pool"][c].tolist() for c in ("tile_group", "feature", "mask")), strict=True)
        for b in range(64)
        if mask >> b & 1
    }
    assert active == {(f, pooled.index(w) * per_window + t) for f, w, t in tiles if w in pooled}


def test_bins_meet_their_edges() -> None:
    for bits in (TOKEN_BITS, TILE_BITS):
        edges = bin_edges(bits)
        assert len(edges) == n_bins(bits) - 1
        values = np.float32([*edges, *np.nextafter(np.float32(edges), np.float32(0)), 1e-30, 3e38])
        found = bins_of(torch.from_numpy(values).view(torch.int32), bits)
        assert found.tolist() == np.searchsorted(edges, np.float64(values), "right").tolist()


def test_order_of_batches_does_not_matter() -> None:
    windows, triples = make(random.Random(5))
    results = [run(windows, triples, random.Random(seed), Block(0, N_FEATURES))[0] for seed in range(4)]
    for a, b in itertools.pairwise(results):
        for name, columns in a.items():
            for column, values in columns.items():
                assert values.tolist() == b[name][column].tolist(), (name, column)
