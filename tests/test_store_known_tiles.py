"""The tiles of which everything is known: their text, and the features that fire in them, against the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from support.evidence_helpers import SMALL, Setup, dense_activations, pool_tiles
from support.known_words import job

from autointerp.records import SPLITS
from autointerp.rules.learning import learn
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.samples import sample_of
from autointerp.score.ordinary_firing import firing_of
from autointerp.score.ordinary_tiles import OrdinaryTiles
from autointerp.store.store import Store

CONFIG = replace(SMALL, negative_pool_windows=500)


@pytest.fixture(scope="module")
def setup(tiny_gpt2: Path) -> Setup:
    return Setup(tiny_gpt2, n_units=7)


@pytest.fixture(scope="module")
def store(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    root = tmp_path_factory.mktemp("known")
    folder = setup.folder(root / "work", CONFIG)
    setup.harvest(folder, CONFIG)
    with Store.open(root / "x.duckdb", create=True) as opened:
        setup.merge(opened, folder, CONFIG)
        yield opened


def test_every_tile_has_its_text_and_exactly_the_features_that_fire_in_it(setup: Setup, store: Store) -> None:
    dense = {}
    for unit in setup.units:
        for index, acts in dense_activations(setup, unit).items():
            window = unit.windows[index]
            dense[window.document, window.start] = acts
    pool = pool_tiles(setup, CONFIG)
    features = range(setup.sae.d_sae)
    n_checked = n_firing = 0
    for split in SPLITS:
        tiles = store.known_tiles(1, split)
        firing = store.firing_tiles(1, split, features)
        assert [tile.tile_id for tile in tiles] == list(range(len(tiles)))
        places = store.rows(
            'SELECT w.document, w.start, t."offset", t.length, w.n_prefix FROM evidence.known_tiles AS t '
            "JOIN evidence.windows AS w USING (window_id) WHERE t.split = ? ORDER BY t.tile_id", [split],
        )  # fmt: skip
        for tile, (document, start, offset, length, n_prefix) in zip(tiles, places, strict=True):
            first = offset == n_prefix
            assert tile.begins == ("document" if first and start == 0 else "window" if first else None)
            assert "".join(tile.tokens).encode() == pool[split][document, start, offset]
            acts = dense[document, start][offset : offset + length].max(0)
            assert [f for f in features if tile.tile_id in firing[f]] == np.flatnonzero(acts).tolist()
            n_checked += 1
            n_firing += int((acts > 0).sum())
    assert n_checked > 100 and n_firing > 500


def test_how_often_ordinary_text_fires_is_counted_over_the_tiles_of_the_report_part(store: Store) -> None:
    tiles = store.known_tiles(1, "report")
    firing = store.firing_tiles(1, "report", range(20))
    ordinary = OrdinaryTiles(job(store), "report")
    for feature, ids in firing.items():
        found = firing_of(feature, ordinary)
        assert found is not None and found.share.value == pytest.approx(len(ids) / len(tiles))
        assert found.tokens == pytest.approx(np.mean([len(tile.tokens) for tile in tiles]))
        assert found.in_texts_of(found.tokens).value == pytest.approx(found.share.value)
        half = found.in_texts_of(found.tokens / 2).value
        assert half is not None and (1 - half) ** 2 == pytest.approx(1 - found.share.value)
    assert any(len(ids) for ids in firing.values())


def test_tiles_and_active_tiles_are_counted(setup: Setup, store: Store) -> None:
    features, size = range(setup.sae.d_sae), CONFIG.context_tokens
    for split in SPLITS:
        n_tiles, active = 0, np.zeros(len(features))
        for unit in setup.units:
            for index, acts in dense_activations(setup, unit).items():
                window = unit.windows[index]
                if window.split == split:
                    for start in range(window.n_prefix, len(window.token_ids), size):
                        n_tiles += 1
                        active += acts[start : start + size].max(0) > 0
        assert store.n_tiles(1, split) == n_tiles
        assert store.active_tiles(1, 1, split, features) == dict(enumerate(active))


def test_another_dictionary_keeps_its_tiles_and_old_evidence_has_none(
    setup: Setup, store: Store, tmp_path: Path
) -> None:
    folder = setup.folder(tmp_path / "work", CONFIG)
    setup.harvest(folder, CONFIG)
    with Store.open(tmp_path / "x.duckdb", create=True) as two:
        setup.merge(two, folder, CONFIG)
        before = two.rows("FROM evidence.known_tiles"), two.rows("FROM evidence.firing_tiles")
        setup.merge(two, folder, CONFIG, name="b")
        assert two.rows("FROM evidence.known_tiles WHERE harvest_id = 1 ORDER BY ALL") == sorted(before[0])
        assert len(two.rows("FROM evidence.firing_tiles")) == 2 * len(before[1]) > 0
    with duckdb.connect(str(tmp_path / "x.evidence.duckdb")) as con:
        con.execute("DROP TABLE known_tiles; DROP TABLE firing_tiles; DROP TABLE active_tiles")
    with Store.open(tmp_path / "x.duckdb") as old:
        estimated, counted = (s.active_tiles(1, 1, "explain", range(48)) for s in (old, store))
        ratios = [estimated[f] / counted[f] for f in counted if counted[f]]
        assert 0.4 < np.median(ratios) <= 1  # texts that stand in the corpus twice count once
        assert old.known_tiles(1, "report") == [] and old.firing_tiles(1, "report", [3])[3].tolist() == []
        setup.merge(old, folder, CONFIG, name="b")
        assert {row[0] for row in old.rows("SELECT harvest_id FROM evidence.known_tiles")} == {2}


def test_rules_on_many_texts_predict_what_they_predict_on_each(setup: Setup, store: Store) -> None:
    tiles = store.known_tiles(1, "report")
    many = ManyTexts([tile.tokens for tile in tiles] + [[]])
    tried = 0
    for feature, evidence in store.feature_evidence(1, 1, range(12), 10).items():
        rule = learn(sample_of(evidence))
        predicted = many.predict(rule)
        one_by_one = [rule.predict(tile.tokens) for tile in tiles]
        assert predicted == pytest.approx([p for tile in one_by_one for p in tile], abs=1e-9), feature
        assert many.peaks(predicted) == pytest.approx([max(p) for p in one_by_one] + [0.0], abs=1e-9)
        tried += bool(rule.tables)
    assert tried > 3
