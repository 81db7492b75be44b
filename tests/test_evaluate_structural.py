"""The whole structural evaluation on small models: planted dictionaries, and plain loops over the same windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autointerp.config import ModelConfig
from autointerp.errors import AutointerpError, InputError, MismatchError
from autointerp.evaluate import structural
from autointerp.evaluate.reading_trials import measure, take_sample
from autointerp.evaluate.structural import EARLY_TOKENS, SUSPICIOUS_FVU, StructuralResult, evaluate_structure
from autointerp.model.hooks import Hookpoint, activations_at
from autointerp.model.load import LoadedModel, load_model
from autointerp.records import SPLITS, Window, WorkUnit
from autointerp.sae.sae import Sae

POINTS = {"tiny_gpt2": "transformer.h.1", "tiny_llama": "model.layers.1", "tiny_neox": "gpt_neox.layers.0"}
WIDTHS = {"tiny_gpt2": 48, "tiny_llama": 64, "tiny_neox": 32}
EXCLUDED = {0, 11}
BATCH_TOKENS = 64


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest) -> dict[str, LoadedModel]:
    return {name: load_model(ModelConfig(name=str(request.getfixturevalue(name)), device="cpu")) for name in POINTS}


def some_units(n_units: int = 4, seed: int = 0) -> list[WorkUnit]:
    """Documents of one to three windows with a BOS, all splits in every unit; token 11 comes often."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, n: int = 1) -> list[int]:
        return torch.randint(low, high, (n,), generator=generator).tolist()

    units = []
    for index in range(n_units):
        windows = []
        for number in range(6):
            for part in range(draw(1, 4)[0]):
                ids = draw(1, 60, draw(2, 20)[0])
                name = f"doc{index}-{number}"
                windows.append(Window(name, 20 * part, SPLITS[number % 3], [0, *ids], 1))
        units.append(WorkUnit(index, windows, 6))
    return units


def counted_vectors(loaded: LoadedModel, point: Hookpoint, windows: Sequence[Window]) -> Tensor:
    """[n, d] window by window, without batches."""
    rows = []
    for window in windows:
        x = activations_at(loaded, point, torch.tensor([list(window.token_ids)]))[0]
        kept = [i for i, t in enumerate(window.token_ids) if i >= window.n_prefix and t not in EXCLUDED]
        rows.append(x[kept])
    return torch.cat(rows)


def windows_of(units: Sequence[WorkUnit], split: str | None = None) -> list[Window]:
    return [w for unit in units for w in unit.windows if split in (None, w.split)]


def affine(d: int, share: float, mean: Tensor | None = None, n_dead: int = 0) -> Sae:
    """x_hat = mean + share (x - mean), exactly, and features that never fire."""
    eye, dead = torch.eye(d), torch.zeros(d, n_dead)
    mean = torch.zeros(d) if mean is None else mean.float()
    d_sae = 2 * d + n_dead
    W_dec = torch.cat([eye, -eye, torch.ones(n_dead, d) / d**0.5])
    return Sae(share * torch.cat([eye, -eye, dead], 1), torch.zeros(d_sae), W_dec, mean, threshold=torch.zeros(d_sae))


def topk_sae(d: int, d_sae: int = 40, k: int = 5, seed: int = 0) -> Sae:
    W = torch.nn.functional.normalize(torch.randn(d_sae, d, generator=torch.Generator().manual_seed(seed)), dim=1)
    return Sae(W.T.contiguous(), torch.zeros(d_sae), W, 0.01 * torch.ones(d), k=k)


def first_fvu(
    loaded: LoadedModel, sae: Sae, point: str, units: Iterable[WorkUnit], n_tokens: int = EARLY_TOKENS
) -> float:
    """On the first tokens, as the check of a dictionary from elsewhere measures it."""
    sample = take_sample(loaded, Hookpoint.parse(point), None, units, EXCLUDED, BATCH_TOKENS, n_tokens)
    return measure(sae, sample).fvu


def evaluated(loaded: LoadedModel, sae: Sae, point: str, units: Sequence[WorkUnit], **more: object) -> StructuralResult:
    options: dict[str, object] = {"max_tokens": 10**6, "splice_tokens": 0} | more
    return evaluate_structure(
        loaded,
        sae,
        Hookpoint.parse(point),
        None,
        iter(units),
        EXCLUDED,
        BATCH_TOKENS,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("family", POINTS)
def test_dictionaries_with_known_figures(models: dict[str, LoadedModel], family: str) -> None:
    loaded, point, units = models[family], POINTS[family], some_units()
    d = WIDTHS[family]
    x = counted_vectors(loaded, Hookpoint.parse(point), windows_of(units))
    mean = x.double().mean(0)

    whole = evaluated(loaded, affine(d, 1.0, n_dead=d), point, units, splice_tokens=10**6)
    assert whole.n_tokens == len(x) and whole.n_nonfinite == 0
    for split in (*SPLITS, None):
        exact = ("fvu", 0.0), ("mse", 0.0), ("error_norm_share", 0.0), ("delta_ce", 0.0), ("kl_sae", 0.0)
        for name, value in exact:
            assert whole.value(name, split) == value
        for name in ("cosine", "l2_ratio", "relative_bias", "explained_variance"):
            assert whole.value(name, split) == pytest.approx(1.0)
        assert whole.value("l0", split) == d  # every coordinate, or its opposite
    assert whole.value("l1") == pytest.approx(float(x.abs().sum(1).mean()), rel=1e-5)
    assert whole.value("dead_fraction") == pytest.approx(1 / 3)
    assert whole.value("decoder_mean_max_cosine") == pytest.approx(0.0, abs=1e-6)
    assert whole.value("decoder_redundant_fraction") == 0.0

    constant = evaluated(loaded, affine(d, 0.0, mean), point, units, splice_tokens=10**6)
    assert constant.value("fvu") == pytest.approx(1.0, rel=1e-5)
    assert constant.value("l0") == 0.0 and constant.value("dead_fraction") == 1.0
    assert constant.value("decoder_mean_max_cosine") is None
    assert constant.value("ce_sae") == pytest.approx(constant.value("ce_mean_ablation"), abs=1e-5)

    half = evaluated(loaded, affine(d, 1 - 0.5**0.5, mean), point, units)
    assert half.value("fvu") == pytest.approx(0.5, rel=1e-5)
    assert half.value("ce_sae") is None  # no splice was asked for
    assert evaluated(loaded, affine(d, 0.0), point, units).value("fvu") > 1.0  # type: ignore[operator]


def test_against_plain_loops(models: dict[str, LoadedModel]) -> None:
    loaded, point, units = models["tiny_gpt2"], POINTS["tiny_gpt2"], some_units()
    sae = topk_sae(48)
    result = evaluated(loaded, sae, point, units)
    for split in (*SPLITS, None):
        x = counted_vectors(loaded, Hookpoint.parse(point), windows_of(units, split))
        x_hat, f = sae(x).double(), sae.encode(x)
        x = x.double()
        expected = {
            "fvu": ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(),
            "mse": ((x - x_hat) ** 2).sum(1).mean(),
            "cosine": torch.cosine_similarity(x, x_hat).mean(),
            "l0": (f > 0).sum(1).double().mean(),
            "l1": f.sum(1).mean(),
            "dead_fraction": ((f > 0).sum(0) == 0).double().mean(),
            "dense_fraction": ((f > 0).double().mean(0) > 0.1).double().mean(),
            "input_gamma": x.mean(0).norm() / x.std(0, correction=0).norm(),
        }
        for name, value in expected.items():
            assert result.value(name, split) == pytest.approx(float(value), rel=1e-4), (name, split)
        if split is None:
            np.testing.assert_allclose(result.density, (f > 0).double().mean(0).numpy(), atol=1e-3)
    shown = {(m.metric, m.split) for m in result.metrics}
    assert len(shown) == len(result.metrics)
    fvu = next(m for m in result.metrics if m.metric == "fvu" and m.split is None)
    assert fvu.ci_low is not None and fvu.ci_high is not None and fvu.value is not None
    assert fvu.ci_low < fvu.value < fvu.ci_high and fvu.n_tokens == result.n_tokens


def test_a_bos_and_excluded_tokens_enter_only_their_own_figure(models: dict[str, LoadedModel]) -> None:
    loaded, point, units = models["tiny_llama"], POINTS["tiny_llama"], some_units()
    mean = counted_vectors(loaded, Hookpoint.parse(point), windows_of(units)).double().mean(0)
    result = evaluated(loaded, affine(64, 0.0, mean), point, units)
    n_all = sum(len(w.token_ids) for w in windows_of(units))
    figure = next(m for m in result.metrics if m.metric == "fvu_all_tokens" and m.split is None)
    assert figure.n_tokens == n_all > result.n_tokens and result.value("fvu") == pytest.approx(1.0, rel=1e-5)
    ids = [torch.tensor([list(w.token_ids)]) for w in windows_of(units)]
    x = torch.cat([activations_at(loaded, Hookpoint.parse(point), i)[0] for i in ids]).double()
    assert figure.value == pytest.approx(float(((x - mean) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()), rel=1e-5)


@pytest.mark.parametrize("batch_tokens", [20, 10_000])
def test_batches_do_not_matter(models: dict[str, LoadedModel], batch_tokens: int) -> None:
    loaded, point, units = models["tiny_neox"], Hookpoint.parse(POINTS["tiny_neox"]), some_units()
    sae = affine(32, 0.6)
    one, other = (
        evaluate_structure(
            loaded, sae, point, point, units, torch.tensor([0, 11]), size, max_tokens=10**6, splice_tokens=60
        )
        for size in (BATCH_TOKENS, batch_tokens)
    )
    for a, b in zip(one.metrics, other.metrics, strict=True):
        assert (a.metric, a.split, a.n_tokens) == (b.metric, b.split, b.n_tokens)
        if a.value is not None and not a.metric.startswith("loss_recovered"):
            assert a.value == pytest.approx(b.value, rel=1e-3, abs=2e-5), a.metric
    np.testing.assert_array_equal(one.density, other.density)


def test_no_more_is_read_than_asked_for(models: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """The model reads as many tokens as asked for, sampled from the first READ_TIMES as many of the text."""
    loaded, point = models["tiny_neox"], POINTS["tiny_neox"]
    units = some_units()
    monkeypatch.setattr(structural, "READ_TIMES", 1)
    taken = 0

    def counting() -> Iterator[WorkUnit]:
        nonlocal taken
        for unit in units:
            taken += 1
            yield unit

    first = windows_of(units[:1])
    counts = [len(counted_vectors(loaded, Hookpoint.parse(point), [w])) for w in first]
    wanted = sum(counts[:5]) - 1
    result = evaluate_structure(
        loaded,
        affine(32, 0.5),
        Hookpoint.parse(point),
        None,
        counting(),
        EXCLUDED,
        BATCH_TOKENS,
        max_tokens=wanted,
        splice_tokens=wanted // 2,
    )
    assert wanted - 20 < result.n_tokens <= wanted and taken == 1
    losses = next(m for m in result.metrics if m.metric == "ce_sae" and m.split is None)
    assert 0 < losses.n_tokens <= wanted // 2
    fvu = first_fvu(loaded, affine(32, 0.5), point, counting(), n_tokens=wanted)
    x = torch.cat([counted_vectors(loaded, Hookpoint.parse(point), [w]) for w in first[:5]])
    error = (affine(32, 0.5)(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu == pytest.approx(float(error), rel=1e-4) and taken == 2


def test_the_sample_is_of_all_documents_wherever_the_corpus_begins(models: dict[str, LoadedModel]) -> None:
    """A corpus whose first document is as long as the sample: the first windows would be of one document."""
    loaded, point = models["tiny_neox"], POINTS["tiny_neox"]
    long = WorkUnit(0, [Window("long", 8 * i, "report", [0, *range(1, 9)], 1) for i in range(40)], 1)
    rest = [
        WorkUnit(i, [Window(f"doc{i}-{j}", 0, "report", [0, *range(20 + j, 28 + j)], 1) for j in range(10)], 10)
        for i in range(1, 21)
    ]
    result = evaluated(loaded, affine(32, 0.5), point, [long, *rest], max_tokens=320, splice_tokens=160)
    assert 300 < result.n_tokens <= 320
    for metric in result.metrics:
        spliced = metric.metric.startswith(("ce_", "kl_", "delta_ce", "loss_"))
        assert metric.n_documents > (12 if spliced else 25), metric
    fvu = next(m for m in result.metrics if m.metric == "fvu")
    assert fvu.ci_low is not None
    again = evaluated(loaded, affine(32, 0.5), point, [*rest, long], max_tokens=320)
    assert again.value("fvu") == pytest.approx(result.value("fvu"))  # the order of the corpus does not matter


def test_the_splice_samples_the_whole_corpus() -> None:
    windows = windows_of(some_units(30))
    sample, backwards, other = (structural._Sample(300, seed) for seed in (0, 0, 1))
    for window in windows:
        sample.offer(window, 5)
        other.offer(window, 5)
    for window in reversed(windows):
        backwards.offer(window, 5)
    held = sample.windows()
    assert len(held) == 60 and held == [w for w in windows if w in held]
    assert held == backwards.windows()[::-1] and held != other.windows()
    assert {w.document.partition("-")[0] for w in held[:20]} != {w.document.partition("-")[0] for w in held[-20:]}


def test_a_first_look_comes_early(models: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, point, units = models["tiny_neox"], POINTS["tiny_neox"], some_units()
    monkeypatch.setattr(structural, "EARLY_TOKENS", 100)
    said: list[tuple[int, str]] = []
    sae = topk_sae(32)
    result = evaluated(loaded, sae, point, units, splice_tokens=50, on_progress=lambda n, note: said.append((n, note)))
    drawn = structural._sampled(units, torch.tensor(sorted(EXCLUDED)), 10**6, 0)
    assert result.early_fvu == pytest.approx(first_fvu(loaded, sae, point, [drawn], n_tokens=100), rel=1e-6)
    assert result.early_fvu != result.value("fvu")
    n_early, remark = next((n, note) for n, note in said if note)
    assert 100 <= n_early < 130 and remark.startswith(f"FVU {result.early_fvu:.3f}")
    assert [n for n, _ in said] == sorted(n for n, _ in said) and said[-1][0] == result.n_tokens
    monkeypatch.setattr(structural, "EARLY_TOKENS", 10**6)
    assert evaluated(loaded, sae, point, units).early_fvu == pytest.approx(result.value("fvu"))


def test_a_transcoder_is_measured_by_what_it_predicts(models: dict[str, LoadedModel]) -> None:
    loaded, units = models["tiny_gpt2"], some_units()
    source, target = Hookpoint.parse("transformer.h.1.mlp.c_proj:in"), Hookpoint.parse("transformer.h.1.mlp.c_proj")
    module: Any = loaded.model.get_submodule(target.path)
    weight, bias = module.weight, module.bias
    exact = Sae(torch.zeros(192, 3), -torch.ones(3), torch.eye(3, 48), bias, threshold=torch.zeros(3),
                b_pre=torch.zeros(192), W_skip=weight)  # fmt: skip
    result = evaluate_structure(
        loaded, exact, source, target, units, EXCLUDED, BATCH_TOKENS, max_tokens=10**6, splice_tokens=100
    )
    assert result.value("fvu") == pytest.approx(0.0, abs=1e-10)
    assert result.value("delta_ce") == pytest.approx(0.0, abs=1e-5)
    x = counted_vectors(loaded, source, windows_of(units)).double()
    assert result.value("input_gamma") == pytest.approx(float(x.mean(0).norm() / x.std(0, correction=0).norm()))


def test_a_dictionary_of_another_model_is_refused_or_suspicious(models: dict[str, LoadedModel]) -> None:
    loaded, point, units = models["tiny_neox"], POINTS["tiny_neox"], some_units()
    with pytest.raises(MismatchError, match="width 48"):
        evaluated(loaded, affine(48, 1.0), point, units)
    wrong = topk_sae(32)
    wrong.b_dec += 1.0
    assert first_fvu(loaded, wrong, point, units) > SUSPICIOUS_FVU


def test_what_cannot_be_measured_is_said(models: dict[str, LoadedModel]) -> None:
    loaded, point = models["tiny_neox"], POINTS["tiny_neox"]
    nothing = [WorkUnit(0, [Window("d", 0, "report", [0, 11, 11], 1)], 1)]
    for units in (nothing, []):
        with pytest.raises(InputError, match="no token of the corpus counts"):
            evaluated(loaded, affine(32, 1.0), point, units)
    single = [WorkUnit(0, [Window("d", 0, "report", [0, 4], 1)], 1)]
    with pytest.raises(InputError, match="are the same, so the dictionary"):
        first_fvu(loaded, affine(32, 1.0), point, single)
    broken = affine(32, 1.0)
    broken.W_dec[0, 0] = torch.inf
    with pytest.raises(AutointerpError, match="NaN or infinite"):
        evaluated(loaded, broken, point, some_units())


def test_a_few_broken_tokens_are_left_out_and_counted(
    models: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, point, units = models["tiny_neox"], POINTS["tiny_neox"], some_units()
    real, seen = structural.activations_at_all, 0

    def with_one_nan(loaded: LoadedModel, points: Sequence[Hookpoint], *batch: Tensor) -> list[Tensor]:
        nonlocal seen
        found = [a.clone() for a in real(loaded, points, *batch)]
        if not seen:
            found[0][0, 1, 3] = torch.nan
        seen += 1
        return found

    monkeypatch.setattr(structural, "MOST_NONFINITE", 0.01)
    whole = evaluated(loaded, affine(32, 0.5), point, units)
    monkeypatch.setattr(structural, "activations_at_all", with_one_nan)
    result = evaluated(loaded, affine(32, 0.5), point, units)
    assert result.n_nonfinite == 1 and result.n_tokens == whole.n_tokens - 1
    assert result.value("fvu") == pytest.approx(whole.value("fvu"), rel=0.05)
