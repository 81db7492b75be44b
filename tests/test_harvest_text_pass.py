"""The harvest and merge against a plain second opinion, and the same tables whatever way they were computed."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.evidence_helpers import (
    POINT,
    SMALL,
    Expected,
    Setup,
    expected,
    pool_tiles,
    tables_of,
    text_of,
)

from autointerp.errors import AutointerpError
from autointerp.harvest.recompute import recompute
from autointerp.harvest.target import Target
from autointerp.harvest.text_pass import PassWatch, Shard
from autointerp.harvest.unit import encoded
from autointerp.records import SPLITS
from autointerp.sae.sae import Sae
from autointerp.store.contexts import stored_contexts
from autointerp.store.store import Store


@pytest.fixture(scope="module")
def setup(tiny_gpt2: Path) -> Setup:
    return Setup(tiny_gpt2)


@pytest.fixture(scope="module")
def truth(setup: Setup) -> Expected:
    return expected(setup, SMALL)


@pytest.fixture(scope="module")
def whole(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of one pass over everything."""
    root = tmp_path_factory.mktemp("whole")
    folder = setup.folder(root / "work")
    setup.harvest(folder)
    return setup.store(root / "x.duckdb", folder)


def contexts(path: Path, kind: str) -> dict[tuple[int, str], list[dict[str, Any]]]:
    with Store.open(path, read_only=True) as store:
        rows = store.dicts(
            "SELECT c.*, w.document, w.start, w.n_prefix FROM evidence.context_rows c JOIN evidence.windows w "
            "USING (window_id) WHERE kind = ? ORDER BY feature, c.split, tier, rank",
            [kind],
        )
    grouped: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["feature"], row["split"]].append(row)
    return grouped


def sparse(row: dict[str, Any]) -> dict[int, float]:
    return dict(zip(row["positions"], row["values"], strict=True))


@pytest.mark.parametrize("kind", ["top", "sampled"])
def test_active_contexts_are_those_of_the_definition(whole: Path, truth: Expected, kind: str) -> None:
    found = contexts(whole, kind)
    wanted = {group: rows for group, rows in getattr(truth, kind).items() if rows}
    assert found.keys() == wanted.keys()
    assert len(wanted) > 60
    for group, rows in wanted.items():
        got = found[group]
        assert [r["rank"] for r in got] == list(range(len(rows)))
        for row, want in zip(got, rows, strict=True):
            assert (row["document"], row["offset"], row["length"]) == (want.document, want.offset, want.length)
            assert row["max_activation"] == want.value
            assert sparse(row) == want.values
            assert row["position"] == row["start"] + want.place[2] - row["n_prefix"]
            if kind == "sampled":
                assert row["sampling_probability"] == pytest.approx(truth.probability[group], rel=1e-12)


def test_features(whole: Path, setup: Setup, truth: Expected) -> None:
    with Store.open(whole, read_only=True) as store:
        rows = store.dicts("SELECT * FROM features ORDER BY feature")
    assert [r["feature"] for r in rows] == list(range(setup.sae.d_sae))
    statuses = defaultdict(int)
    for row in rows:
        f, values = row["feature"], truth.values[row["feature"]]
        statuses[row["status"]] += 1
        tiles = [truth.active_tiles[f, split] for split in SPLITS]
        wanted = "dead" if not values else "rare" if tiles[0] < 4 else "no_heldout" if not tiles[2] else "live"
        assert row["status"] == wanted
        assert row["n_active_tokens"] == len(values)
        assert row["n_active_tiles"] == sum(tiles)
        assert row["density"] == sum(tiles) / truth.n_tiles
        assert row["token_density"] == len(values) / truth.n_tokens
        assert row["max_activation"] == max(values, default=0.0)
        assert row["mean_activation"] == pytest.approx(np.mean(values) if values else 0, rel=1e-5)
        if values:
            counts, _ = np.histogram(np.float32(values), np.float32(row["histogram_edges"]))
            assert counts.tolist() == row["histogram_counts"]
            assert sum(row["histogram_counts"]) == len(values)
    assert statuses["dead"] >= 3 and statuses["live"] > 10


def test_deciles_follow_the_tiles_maxima(whole: Path, truth: Expected) -> None:
    for (feature, _), rows in contexts(whole, "sampled").items():
        maxima = np.array(truth.tile_maxima[feature])
        for row in rows:
            below, at = (maxima < row["max_activation"]).mean(), (maxima <= row["max_activation"]).mean()
            # One bin of the histogram (an eighth of an octave) may hold several tiles.
            bin_share = ((maxima > row["max_activation"] / 1.13) & (maxima < row["max_activation"] * 1.13)).mean()
            assert 10 * (below - bin_share) - 1 <= row["decile"] <= 10 * (at + bin_share)


def test_negatives_are_silent_and_of_their_tier(whole: Path, setup: Setup, truth: Expected) -> None:
    pools = pool_tiles(setup, SMALL)
    windows = {(w.document, w.start): w for unit in setup.units for w in unit.windows}
    cosine = setup.sae.W_dec @ setup.sae.W_dec.T - 9 * torch.eye(setup.sae.d_sae)
    cosine[:, [f for f in range(setup.sae.d_sae) if not truth.values[f]]] = -9
    neighbours = cosine.topk(3).indices
    top = contexts(whole, "top")
    found = contexts(whole, "negative")
    tiers = defaultdict(int)
    for (feature, split), rows in found.items():
        texts = [
            text_of(setup, windows[r["document"], r["start"]].token_ids, r["offset"], r["offset"] + r["length"])
            for r in rows
        ]
        assert len(set(texts)) == len(texts)
        active_tokens = defaultdict(float)
        for row in top.get((feature, "explain"), []):
            ids = windows[row["document"], row["start"]].token_ids
            active_tokens[ids[row["position"] - row["start"] + row["n_prefix"]]] += row["max_activation"]
        for row in rows:
            tiers[row["tier"]] += 1
            place = row["document"], row["start"]
            assert (*place, row["offset"]) in pools[split]
            assert windows[place].split == split
            tile = slice(row["offset"], row["offset"] + row["length"])
            acts = truth.dense[place][tile]
            assert not acts[:, feature].any()
            assert row["positions"] == [] and row["max_activation"] == 0 and row["decile"] is None
            if row["tier"] == "same_token":
                best = max(active_tokens.values())
                tokens = set(windows[place].token_ids[tile])
                assert any(abs(w - best) < 1e-4 and t in tokens for t, w in active_tokens.items())
            if row["tier"] == "neighbour":
                assert acts[:, neighbours[feature]].any()
        for tier in ("random", "same_token", "neighbour"):
            assert [r["rank"] for r in rows if r["tier"] == tier] == list(range(sum(r["tier"] == tier for r in rows)))
            assert sum(r["tier"] == tier for r in rows) <= SMALL.negatives
    assert min(tiers.values()) > 20 and len(tiers) == 3


def test_random_negatives_are_a_uniform_sample_of_the_silent_tiles(whole: Path, setup: Setup, truth: Expected) -> None:
    """They hold tiles in which a neighbour fires as often as silent tiles do; not only what the other tiers left."""
    pools = pool_tiles(setup, SMALL)
    lengths = {(w.document, w.start): len(w.token_ids) for unit in setup.units for w in unit.windows}
    cosine = setup.sae.W_dec @ setup.sae.W_dec.T - 9 * torch.eye(setup.sae.d_sae)
    cosine[:, [f for f in range(setup.sae.d_sae) if not truth.values[f]]] = -9
    neighbours = cosine.topk(3).indices

    def fires(document: str, start: int, offset: int, features: list[int]) -> bool:
        end = min(offset + SMALL.context_tokens, lengths[document, start])
        return bool(truth.dense[document, start][offset:end][:, features].any())

    expected = variance = 0.0
    held = 0
    for (feature, split), rows in contexts(whole, "negative").items():
        near = neighbours[feature].tolist()
        silent = [tile for tile in pools[split] if not fires(*tile, [feature])]
        drawn = [r for r in rows if r["tier"] == "random"]
        if len(silent) < 3 * len(drawn):
            continue
        share = sum(fires(*tile, near) for tile in silent) / len(silent)
        expected, variance = expected + share * len(drawn), variance + share * (1 - share) * len(drawn)
        held += sum(fires(r["document"], r["start"], r["offset"], near) for r in drawn)
    assert expected > 50 and abs(held - expected) < 4 * variance**0.5


def test_features_do_not_all_show_the_same_silent_tiles(whole: Path) -> None:
    """In one order for all, features of one neighbour would begin with the same tiles, as those of a token would."""
    with Store.open(whole, read_only=True) as store:
        used = store.rows(
            'SELECT tier, count(DISTINCT (window_id, "offset")) / count(*) FROM evidence.context_rows '
            "WHERE kind = 'negative' AND rank = 0 GROUP BY tier ORDER BY tier"
        )
    assert all(share > 0.5 for _, share in used) and len(used) == 3


def test_no_text_stands_on_two_sides(whole: Path) -> None:
    with Store.open(whole, read_only=True) as store:
        assert store.rows("SELECT text FROM contexts GROUP BY text HAVING count(DISTINCT split) > 1") == []
        assert store.rows("SELECT document FROM windows GROUP BY document HAVING count(DISTINCT split) > 1") == []
        shared = store.rows(
            "SELECT DISTINCT r.text_hash, c.text FROM contexts c JOIN evidence.context_rows r USING (context_id)"
        )
    assert len({h for h, _ in shared}) == len({t for _, t in shared}) == len(shared)


def test_tokens_are_the_windows(whole: Path, setup: Setup) -> None:
    with Store.open(whole, read_only=True) as store:
        rows = store.rows("SELECT token_ids, tokens FROM windows")
    assert any("" in tokens for _, tokens in rows)  # split characters
    for ids, tokens in rows:
        assert tokens == setup.text.tokens(ids)


# --- the same tables, whatever way they were computed ----------------------------------------------------------------


def harvested(setup: Setup, root: Path, n_shards: int) -> Path:
    for index in range(n_shards):
        setup.harvest(setup.folder(root / "work"), shard=Shard(index, n_shards))
    return setup.store(root / "x.duckdb", setup.folder(root / "work"))


@pytest.mark.parametrize("n_shards", [2, 7])
def test_shards_give_the_same_tables(setup: Setup, whole: Path, tmp_path: Path, n_shards: int) -> None:
    assert tables_of(harvested(setup, tmp_path, n_shards)) == tables_of(whole)


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


@given(kills=st.lists(st.integers(0, 6), min_size=1, max_size=3), fold_at=st.sampled_from([2, 3, 99]))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_killed_resumed_and_folded(setup: Setup, whole: Path, kills: list[int], fold_at: int) -> None:
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        runs = []
        for after in kills:
            folder = setup.folder(root / "work")

            def die(unit: int, after: int = after) -> None:
                runs.append(unit)
                if unit >= after:
                    raise Killed

            with suppress(Killed):
                setup.harvest(folder, watch=PassWatch(on_unit=die))
            folder.fold(at_least=fold_at)
        setup.harvest(setup.folder(root / "work"))
        setup.folder(root / "work").fold(at_least=fold_at)
        assert len(set(runs)) == len(runs), "a finished unit was harvested again"
        assert tables_of(setup.store(root / "x.duckdb", setup.folder(root / "work"))) == tables_of(whole)


@pytest.mark.parametrize("block", [pytest.param(7, marks=pytest.mark.slow), 24])
def test_feature_blocks_give_the_same_tables(setup: Setup, whole: Path, tmp_path: Path, block: int) -> None:
    config = dataclasses.replace(SMALL, feature_block=block)
    folder = setup.folder(tmp_path / "work", config)
    setup.harvest(folder, config)
    assert tables_of(setup.store(tmp_path / "x.duckdb", folder, config)) == tables_of(whole)


def test_small_tables_and_buffers_give_the_same_tables(
    setup: Setup, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autointerp.harvest.split_pass.TABLE_BYTES_CPU", 1 << 12)  # about two windows
    monkeypatch.setattr("autointerp.harvest.accumulators.BUFFER_ROWS", 64)
    monkeypatch.setattr("autointerp.harvest.accumulators.ACT_ROWS", 256)
    assert tables_of(harvested(setup, tmp_path, 1)) == tables_of(whole)


def test_several_dictionaries_share_a_pass_and_a_store(setup: Setup, whole: Path, tmp_path: Path) -> None:
    folders = [setup.folder(tmp_path / name) for name in "ab"]
    setup.harvest_all([Target(POINT, setup.sae, folder) for folder in folders])
    with Store.open(tmp_path / "x.duckdb", create=True) as store:
        first = setup.merge(store, folders[0], name="a")
        second = setup.merge(store, folders[1], name="b")
        setup.merge(store, folders[0], name="a")  # again: the same rows in the place of the old ones
        for table in ("features", "evidence.context_rows"):
            columns = "* EXCLUDE (dictionary_id, harvest_id" + (", context_id, window_id)" if "." in table else ")")
            rows = [
                store.rows(f"SELECT {columns} FROM {table} WHERE dictionary_id = ? ORDER BY ALL", [d])
                for d in (first, second)
            ]
            assert rows[0] == rows[1] and rows[0]
        assert store.check() == []
        counts = store.rows("SELECT count(*), count(DISTINCT window_id) FROM evidence.windows")
        assert counts[0][0] == counts[0][1] == 2 * len(tables_of(whole)["evidence.windows"])


# --- faults -----------------------------------------------------------------------------------------------------------


class Poisoned(Sae):
    """NaN in the vectors of some calls."""

    share = 0.0

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        pre = super().pre_activations(x)
        n = int(np.ceil(self.share * len(pre)))
        pre[:n] = torch.inf
        return pre


def test_nonfinite_activations_are_counted_and_left_out_or_abort(setup: Setup, tmp_path: Path) -> None:
    sae = Poisoned(setup.sae.W_enc, setup.sae.b_enc, setup.sae.W_dec, setup.sae.b_dec, k=setup.sae.k)
    sae.share = 0.3
    folder = setup.folder(tmp_path / "bad")
    with pytest.raises(AutointerpError, match="NaN or infinite"):
        setup.harvest_all([Target(POINT, sae, folder)])
    assert folder.pieces() == []
    counted = torch.ones(2, 8, dtype=torch.bool)
    x = torch.randn(2, 8, setup.sae.d_in)
    x[0, 3, 5] = torch.nan
    x[1, 6, 0] = torch.inf
    row, position, _, value, n_tokens, n_bad = encoded(setup.sae, counted, x)
    assert (n_tokens, n_bad) == (14, 2)
    assert {(0, 3), (1, 6)}.isdisjoint(zip(row.tolist(), position.tolist(), strict=True))
    assert torch.isfinite(value).all()


def test_recomputed_activations_agree(setup: Setup, whole: Path) -> None:
    with Store.open(whole, read_only=True) as store:
        contexts_ = stored_contexts(store, 1, 200, seed=1)
    found = recompute(setup.loaded, POINT, setup.sae, contexts_, 64, setup.text.special_ids)
    assert found.n_contexts == 200 and found.is_ok and found.relative < 1e-4
    worst = max(contexts_, key=lambda c: len(c.values))
    worst.values[0] *= 1.5
    assert not recompute(setup.loaded, POINT, setup.sae, [worst], 64, setup.text.special_ids).is_ok
