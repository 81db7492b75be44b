"""Attention sinks: a few vectors that are a hundred times as long as the others must not take the training over."""

import pytest
import torch
from torch import Tensor

from autointerp.config import TrainConfig
from autointerp.errors import DamagedError, InputError
from autointerp.sae.buffer import ArraySource
from autointerp.sae.formats import load_sae, sae_sha256, save_saelens, save_sparsify
from autointerp.sae.long_vectors import LIMIT, is_ordinary, limit_of
from autointerp.sae.sae import Sae
from autointerp.sae.trainer import Trainer
from autointerp.sae.training_run import SaeSpec

WIDTH = 24
EVERY = 500


def vectors(n: int, seed: int = 0) -> Tensor:
    """Sparse sums of 40 directions; every 500th one is a sink, 300 times as long, near one direction."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(
        torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(9)), dim=1
    )
    strengths = torch.rand(n, 40, generator=generator) * (torch.rand(n, 40, generator=generator) < 0.08)
    found = strengths @ directions + 0.01 * torch.randn(n, WIDTH, generator=generator)
    sinks = torch.arange(0, n, EVERY)
    lengths = 200 + 200 * torch.rand(len(sinks), 1, generator=generator)
    found[sinks] = lengths * directions[:1] + torch.randn(len(sinks), WIDTH, generator=generator) * 5
    return found


def trained(longest: float, folder, x: Tensor | None = None) -> Sae:
    config = TrainConfig(
        tokens=60_000, batch_size=500, buffer_vectors=30_000, lr=2e-3, longest=longest, dead_after=5000
    )
    source = ArraySource(vectors(30_000) if x is None else x)
    (sae,) = Trainer(source, config, [(SaeSpec("x", "topk", 48, 4), folder)]).train()
    return sae


def unexplained(sae: Sae, x: Tensor) -> float:
    return float((x - sae(x)).square().sum() / (x - x.mean(0)).square().sum())


def test_ordinary_vectors_are_learnt_as_if_there_were_no_sinks(tmp_path):
    without, with_them = trained(10.0, tmp_path / "a"), trained(0, tmp_path / "b")
    fresh = vectors(5000, seed=1)
    ordinary = fresh[is_ordinary(fresh, float(fresh.norm(dim=1).median()) * 10)]
    assert len(ordinary) == len(fresh) - len(fresh) // EVERY
    all_ordinary = trained(0, tmp_path / "c", vectors(30_000)[torch.arange(30_000) % EVERY != 0])
    assert unexplained(without, ordinary) < 1.1 * unexplained(all_ordinary, ordinary)
    assert unexplained(with_them, ordinary) > 1.1 * unexplained(without, ordinary)
    assert with_them.longest is None


@pytest.mark.parametrize("save", [save_saelens, save_sparsify])
def test_no_feature_is_active_on_a_longer_vector_also_after_it_was_saved(tmp_path, save):
    sae = trained(10.0, tmp_path / "training")
    save(sae, tmp_path / "saved", sae.metadata)
    loaded, fresh = load_sae(tmp_path / "saved"), vectors(2000, seed=2)
    assert loaded.longest == sae.longest
    rows = set(loaded.encode_sparse(fresh).rows.tolist())
    assert rows.isdisjoint(range(0, 2000, EVERY))
    assert len(rows) > 1500
    dense = loaded.encode(fresh)
    assert not dense[::EVERY].any()
    assert torch.equal(dense > 0, loaded.encode_sparse(fresh).dense(loaded.d_sae) > 0)


def test_the_limit_is_kept_by_a_training_that_goes_on(tmp_path):
    config = TrainConfig(tokens=20_000, batch_size=500, buffer_vectors=30_000, checkpoint_every=10)

    def trainer() -> Trainer:
        return Trainer(ArraySource(vectors(30_000)), config, [(SaeSpec("x", "topk", 48, 4), tmp_path)])

    whole = trainer()
    limit = whole.learners[0].run.longest
    whole.train()
    assert limit is not None
    assert trainer().learners[0].run.longest == limit


def test_vectors_that_are_not_finite_are_left_to_those_who_look_for_them():
    x = torch.ones(5, 3)
    x[1], x[2] = torch.nan, torch.inf
    x[3] = 100
    assert is_ordinary(x, 10.0).tolist() == [True, True, True, False, True]
    assert limit_of(torch.ones(4, 9), 10) == 30
    assert limit_of(torch.ones(4, 9), 0) is None
    assert limit_of(torch.zeros(4, 9), 10) is None


@pytest.mark.parametrize("save", [save_saelens, save_sparsify])
def test_the_hash_follows_the_limit_and_without_one_is_what_it_was(tmp_path, save):
    sae = Sae(torch.ones(2, 2), torch.zeros(2), torch.ones(2, 2), torch.zeros(2), k=1)
    for name, metadata in (("none", {}), ("three", {LIMIT: 3.0}), ("four", {LIMIT: 4.0})):
        save(sae, tmp_path / name, metadata)
    none, three, four = (sae_sha256(tmp_path / name) for name in ("none", "three", "four"))
    assert len({none, three, four}) == 3
    assert {sae_sha256(tmp_path / name, with_limit=False) for name in ("none", "three", "four")} == {none}


@pytest.mark.parametrize("value", ["long", True, -1, 0, float("inf"), float("nan"), [3], {"a": 1}])
def test_a_file_that_names_no_length_is_refused(tmp_path, value):
    sae = Sae(torch.ones(2, 3), torch.zeros(3), torch.ones(3, 2), torch.zeros(2), k=1)
    sae.metadata = {LIMIT: value}
    with pytest.raises(DamagedError, match="longest_vector"):
        sae.encode_sparse(torch.ones(1, 2))
    save_saelens(sae, tmp_path / "saved", sae.metadata)
    with pytest.raises(DamagedError, match=r"saved: the SAE's longest_vector"):
        load_sae(tmp_path / "saved")


def test_a_limit_below_the_median_is_refused():
    with pytest.raises(InputError, match=r"train\.longest = 0\.5"):
        TrainConfig(longest=0.5)
