"""A unit killed at any batch goes on from its state with the same tables; a state that does not fit is not used."""

from __future__ import annotations

import dataclasses
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from support.evidence_helpers import POINT, SMALL, Setup, small_sae, tables_of

from autointerp.harvest.checkpoint import UnitState, read_state, write_state
from autointerp.harvest.target import Target
from autointerp.harvest.text_pass import PassWatch
from autointerp.harvest.unit_evidence import EvidenceParts
from autointerp.model.hooks import Hookpoint


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


class Dying:
    """Dies after so many batches. Its clock counts batches, so that a state is written after each."""

    def __init__(self, after: int | None = None) -> None:
        self.said: list[str] = []
        self.n_batches = 0
        self._after = after
        self.watch = PassWatch(
            on_tokens=self._on_tokens, say=self.said.append, keep_every_s=1.0, clock=lambda: float(self.n_batches)
        )

    def _on_tokens(self, unit: int, tokens: int) -> None:
        self.n_batches += 1
        if self.n_batches == self._after:
            raise Killed


@pytest.fixture(scope="module")
def setup(tiny_gpt2: Path) -> Setup:
    return Setup(tiny_gpt2, n_units=3)


@pytest.fixture(scope="module")
def whole(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The store of a harvest that nothing disturbed, and its number of batches."""
    root, dying = tmp_path_factory.mktemp("whole"), Dying()
    quiet = dataclasses.replace(dying.watch, keep_every_s=1e9)
    folder = setup.folder(root / "work")
    setup.harvest(folder, watch=quiet)
    assert not (root / "work" / "partial").exists(), "nothing is written where units are short"
    return setup.store(root / "x.duckdb", folder), dying.n_batches


def partial(root: Path) -> list[Path]:
    return sorted((root / "work" / "partial").glob("*"))


@pytest.mark.parametrize("block", [None, 20])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_killed_at_random_batches(
    setup: Setup, whole: tuple[Path, int], tmp_path: Path, seed: int, block: int | None
) -> None:
    rng, config = random.Random(seed), dataclasses.replace(SMALL, feature_block=block)
    n_passes = 1 if block is None else 3
    n_run, resumed = 0, 0
    for after in (rng.randint(3, 5), rng.randint(3, 14), None):
        dying = Dying(after)
        with suppress(Killed):
            setup.harvest(setup.folder(tmp_path / "work", config), config, watch=dying.watch)
        n_run += dying.n_batches
        resumed += sum("goes on inside work unit" in line for line in dying.said)
    assert resumed and not partial(tmp_path)
    assert tables_of(setup.store(tmp_path / "x.duckdb", setup.folder(tmp_path / "work", config), config)) == tables_of(
        whole[0]
    )
    assert n_run >= whole[1] * n_passes


def test_what_was_done_is_not_done_again(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autointerp.harvest import unit as unit_module

    calls = []
    forward = unit_module.activations_at_all
    monkeypatch.setattr(unit_module, "activations_at_all", lambda *a: (calls.append(1), forward(*a))[1])
    with suppress(Killed):
        setup.harvest(setup.folder(tmp_path / "work"), watch=Dying(4).watch)
    before = len(calls)
    setup.harvest(setup.folder(tmp_path / "work"), watch=Dying().watch)
    at_once = len(calls) - before
    calls.clear()
    setup.harvest(setup.folder(tmp_path / "other" / "work"))
    # The batch in which it died had no time to be kept.
    assert before == 4 and before - 1 + at_once == len(calls)


@pytest.mark.parametrize("block", [None, 20])
def test_what_an_earlier_run_did_is_told_apart(setup: Setup, tmp_path: Path, block: int | None) -> None:
    """The rest, over this run's time, is this run's speed."""
    config, told, skipped = dataclasses.replace(SMALL, feature_block=block), [], []

    def harvest(dying: Dying) -> None:
        def on_tokens(unit: int, tokens: int) -> None:
            told.append(tokens)
            dying.watch.on_tokens(unit, tokens)

        watch = dataclasses.replace(dying.watch, on_tokens=on_tokens, on_skipped=skipped.append)
        setup.harvest(setup.folder(tmp_path / "work", config), config, watch=watch)

    with suppress(Killed):
        harvest(Dying(4))
    kept = told[2]  # the batch in which it died had no time to be kept
    assert len(told) == 4 and not skipped and kept > 0
    told.clear()
    harvest(Dying())
    assert len(skipped) == 3 and sum(skipped) == kept == told[2] < told[-1]


@pytest.mark.slow
def test_targets_at_different_places_wait_for_one_another(
    setup: Setup, whole: tuple[Path, int], tmp_path: Path
) -> None:
    """One was killed alone, further on than the other: then both go on together."""
    roots = [tmp_path / name for name in "ab"]
    for root, after in zip(roots, (4, 2), strict=True):
        with suppress(Killed):
            setup.harvest(setup.folder(root / "work"), watch=Dying(after).watch)
    targets = [Target(POINT, setup.sae, setup.folder(root / "work"), name=root.name) for root in roots]
    dying = Dying()
    setup.harvest_all(targets, watch=dying.watch)
    assert [line.split(":")[0] for line in dying.said] == ["a", "b"]
    for root in roots:
        assert tables_of(setup.store(root / "x.duckdb", setup.folder(root / "work"))) == tables_of(whole[0])


@pytest.mark.parametrize("harm", ["truncated", "flipped", "foreign", "empty"])
def test_a_state_that_does_not_fit_is_refused_and_told(
    setup: Setup, whole: tuple[Path, int], tmp_path: Path, harm: str
) -> None:
    with suppress(Killed):
        setup.harvest(setup.folder(tmp_path / "work"), watch=Dying(4).watch)
    (file,) = partial(tmp_path)
    raw = bytearray(file.read_bytes())
    if harm == "truncated":
        file.write_bytes(raw[: len(raw) // 2])
    elif harm == "flipped":
        raw[len(raw) // 3] ^= 1
        file.write_bytes(raw)
    elif harm == "empty":
        file.write_bytes(b"")
    else:
        config = dataclasses.replace(SMALL, seed=9)
        other = setup.folder(tmp_path / "other" / "work", config)
        with suppress(Killed):
            setup.harvest(other, config, watch=Dying(4).watch)
        file.write_bytes(partial(tmp_path / "other")[0].read_bytes())
    dying = Dying()
    setup.harvest(setup.folder(tmp_path / "work"), watch=dying.watch)
    assert any("is not used" in line and "harvested from its start" in line for line in dying.said), dying.said
    assert ("belongs to another" if harm == "foreign" else "cannot be read") in dying.said[0]
    assert tables_of(setup.store(tmp_path / "x.duckdb", setup.folder(tmp_path / "work"))) == tables_of(whole[0])


def facts_of(state: UnitState) -> object:
    tables = {
        table: [{name: (column.dtype.str, column.tolist()) for name, column in part.items()} for part in parts]
        for table, parts in state.parts.tables.items()
    }
    unfinished = {name: (tensor.dtype, tensor.tolist()) for name, tensor in state.unfinished.items()}
    counted = dict(state.parts.n_tokens), state.parts.n_nonfinite, state.halvings
    return state.place, tables, unfinished, counted


def test_flipped_bits_are_refused_or_change_nothing(tmp_path: Path) -> None:
    parts = EvidenceParts()
    parts.n_tokens["explain"], parts.n_nonfinite = 12, 1
    parts.add(0, {"stats": {"feature": np.arange(5), "max": np.linspace(0, 1, 5, dtype=np.float32)}})
    unfinished = {"counts.sums": torch.arange(4, dtype=torch.float64), "log.key": torch.tensor([3, 1])}
    path, identity = tmp_path / "u.npz", {"unit": 7}
    write_state(path, identity, UnitState((1, 0, 2), parts, unfinished, 1))
    raw, (state, _) = path.read_bytes(), read_state(path, identity)
    assert state is not None and state.place == (1, 0, 2)
    expected, rng, refused = facts_of(state), random.Random(0), 0
    for _ in range(600):
        flipped = bytearray(raw)
        for _ in range(rng.choice((1, 1, 3))):
            flipped[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        found, reason = read_state(path, identity)
        assert bool(reason) == (found is None)
        refused += found is None
        if found is not None:
            assert facts_of(found) == expected
    assert 300 < refused < 600


def test_three_dictionaries_at_two_hookpoints_in_one_pass(setup: Setup, tmp_path: Path) -> None:
    """The folders of a shared pass, killed in between, hold what three passes give."""
    other = small_sae(setup.loaded, setup.units, d_sae=30, k=3, seed=8)
    early = Hookpoint.parse("transformer.h.0.mlp")
    chosen = {"a": (POINT, setup.sae), "b": (early, other), "c": (POINT, other)}

    def targets(root: Path) -> list[Target]:
        return [Target(point, sae, setup.folder(root / name)) for name, (point, sae) in chosen.items()]

    for target in targets(tmp_path / "apart"):
        setup.harvest_all([target])
    for after in (3, 7, None):
        with suppress(Killed):
            setup.harvest_all(targets(tmp_path / "together"), watch=Dying(after).watch)
    for name in chosen:
        found = []
        for root in (tmp_path / "apart", tmp_path / "together"):
            files = sorted(p for p in (root / name).rglob("*") if p.is_file())
            found.append({p.relative_to(root): p.read_bytes() for p in files})
        assert found[0] == found[1] and len(found[0]) > 20
