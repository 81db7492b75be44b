"""The splice: dictionaries whose loss is known beforehand, and the loss itself against plain Python loops."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from autointerp.config import ModelConfig
from autointerp.errors import AutointerpError, InputError
from autointerp.evaluate.splice import SPLICED, splice_metrics
from autointerp.model.hooks import Hookpoint, activations_at, hidden_size_at, hooked
from autointerp.model.load import LoadedModel, load_model
from autointerp.records import SPLITS, Window
from autointerp.resources import data_folder
from autointerp.sae.sae import Sae

POINTS = {
    "tiny_gpt2": ("transformer.h.1", "transformer.h.1.mlp.c_proj"),
    "tiny_llama": ("model.layers.1", "model.layers.1.mlp.down_proj"),
    "tiny_neox": ("gpt_neox.layers.0", "gpt_neox.layers.0.mlp.dense_4h_to_h"),
}
"""A block, and a linear module of its."""
BATCH_TOKENS = 64


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest) -> dict[str, LoadedModel]:
    return {name: load_model(ModelConfig(name=str(request.getfixturevalue(name)), device="cpu")) for name in POINTS}


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    """A trained model: of it, an ablation costs something."""
    return load_model(ModelConfig(name=str(data_folder() / "demo_model"), device="cpu"))


def random_windows(n: int = 9, seed: int = 0) -> list[Window]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 20, (n,), generator=generator).tolist()
    return [
        Window(f"doc{i // 2}", 20 * (i % 2), SPLITS[i // 2 % 3], [0, *ids.tolist()], 1)
        for i, ids in enumerate(torch.randint(1, 600, (length,), generator=generator) for length in lengths)
    ]


def code_windows(loaded: LoadedModel, n: int = 8, length: int = 48) -> list[Window]:
    ids = loaded.tokenizer(inspect.getsource(json.decoder), add_special_tokens=False)["input_ids"]
    bos = [loaded.tokenizer.bos_token_id] if loaded.tokenizer.bos_token_id is not None else []
    return [
        Window(f"doc{i}", 0, SPLITS[i % 3], [*bos, *ids[i * length : (i + 1) * length]], len(bos)) for i in range(n)
    ]


def affine(d: int, share: float, mean: Tensor | None = None) -> Sae:
    """x_hat = mean + share (x - mean), exactly: every direction and its opposite is a feature."""
    eye = torch.eye(d)
    mean = torch.zeros(d) if mean is None else mean.float()
    return Sae(share * torch.cat([eye, -eye], 1), torch.zeros(2 * d), torch.cat([eye, -eye]), mean,
               threshold=torch.zeros(2 * d), architecture="relu")  # fmt: skip


def linear_transcoder(loaded: LoadedModel, path: str) -> Sae:
    """What a linear module computes, as a skip term beside features that never fire."""
    module: Any = loaded.model.get_submodule(path)
    weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
    d_in, d_out = weight.shape
    bias = torch.zeros(d_out) if getattr(module, "bias", None) is None else module.bias
    return Sae(torch.zeros(d_in, 3), torch.full((3,), -1.0), torch.eye(3, d_out), bias, threshold=torch.zeros(3),
               b_pre=torch.zeros(d_in), W_skip=weight)  # fmt: skip


def counted_mean(loaded: LoadedModel, point: Hookpoint, windows: Sequence[Window], excluded: set[int]) -> Tensor:
    rows = []
    for window in windows:
        x = activations_at(loaded, point, torch.tensor([list(window.token_ids)]))[0]
        keep = [i for i, t in enumerate(window.token_ids) if i >= window.n_prefix and t not in excluded]
        rows.append(x[keep])
    return torch.cat(rows).double().mean(0)


def figures(
    loaded: LoadedModel, sae: Sae, point: str, windows: list[Window], **more: object
) -> dict[str, float | None]:
    found = splice_metrics(loaded, sae, Hookpoint.parse(point), None, windows, [0], BATCH_TOKENS, **more)  # type: ignore[arg-type]
    return {m.metric: m.value for m in found if m.split is None}


@pytest.mark.parametrize("family", POINTS)
@pytest.mark.parametrize("side", ["", ":in"])
def test_an_identity_changes_nothing(models: dict[str, LoadedModel], family: str, side: str) -> None:
    loaded, point = models[family], POINTS[family][0] + side
    found = figures(loaded, affine(hidden_size_at(loaded, Hookpoint.parse(point)), 1.0), point, random_windows())
    assert found["ce_sae"] == found["ce_clean"] == found["ce_with_error_term"]
    assert found["delta_ce"] == found["kl_sae"] == 0.0
    assert found["ce_zero_ablation"] != found["ce_clean"] and (found["kl_zero_ablation"] or 0) > 1e-6


@pytest.mark.parametrize("family", POINTS)
def test_the_error_term_restores_the_loss_of_any_dictionary(models: dict[str, LoadedModel], family: str) -> None:
    loaded, point = models[family], POINTS[family][0]
    d = hidden_size_at(loaded, Hookpoint.parse(point))
    found = figures(loaded, affine(d, -3.0, torch.ones(d)), point, random_windows())
    assert abs(found["delta_ce"] or 0.0) > 1e-4
    assert found["ce_with_error_term"] == pytest.approx(found["ce_clean"], abs=1e-5)
    assert found["kl_with_error_term"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("family", POINTS)
def test_the_losses_against_plain_loops(models: dict[str, LoadedModel], family: str) -> None:
    """Window by window, without padding, edited by a hook of its own."""
    loaded, windows, excluded = models[family], random_windows(), {0, 17, 33}
    point = Hookpoint.parse(POINTS[family][0])
    windows[0] = Window("doc0", 0, "explain", [0, 5, 17, 9, 33, 0, 8, 7], 1)
    d = hidden_size_at(loaded, point)
    sae = affine(d, 0.3, 0.1 * torch.ones(d))
    mean = counted_mean(loaded, point, windows, excluded)
    totals = dict.fromkeys(["clean", *SPLICED, "kl"], 0.0)
    n = 0
    for window in windows:
        ids = torch.tensor([list(window.token_ids)])
        kept = [i for i, t in enumerate(window.token_ids) if i >= window.n_prefix and t not in excluded]
        clean = None
        for condition in ("clean", *SPLICED):

            def edit(x: Tensor, condition: str = condition, kept: list[int] = kept) -> Tensor:
                x = x.clone()
                new = {"sae": sae(x[0]), "zero_ablation": 0 * x[0], "mean_ablation": mean.float() + 0 * x[0]}
                for i in kept if condition in new else ():
                    x[0, i] = new[condition][i]
                return x

            with torch.no_grad(), ExitStack() as stack:
                stack.enter_context(hooked(loaded.model, point, edit=edit))
                log_p = loaded.model(input_ids=ids).logits[0].double().log_softmax(-1)
            clean = log_p if clean is None else clean
            for i in kept:
                if i + 1 < len(window.token_ids):
                    n += condition == "clean"
                    totals[condition] -= float(log_p[i, window.token_ids[i + 1]])
                    totals["kl"] += float((clean[i].exp() * (clean[i] - log_p[i])).sum()) * (condition == "sae")
    found = splice_metrics(loaded, sae, point, point, windows, excluded, BATCH_TOKENS)
    together = {m.metric: m for m in found if m.split is None}
    for condition in ("clean", *SPLICED):
        assert together[f"ce_{condition}"].value == pytest.approx(totals[condition] / n, abs=2e-5)
    assert together["kl_sae"].value == pytest.approx(totals["kl"] / n, abs=2e-5)
    assert {m.n_tokens for m in together.values()} == {n}
    assert sum(m.n_tokens for m in found if m.metric == "ce_sae" and m.split is not None) == n


def test_a_model_in_bfloat16(request: pytest.FixtureRequest) -> None:
    """The dictionary stays float32; the error term restores what the model's own dtype can hold."""
    folder = str(request.getfixturevalue("tiny_llama"))
    loaded = load_model(ModelConfig(name=folder, device="cpu", dtype="bfloat16"))
    point = POINTS["tiny_llama"][0]
    whole = figures(loaded, affine(64, 1.0), point, random_windows())
    assert whole["ce_sae"] == whole["ce_clean"]
    wrong = figures(loaded, affine(64, -3.0, torch.ones(64)), point, random_windows())
    assert wrong["ce_with_error_term"] == pytest.approx(wrong["ce_clean"], abs=1e-4)


@pytest.mark.parametrize("batch_tokens", [16, 1000])
def test_batches_do_not_matter(models: dict[str, LoadedModel], batch_tokens: int) -> None:
    loaded, point = models["tiny_llama"], Hookpoint.parse(POINTS["tiny_llama"][0])
    sae = affine(64, 0.5)
    one, other = (
        splice_metrics(loaded, sae, point, None, random_windows(), [0], size) for size in (BATCH_TOKENS, batch_tokens)
    )
    assert [(m.metric, m.split, m.n_tokens) for m in one] == [(m.metric, m.split, m.n_tokens) for m in other]
    for a, b in zip(one, other, strict=True):
        if a.metric.startswith(("ce", "kl")):
            assert a.value == pytest.approx(b.value, abs=1e-5)


def test_loss_recovered_of_known_dictionaries(demo: LoadedModel) -> None:
    point, windows = "model.layers.2", code_windows(demo)
    hookpoint = Hookpoint.parse(point)
    d = hidden_size_at(demo, hookpoint)
    mean = counted_mean(demo, hookpoint, windows, {0})
    whole = figures(demo, affine(d, 1.0), point, windows)
    assert whole["loss_recovered_zero"] == whole["loss_recovered_mean"] == 1.0
    constant = figures(demo, affine(d, 0.0, mean), point, windows)
    assert constant["ce_sae"] == pytest.approx(constant["ce_mean_ablation"], abs=1e-4)
    assert constant["loss_recovered_mean"] == pytest.approx(0.0, abs=1e-4)
    nothing = figures(demo, affine(d, 0.0), point, windows)
    assert nothing["loss_recovered_zero"] == 0.0 and nothing["ce_sae"] == nothing["ce_zero_ablation"]
    half = figures(demo, affine(d, 0.7, mean), point, windows)
    assert half["delta_ce"] is not None and half["kl_sae"] is not None and half["loss_recovered_mean"] is not None
    assert half["delta_ce"] > 0 and half["kl_sae"] > 0 and 0.3 < half["loss_recovered_mean"] < 1
    assert (half["ce_clean"] or 9) < 5 < (half["ce_mean_ablation"] or 0)


def test_a_mean_that_is_given_is_used(demo: LoadedModel) -> None:
    point, windows = "model.layers.2", code_windows(demo)
    d = hidden_size_at(demo, Hookpoint.parse(point))
    found = figures(demo, affine(d, 1.0), point, windows, mean=torch.zeros(d, dtype=torch.float64))
    assert found["ce_mean_ablation"] == found["ce_zero_ablation"]


def test_a_bos_keeps_its_activation(demo: LoadedModel) -> None:
    """As the next block sees it: the first run is the clean one, the second has the reconstruction."""
    point = Hookpoint.parse("model.layers.2")
    d = hidden_size_at(demo, point)
    windows = code_windows(demo, 2)
    seen: list[Tensor] = []
    with hooked(demo.model, Hookpoint("model.layers.3", "in"), capture=seen):
        splice_metrics(demo, affine(d, 0.0), point, None, windows, [5], 1000, mean=torch.ones(d))
    clean, replaced, *_ = seen
    n_prefix = windows[0].n_prefix
    assert n_prefix == 1
    torch.testing.assert_close(replaced[:, :n_prefix], clean[:, :n_prefix])
    assert not replaced[:, n_prefix:].any() and clean[:, n_prefix:].any()


@pytest.mark.parametrize("family", POINTS)
def test_a_transcoder_writes_to_another_hookpoint(models: dict[str, LoadedModel], family: str) -> None:
    loaded, path = models[family], POINTS[family][1]
    source, target = Hookpoint(path, "in"), Hookpoint(path)
    sae = linear_transcoder(loaded, path)
    assert sae.d_in != sae.d_out
    found = splice_metrics(loaded, sae, source, target, random_windows(), [0], BATCH_TOKENS)
    together = {m.metric: m.value for m in found if m.split is None}
    assert together["delta_ce"] == pytest.approx(0.0, abs=1e-5) and together["kl_sae"] == pytest.approx(0, abs=1e-6)
    assert together["kl_zero_ablation"] is not None and together["kl_zero_ablation"] > 1e-7
    with pytest.raises(InputError, match="not computed before"):
        splice_metrics(loaded, affine(sae.d_out, 1.0), Hookpoint(path), source, random_windows(), [0], BATCH_TOKENS)


def test_an_ablation_that_costs_nothing_leaves_nothing_to_recover(models: dict[str, LoadedModel]) -> None:
    loaded = models["tiny_neox"]
    point = POINTS["tiny_neox"][0]
    d = hidden_size_at(loaded, Hookpoint.parse(point))
    windows = [Window(f"doc{i}", 0, "report", [0, 7, 7, 7, 7, 7], 1) for i in range(3)]
    mean_is_the_token = figures(loaded, affine(d, 0.0), point + ":in", windows)
    assert mean_is_the_token["loss_recovered_mean"] is None


def test_no_text_and_broken_weights_are_said_to_be_so(models: dict[str, LoadedModel]) -> None:
    loaded, point = models["tiny_neox"], POINTS["tiny_neox"][0]
    with pytest.raises(InputError, match="no token of the corpus"):
        figures(loaded, affine(32, 1.0), point, [Window("d", 0, "report", [0, 0, 0], 1)])
    with pytest.raises(InputError, match="no loss to compare"):
        figures(loaded, affine(32, 1.0), point, [Window("d", 0, "report", [0, 4], 1)])
    broken = affine(32, 1.0)
    broken.W_dec[0, 0] = torch.inf
    with pytest.raises(AutointerpError, match="NaN or infinite"):
        figures(loaded, broken, point, random_windows())
