"""Relations between features against numpy over the dense activations of the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.evidence_helpers import BATCH_TOKENS, POINT, Setup, dense_activations

from autointerp.config import EvidenceConfig
from autointerp.evidence import feature_relations as module
from autointerp.evidence.feature_relations import (
    FEWEST_TOKENS,
    TokenCodes,
    explain_windows,
    firing_relations,
    relations,
    token_codes,
)
from autointerp.records import SPLITS, Window
from autointerp.sae.sae import Sae

N = 4


def codes_of(dense: np.ndarray) -> TokenCodes:
    """Sparse codes of [tokens, features], as if padding stood between the tokens."""
    token, feature = np.nonzero(dense)
    return TokenCodes(2 * token, feature, dense[token, feature].astype(np.float32), 2 * len(dense), len(dense), 1)


def activations(n_tokens: int = 400, n_features: int = 23) -> np.ndarray:
    """Feature 1 is nearly 0; 2 and 3 never fire together and often; 4 is dead, 5 rare, 6 constant."""
    rng = np.random.default_rng(0)
    dense = rng.random((n_tokens, n_features)) * (rng.random((n_tokens, n_features)) < rng.random(n_features) * 0.4)
    dense[:, 1] = dense[:, 0] * (1 + 0.01 * rng.random(n_tokens))
    turn = np.arange(n_tokens) % 2 == 0
    dense[:, 2], dense[:, 3] = np.where(turn, 1.0, 0.0), np.where(turn, 0.0, 1.5)
    dense[:, 4], dense[:, 5], dense[:, 6] = 0.0, 0.0, 2.0
    dense[: FEWEST_TOKENS - 1, 5] = 1.0
    return dense.astype(np.float32)


def expected(dense: np.ndarray, alive: np.ndarray) -> dict[tuple[int, str], list[tuple[int, float]]]:
    active = dense > 0
    used = np.flatnonzero(alive & (active.sum(0) >= FEWEST_TOKENS))
    varies = dense.std(0) > 0
    found = {}
    for i in used:
        jaccard = {j: (active[:, i] & active[:, j]).sum() / (active[:, i] | active[:, j]).sum() for j in used if j != i}
        r = {j: np.corrcoef(dense[:, i], dense[:, j])[0, 1] for j in used if j != i and varies[i] and varies[j]}
        for name, values in (
            ("coactive", jaccard),
            ("correlated", r),
            ("anticorrelated", {j: -v for j, v in r.items()}),
        ):
            sign = -1 if name == "anticorrelated" else 1
            best = sorted((j for j in values if values[j] > 0), key=lambda j, v=values: (-v[j], j))[:N]  # type: ignore[misc]
            found[int(i), name] = [(int(j), sign * float(values[j])) for j in best]
    return found


@pytest.mark.parametrize("block", [1 << 22, 50])
def test_against_dense_numpy(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    dense = activations()
    alive = np.ones(dense.shape[1], dtype=bool)
    alive[9] = False
    found = {
        (feature, name): (neighbours.tolist(), values)
        for feature, name, neighbours, values in firing_relations(codes_of(dense), N, alive)
    }
    wanted = expected(dense.astype(np.float64), alive)
    assert {key for key, (ids, _) in found.items() if ids} == {key for key, rows in wanted.items() if rows}
    for key, rows in wanted.items():
        ids, values = found.get(key, ([], []))
        assert ids == [j for j, _ in rows], key
        assert values == pytest.approx([v for _, v in rows], abs=1e-9)


def test_planted_pairs_come_first() -> None:
    dense = activations()
    first = {
        (feature, name): (int(neighbours[0]), float(values[0]))
        for feature, name, neighbours, values in firing_relations(codes_of(dense), N, np.ones(dense.shape[1], bool))
        if len(neighbours)
    }
    for a, b in ((0, 1), (1, 0)):
        assert first[a, "coactive"] == (b, 1.0)
        assert first[a, "correlated"][0] == b and first[a, "correlated"][1] > 0.99
    assert first[2, "anticorrelated"] == (3, pytest.approx(-1.0))
    assert first[3, "anticorrelated"] == (2, pytest.approx(-1.0))
    assert not {4, 5} & {feature for feature, _ in first}  # dead, and too rare to say
    assert (6, "coactive") in first and (6, "correlated") not in first  # always on, always the same


def test_the_codes_of_a_stretch_of_text(tiny_gpt2: Path) -> None:
    """Every counted token of the explain split, and what the SAE says of it."""
    setup = Setup(tiny_gpt2)
    excluded = torch.tensor(sorted(setup.text.special_ids))
    units = [unit.windows for unit in setup.units]
    codes = token_codes(setup.loaded, setup.sae, POINT, units, 10**9, excluded, BATCH_TOKENS)
    dense = [
        acts[window.n_prefix :]
        for unit in setup.units
        for window, acts in zip(
            unit.windows, map(dense_activations(setup, unit).get, range(len(unit.windows))), strict=True
        )
        if window.split == "explain" and acts is not None
    ]
    every = np.concatenate(dense)
    assert codes.n_tokens == len(every)
    assert len(np.unique(codes.token)) <= len(every) and codes.token.max() < codes.size
    for feature in range(setup.sae.d_sae):
        own = np.sort(codes.value[codes.feature == feature])
        assert own == pytest.approx(np.sort(every[every[:, feature] > 0, feature]), rel=1e-4, abs=1e-5)


def test_columns_of_a_dictionary_with_a_near_duplicate(tiny_gpt2: Path) -> None:
    setup = Setup(tiny_gpt2)
    W_dec, b_enc = setup.sae.W_dec.clone(), setup.sae.b_enc.clone()
    W_dec[7] = torch.nn.functional.normalize(W_dec[6] + 1e-3 * W_dec[8], dim=0)
    sae = Sae(W_dec.T.contiguous(), b_enc, W_dec, setup.sae.b_dec, k=setup.sae.k)
    alive = np.arange(sae.d_sae) < sae.d_sae - 3  # the last three never fire
    config = EvidenceConfig(relation_tokens=600, related=3)
    excluded = torch.tensor(sorted(setup.text.special_ids))
    units = (unit.windows for unit in setup.units)
    columns = relations(setup.loaded, sae, POINT, units, config, excluded, BATCH_TOKENS, alive).columns
    rows = list(zip(*columns.values(), strict=True))
    assert list(columns) == ["feature", "relation", "rank", "neighbour", "value"]
    assert rows == sorted(rows, key=lambda r: (r[0], module.RELATIONS.index(r[1]), r[2]))
    assert {r[1] for r in rows} == set(module.RELATIONS)
    assert {r[0] for r in rows if r[1] == "decoder"} == set(np.flatnonzero(alive).tolist())
    assert max(max(r[0], r[3]) for r in rows) < sae.d_sae - 3
    nearest = {(r[0], r[1]): r[3] for r in rows if r[2] == 0}
    for relation in ("decoder", "coactive", "correlated"):
        assert nearest[6, relation] == 7 and nearest[7, relation] == 6
    cosine = W_dec @ W_dec.T
    for feature, relation, _, neighbour, value in rows:
        assert feature != neighbour
        if relation == "decoder":
            assert value == pytest.approx(float(cosine[feature, neighbour]), abs=1e-5)


def test_a_corpus_without_explain_text_has_decoder_neighbours_only(tiny_gpt2: Path) -> None:
    setup = Setup(tiny_gpt2)
    units = [[w for w in unit.windows if w.split != "explain"] for unit in setup.units]
    alive = np.ones(setup.sae.d_sae, dtype=bool)
    columns = relations(
        setup.loaded, setup.sae, POINT, units, EvidenceConfig(), torch.zeros(0, dtype=torch.int64), BATCH_TOKENS, alive
    ).columns
    assert set(columns["relation"]) == {"decoder"}


UNITS = st.lists(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(SPLITS)), max_size=8), max_size=5)


@given(UNITS, st.integers(1, 60))
def test_windows_for_a_number_of_tokens(shapes: list[list[tuple[int, str]]], n_tokens: int) -> None:
    """Explain windows only, within the number (the first one apart), and all of them where there are no more."""
    units = [
        [Window(f"{u}-{i}", 0, split, [0] * (n + 1), 1) for i, (n, split) in enumerate(unit)]  # type: ignore[arg-type]
        for u, unit in enumerate(shapes)
    ]
    asked = 0

    def source() -> Iterator[list[Window]]:
        nonlocal asked
        for unit in units:
            asked += 1
            yield unit

    chosen = [w for part in explain_windows(source(), n_tokens) for w in part]
    lengths = [len(w.token_ids) - 1 for w in chosen]
    every = [w for unit in units for w in unit if w.split == "explain"]
    assert all(w.split == "explain" for w in chosen) and len({w.document for w in chosen}) == len(chosen)
    assert sum(lengths) <= n_tokens or len(chosen) == 1
    assert bool(chosen) == bool(every)
    if sum(len(w.token_ids) - 1 for w in every) <= n_tokens:
        assert chosen == every
    held = [sum(n for n, split in unit if split == "explain") for unit in shapes]
    needed = next((i + 1 for i in range(len(held)) if sum(held[: i + 1]) >= n_tokens), len(held))
    assert asked == needed
