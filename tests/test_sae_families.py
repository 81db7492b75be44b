"""Every family: it learns the directions its data is made of, at the sparsity asked for, and what is saved is what was
trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.sae_training import CONFIG
from support.sae_training import vectors as vectors_of_width
from torch import Tensor
from torch.nn import functional as F

from autointerp.config import TrainConfig
from autointerp.errors import InputError
from autointerp.sae.buffer import ArraySource
from autointerp.sae.entries import Pairs
from autointerp.sae.families import FAMILIES, Step, family_named
from autointerp.sae.trainer import Trainer
from autointerp.sae.training_run import DEFAULTS, SaeRun, SaeSpec

K, D_SAE, D = 4, 64, 32


def vectors(n: int, seed: int = 0) -> Tensor:
    return vectors_of_width(n, D, seed=seed)


LONG = replace(
    CONFIG, tokens=700 * 256, batch_size=256, buffer_vectors=4096, warmup_steps=50, lr=5e-3, dead_after=40_000
)


SHORT = replace(LONG, tokens=150 * 256)


def trained(tmp_path: Path, architecture: str, config: TrainConfig = LONG, **settings: Any) -> tuple[Any, SaeRun]:
    spec = SaeSpec("x", architecture, D_SAE, K, settings=settings)
    trainer = Trainer(ArraySource(vectors(20_000), 500), config, [(spec, tmp_path)], log_every=100)
    return trainer.train()[0], trainer.learners[0].run


@pytest.mark.parametrize(
    "architecture", [a if a in ("topk", "jumprelu") else pytest.param(a, marks=pytest.mark.slow) for a in FAMILIES]
)
def test_the_directions_are_found_at_the_sparsity_asked_for(tmp_path: Path, architecture: str) -> None:
    sae, run = trained(tmp_path, architecture)
    true = F.normalize(torch.randn(40, D, generator=torch.Generator().manual_seed(99)), dim=1)
    # nested prefixes are made to mix directions: the first features have to do without the others
    assert float((true @ sae.W_dec.T).amax(1).mean()) > (0.6 if architecture == "matryoshka" else 0.85)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    held_out = vectors(4000, seed=1)
    y_hat, active = sae.reconstruct(held_out)
    unexplained = float((held_out - y_hat).square().sum() / (held_out - held_out.mean(0)).square().sum())
    assert unexplained < (0.45 if run.family.has_penalty and architecture != "jumprelu" else 0.25)
    l0 = len(active.rows) / len(held_out)
    assert l0 <= K if architecture == "topk" else K / 1.6 < l0 < K * 1.6
    assert sae.architecture == architecture


@pytest.mark.parametrize("architecture", [a for a in FAMILIES if a not in ("batchtopk", "matryoshka")])
def test_what_is_saved_computes_what_was_trained(tmp_path: Path, architecture: str) -> None:
    """The finished SAE on raw vectors against the family's own activations on scaled ones."""
    sae, run = trained(tmp_path, architecture, SHORT)
    x = vectors(300, seed=2)
    weights = {name: tensor.detach() for name, tensor in run.weights.items()}
    centred = x * run.scale_in - weights["b_dec"]
    active = run.family.choose([F.linear(centred, weights["encoder"], weights["b_enc"])], weights, run.state)
    pairs = Pairs.of(active, D_SAE)
    zero = torch.zeros(len(x), D)
    step = Step(weights, pairs, active.values, zero, zero, 1.0, 0.0, 1.0)
    acts = pairs.matrix(run.family.loss(step).acts) / run.scale_in
    torch.testing.assert_close(sae.encode(x), acts, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_products_in_bfloat16_learn_nearly_the_same(tmp_path: Path) -> None:
    """What a GPU does by default; the weights stay float32."""
    spec, found = SaeSpec("x", "topk", D_SAE, K), {}
    for precision in ("float32", "bfloat16"):
        config = replace(LONG, tokens=300 * 256, precision=precision)
        source = ArraySource(vectors(20_000), 500)
        sae = Trainer(source, config, [(spec, tmp_path / precision)], log_every=100).train()[0]
        x = vectors(2000, seed=6)
        found[precision] = float((x - sae(x)).square().sum() / (x - x.mean(0)).square().sum())
        assert sae.W_enc.dtype == torch.float32
    assert found["bfloat16"] != found["float32"]
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.1)


def test_a_penalty_that_is_given_is_not_steered(tmp_path: Path) -> None:
    spec = SaeSpec("x", "relu", D_SAE, K, penalty=0.125)
    trainer = Trainer(ArraySource(vectors(1500), 100), CONFIG, [(spec, tmp_path)])
    trainer.train()
    assert trainer.learners[0].run.strength == 0.125


@pytest.mark.slow
def test_norm_weighted_penalty_leaves_the_rows_free_and_folds_them_back(tmp_path: Path) -> None:
    sae, run = trained(tmp_path, "relu", decoder_norm_penalty=True)
    norms = run.weights["decoder"].detach().norm(dim=1)
    assert float((norms - 1).abs().max()) > 0.01
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    x = vectors(200, seed=3)
    weights = {name: tensor.detach() for name, tensor in run.weights.items()}
    f = F.linear(x * run.scale_in - weights["b_dec"], weights["encoder"], weights["b_enc"]).relu()
    y_hat = (f @ weights["decoder"] + weights["b_dec"]) / run.scale_in
    torch.testing.assert_close(sae(x), y_hat, rtol=1e-3, atol=1e-3)


def test_batch_topk_chooses_over_the_batch_and_keeps_a_threshold() -> None:
    family = family_named("batchtopk")(3, 20, 8, dict(DEFAULTS))
    pre = torch.randn(10, 20)
    pre[0] += 3  # one vector needs most of them
    state = family.state()
    active = family.choose([pre[:4], pre[4:]], {}, state)
    expected = (pre >= pre.flatten().topk(30).values[-1]) & (pre > 0)
    assert torch.equal(active.dense(20) > 0, expected)
    assert float(state["threshold"]) == pytest.approx(float(pre[expected].min()))
    again = family.choose([pre], {}, state)  # with a bound from the last step: the same choice
    assert torch.equal(again.dense(20), active.dense(20))


@pytest.mark.slow
def test_matryoshka_prefixes_reconstruct_on_their_own(tmp_path: Path) -> None:
    nested, _ = trained(tmp_path / "a", "matryoshka", prefixes=[0.25, 1.0])
    plain, _ = trained(tmp_path / "b", "batchtopk")
    x = vectors(2000, seed=4)

    def by_first_quarter(sae: Any) -> float:
        f = sae.encode(x)
        f[:, D_SAE // 4 :] = 0
        return float((x - sae.decode(f)).square().sum())

    assert by_first_quarter(nested) < 0.8 * by_first_quarter(plain)


def test_p_annealing_keeps_the_total_penalty_and_prefers_few_large_activations() -> None:
    family: Any = family_named("p_anneal")(2, 4, 1, dict(DEFAULTS))
    pre = torch.tensor([0.5, 4.0], requires_grad=True)
    pairs = Pairs(torch.tensor([0, 0]), torch.tensor([0, 1]), 1, 4)
    decoder = torch.ones(4, 1)
    totals, slopes = [], []
    for progress in (0.0, 1.0):
        step = Step({"decoder": decoder}, pairs, pre, torch.zeros(1, 1), torch.zeros(1, 1), 1.0, 1.0, progress)
        penalty = family.penalties(step).sum()
        totals.append(float(penalty.detach()))
        slopes.append(torch.autograd.grad(penalty, pre)[0])
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)
    assert slopes[0][0] == slopes[0][1] and slopes[1][0] > 5 * slopes[1][1]


def test_jumprelu_thresholds_learn_only_near_themselves() -> None:
    family: Any = family_named("jumprelu")(2, 3, 2, DEFAULTS | {"bandwidth": 0.2, "first_threshold": 1.0})
    log_threshold = torch.zeros(3, requires_grad=True)
    pre = torch.tensor([1.05, 0.95, 3.0], requires_grad=True)
    pairs = Pairs(torch.zeros(3).long(), torch.arange(3), 1, 3)
    decoder: Tensor = torch.zeros(3, 2)
    zero = torch.zeros(1, 2)
    step = Step({"log_threshold": log_threshold, "decoder": decoder}, pairs, pre, zero, zero, 1.0, 0.5, 0.0)
    loss = family.loss(step)
    assert loss.acts.tolist() == pytest.approx([1.05, 0.0, 3.0])
    (slope,) = torch.autograd.grad(loss.total, [log_threshold])
    # d(strength * L0)/d threshold = -strength / bandwidth where |pre - threshold| < bandwidth / 2
    assert slope.tolist() == pytest.approx([-2.5, -2.5, 0.0])


def test_an_unknown_family_names_the_nearest() -> None:
    with pytest.raises(InputError, match="'jumpreul' cannot be trained.*jumprelu"):
        family_named("jumpreul")
