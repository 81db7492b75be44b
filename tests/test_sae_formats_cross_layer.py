"""Cross-layer transcoders: files written from each tool's layout, against that tool's arithmetic written by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.sae_format_helpers import change_config, change_tensors
from torch import Tensor

from autointerp.errors import DamagedError, InputError
from autointerp.sae.formats import detect, load_sae, sae_sha256
from autointerp.sae.sae import Sae

N_LAYERS, WIDTH, N_FEATURES, N_TOKENS = 3, 6, 12, 40


@dataclass
class Clt:
    """A transcoder's files, and what its tool computes of inputs [L, n, d]: features [L, n, m], outputs [L, n, d]."""

    format: str
    folder: Path
    compute: Callable[[Tensor], tuple[Tensor, Tensor]]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def written_by_circuit_tracer(folder: Path, threshold: bool = True) -> Clt:
    folder.mkdir(parents=True)
    enc, b_enc = drawn(N_LAYERS, N_FEATURES, WIDTH, seed=1), drawn(N_LAYERS, N_FEATURES, seed=2) * 0.3
    dec = [drawn(N_FEATURES, N_LAYERS - i, WIDTH, seed=10 + i) for i in range(N_LAYERS)]
    b_dec, bars = drawn(N_LAYERS, WIDTH, seed=3), drawn(N_LAYERS, N_FEATURES, seed=4).abs()
    for i in range(N_LAYERS):
        held = {f"W_enc_{i}": enc[i], f"b_enc_{i}": b_enc[i], f"b_dec_{i}": b_dec[i]}
        save_file(held | ({f"threshold_{i}": bars[i]} if threshold else {}), folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": dec[i]}, folder / f"W_dec_{i}.safetensors")
    (folder / "config.yaml").write_text("model_name: 'a/model'\nfeature_input_hook: hook_resid_mid\n")

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = torch.einsum("lbd,lfd->lbf", x, enc) + b_enc[:, None]
        features = pre * (pre > bars[:, None]) if threshold else pre.relu()
        out = b_dec[:, None].expand(-1, x.shape[1], -1).clone()
        for source in range(N_LAYERS):
            for target in range(source, N_LAYERS):
                out[target] += features[source] @ dec[source][:, target - source]
        return features, out

    return Clt("circuit_tracer_clt", folder, compute)


def written_as_gemma_scope_2(folder: Path, skip: bool = True) -> Clt:
    folder.mkdir(parents=True)
    enc, b_enc = drawn(N_LAYERS, WIDTH, N_FEATURES, seed=1), drawn(N_LAYERS, N_FEATURES, seed=2) * 0.3
    dec, bars = drawn(N_LAYERS, N_FEATURES, N_LAYERS, WIDTH, seed=3), drawn(N_LAYERS, N_FEATURES, seed=4).abs()
    b_dec, affine = drawn(N_LAYERS, WIDTH, seed=5), drawn(N_LAYERS, WIDTH, WIDTH, seed=6) * (1.0 if skip else 0.0)
    for i in range(N_LAYERS):
        held = {"w_enc": enc[i], "b_enc": b_enc[i], "threshold": bars[i], "w_dec": dec[i], "b_dec": b_dec[i]}
        held |= {"affine_skip_connection": affine[i]} if skip else {}
        name = f"layer_{i}_width_12_l0_medium"
        save_file({n: t.contiguous() for n, t in held.items()}, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps({"model_name": "gemma", "l0": 20}))

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.zeros(N_LAYERS, x.shape[1], N_FEATURES)
        out = torch.zeros(N_LAYERS, x.shape[1], WIDTH)
        for source in range(N_LAYERS):
            pre = x[source] @ enc[source] + b_enc[source]
            features[source] = pre * (pre > bars[source])
            out[source] += b_dec[source] + x[source] @ affine[source]
            for target in range(source, N_LAYERS):  # what stands before the source is not used
                out[target] += features[source] @ dec[source][:, target]
        return features, out

    return Clt("gemma_scope_2_clt", folder, compute)


def written_by_llamascopium(folder: Path, act_fn: str = "jumprelu", **settings: object) -> Clt:
    folder.mkdir(parents=True)
    config = {
        "sae_type": "clt", "act_fn": act_fn, "top_k": 4, "norm_activation": "dataset-wise", "d_model": WIDTH,
        "hook_points_in": [f"blocks.{i}.hook_resid_mid" for i in range(N_LAYERS)],
        "hook_points_out": [f"blocks.{i}.hook_mlp_out" for i in range(N_LAYERS)], **settings,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    enc, b_enc = drawn(N_LAYERS, WIDTH, N_FEATURES, seed=1), drawn(N_LAYERS, N_FEATURES, seed=2) * 0.3
    dec = [drawn(j + 1, N_FEATURES, WIDTH, seed=10 + j) for j in range(N_LAYERS)]
    b_dec, log_bars = drawn(N_LAYERS, WIDTH, seed=3), drawn(N_LAYERS, N_FEATURES, seed=4)
    averages = {"in": [2.0, 3.0, 5.0], "out": [1.5, 4.0, 0.7]}
    held = {"W_E": enc, "b_E": b_enc} | {f"W_D.{j}": dec[j] for j in range(N_LAYERS)}
    held |= {f"b_D.{j}": b_dec[j] for j in range(N_LAYERS)}
    held |= {"activation_function.log_jumprelu_threshold": log_bars} if act_fn == "jumprelu" else {}
    for side, values in averages.items():
        held |= {
            f"dataset_average_activation_norm.{hook}": torch.tensor(value)
            for hook, value in zip(config[f"hook_points_{side}"], values, strict=True)
        }
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, folder / "sae_weights.safetensors")
    is_scaled = config["norm_activation"] == "dataset-wise"
    scale = {s: [math.sqrt(WIDTH) / v if is_scaled else 1.0 for v in averages[s]] for s in averages}

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.zeros(N_LAYERS, x.shape[1], N_FEATURES)
        for source in range(N_LAYERS):
            pre = scale["in"][source] * x[source] @ enc[source] + b_enc[source]
            squares = sum(dec[j][source].square().sum(1) for j in range(source, N_LAYERS))
            norm = squares.sqrt() if config.get("sparsity_include_decoder_norm", True) else torch.ones(N_FEATURES)
            scaled = pre * norm
            if act_fn == "jumprelu":
                kept = scaled > log_bars[source].exp()
            elif act_fn == "topk":
                kept = torch.zeros_like(scaled).scatter(-1, scaled.relu().topk(4).indices, 1.0) * (scaled > 0) > 0
            else:
                kept = scaled > 0
            features[source] = scaled * kept / norm
        out = torch.zeros(N_LAYERS, x.shape[1], WIDTH)
        for target in range(N_LAYERS):
            for source in range(target + 1):
                out[target] += features[source] @ dec[target][source]
            out[target] = (out[target] + b_dec[target]) / scale["out"][target]
        return features, out

    return Clt("llamascopium_clt", folder, compute)


WRITERS: dict[str, Callable[[Path], Clt]] = {
    "circuit_tracer_jumprelu": written_by_circuit_tracer,
    "circuit_tracer_relu": lambda folder: written_by_circuit_tracer(folder, threshold=False),
    "gemma_scope_2_affine": written_as_gemma_scope_2,
    "gemma_scope_2": lambda folder: written_as_gemma_scope_2(folder, skip=False),
    "llamascopium_jumprelu": written_by_llamascopium,
    "llamascopium_relu": lambda folder: written_by_llamascopium(folder, "relu"),
    "llamascopium_topk": lambda folder: written_by_llamascopium(folder, "topk"),
    "llamascopium_inference": lambda folder: written_by_llamascopium(folder, norm_activation="inference"),
    "llamascopium_no_norm": lambda folder: written_by_llamascopium(folder, sparsity_include_decoder_norm=False),
}


def sources(clt: Clt) -> list[Sae]:
    return [load_sae(clt.folder, "auto", layer) for layer in range(N_LAYERS)]


@pytest.mark.parametrize("name", WRITERS)
def test_each_source_layer_gives_the_tools_features_and_their_sum_its_reconstruction(name: str, tmp_path: Path) -> None:
    clt = WRITERS[name](tmp_path / "clt")
    assert detect(clt.folder) == clt.format
    x = drawn(N_LAYERS, N_TOKENS, WIDTH, seed=7)
    features, out = clt.compute(x)
    total = torch.zeros_like(out)
    for layer, sae in enumerate(sources(clt)):
        assert (sae.d_in, sae.d_out, sae.d_sae) == (WIDTH, (N_LAYERS - layer) * WIDTH, N_FEATURES)
        assert sae.architecture == "cross_layer_transcoder" and sae.metadata["source_layer"] == layer
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(N_FEATURES))
        found = sae.encode(x[layer])
        assert 0 < int((found > 0).sum()) < found.numel()
        assert torch.equal(found > 0, features[layer] > 0)
        # an activation is the length of what the feature writes
        written = sae.decode(found) - sae.b_dec
        torch.testing.assert_close(
            found, features[layer] * written_length(clt, layer), rtol=1e-4, atol=1e-5
        ) if name != "llamascopium_topk" else None
        torch.testing.assert_close(sae.encode_sparse(x[layer]).dense(N_FEATURES), found, rtol=1e-5, atol=1e-5)
        assert written.shape == (N_TOKENS, sae.d_out)
        total[layer:] += sae(x[layer]).view(N_TOKENS, N_LAYERS - layer, WIDTH).permute(1, 0, 2)
    torch.testing.assert_close(total, out, rtol=1e-5, atol=1e-5)


def written_length(clt: Clt, layer: int) -> Tensor:
    """The length, in the model's units, of what each feature of the layer writes at an activation of 1 in the file."""
    rows = []
    for feature in range(N_FEATURES):
        with_it, without = (written_alone(clt, layer, feature, value) for value in (1.0, 0.0))
        rows.append((with_it - without).norm())
    return torch.stack(rows)


def written_alone(clt: Clt, layer: int, feature: int, value: float) -> Tensor:
    if clt.format == "llamascopium_clt":
        held = load_file(clt.folder / "sae_weights.safetensors")
        config = json.loads((clt.folder / "config.json").read_text())
        parts = []
        for j in range(layer, N_LAYERS):
            average = float(held[f"dataset_average_activation_norm.{config['hook_points_out'][j]}"])
            factor = average / math.sqrt(WIDTH) if config["norm_activation"] == "dataset-wise" else 1.0
            parts.append(held[f"W_D.{j}"][layer, feature] * factor)
        return torch.cat(parts) * value
    if clt.format == "gemma_scope_2_clt":
        file = next(clt.folder.glob(f"layer_{layer}_*.safetensors"))
        return load_file(file)["w_dec"][feature, layer:].flatten() * value
    return load_file(clt.folder / f"W_dec_{layer}.safetensors")[f"W_dec_{layer}"][feature].flatten() * value


def test_a_threshold_below_zero_lets_values_below_zero_into_the_reconstruction(tmp_path: Path) -> None:
    clt = written_by_circuit_tracer(tmp_path / "clt")
    held = load_file(clt.folder / "W_enc_2.safetensors")
    change_tensors(clt.folder / "W_enc_2.safetensors", threshold_2=-held["threshold_2"])
    x, dec = drawn(N_TOKENS, WIDTH, seed=7), load_file(clt.folder / "W_dec_2.safetensors")["W_dec_2"][:, 0]
    pre = x @ held["W_enc_2"].T + held["b_enc_2"]
    chosen = pre * (pre > -held["threshold_2"])
    sae = load_sae(clt.folder, "auto", 2)
    assert bool((chosen < 0).any()) and torch.equal(sae.encode(x) > 0, chosen > 0)
    torch.testing.assert_close(sae(x), chosen @ dec + held["b_dec_2"], rtol=1e-5, atol=1e-5)


def test_the_last_layer_of_gemma_scope_2_is_there_and_what_stands_before_a_source_is_not(tmp_path: Path) -> None:
    clt = written_as_gemma_scope_2(tmp_path / "clt")
    last = load_sae(clt.folder, "auto", N_LAYERS - 1)
    assert last.d_out == WIDTH and last.metadata["source_layers"] == N_LAYERS
    assert last.metadata["prepend_bos"] is True and last.metadata["declared"] == {"l0": 20.0}
    with pytest.raises(InputError, match=f"no file for source layer {N_LAYERS}"):
        load_sae(clt.folder, "auto", N_LAYERS)
    nested = tmp_path / "nested"
    for layer in range(N_LAYERS):
        (nested / f"layer_{layer}_width_12_l0_big").mkdir(parents=True)
        file = next(clt.folder.glob(f"layer_{layer}_*.safetensors"))
        (nested / f"layer_{layer}_width_12_l0_big" / "params.safetensors").write_bytes(file.read_bytes())
    assert torch.equal(load_sae(nested, "auto", 2).W_enc, last.W_enc)
    (nested / "layer_2_width_12_l0_small").mkdir()
    (nested / "layer_2_width_12_l0_small" / "params.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="two files for layer 2"):
        load_sae(nested, "gemma_scope_2_clt", 2)


def test_a_source_layer_must_be_named_and_be_there(tmp_path: Path) -> None:
    clt = written_by_circuit_tracer(tmp_path / "clt")
    with pytest.raises(InputError, match=r"set sae\.source_layers to their number"):
        load_sae(clt.folder)
    with pytest.raises(InputError, match=r"source layers 0 to 2, so there is no layer 3; set sae\.source_layers = 3"):
        load_sae(clt.folder, "auto", 3)
    hashes = {sae_sha256(clt.folder, source_layer=layer) for layer in range(N_LAYERS)}
    assert len(hashes) == N_LAYERS
    (clt.folder / "W_enc_1.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no W_enc_1\.safetensors"):
        load_sae(clt.folder, "auto", 0)


def test_texts_of_circuit_tracer_begin_with_a_bos_whose_position_it_leaves_out(tmp_path: Path) -> None:
    sae = load_sae(written_by_circuit_tracer(tmp_path / "clt").folder, "auto", 1)
    assert sae.metadata["prepend_bos"] is True
    assert sae.metadata["hook_name"] == "blocks.1.hook_resid_mid" and sae.metadata["model_name"] == "a/model"
    assert sae.metadata["hook_name_out"] == "blocks.1.hook_mlp_out + blocks.2.hook_mlp_out"


def test_what_chooses_jointly_over_layers_is_refused(tmp_path: Path) -> None:
    clt = written_by_circuit_tracer(tmp_path / "joint")
    for layer in range(N_LAYERS):
        change_tensors(clt.folder / f"W_enc_{layer}.safetensors", **{f"b_enc_{layer}": None})
    with pytest.raises(InputError, match="largest activations of all layers together"):
        load_sae(clt.folder, "auto", 0)
    for act_fn, reason in (
        ("layertopk", "of all layers together"), ("batchlayertopk", "of all layers together"),
        ("batchtopk", "saves no threshold"), ("tanh", "is not supported; relu, jumprelu and topk are"),
    ):  # fmt: skip
        folder = written_by_llamascopium(tmp_path / act_fn, act_fn).folder
        with pytest.raises(InputError, match=reason):
            load_sae(folder, "auto", 0)
    with pytest.raises(InputError, match="norm_activation 'token-wise' is not supported"):
        load_sae(written_by_llamascopium(tmp_path / "t", "relu", norm_activation="token-wise").folder, "auto", 0)
    with pytest.raises(InputError, match="one feature may be active at one and silent at another"):
        load_sae(written_by_llamascopium(tmp_path / "c", "relu", sae_type="crosscoder").folder, "auto", 0)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    clt = written_by_circuit_tracer(tmp_path / "clt")
    decoder = clt.folder / "W_dec_1.safetensors"
    whole = decoder.read_bytes()
    change_tensors(decoder, W_dec_1=drawn(N_FEATURES, N_LAYERS, WIDTH, seed=1))
    with pytest.raises(DamagedError, match=r"W_dec_1 has shape \[12, 3, 6\], but \[12, 2, 6\] was expected"):
        load_sae(clt.folder, "auto", 1)
    decoder.write_bytes(whole)
    change_tensors(decoder, W_dec_1=torch.full((N_FEATURES, 2, WIDTH), torch.nan))
    with pytest.raises(DamagedError, match="W_dec_1 holds NaN"):
        load_sae(clt.folder, "auto", 1)
    decoder.write_bytes(whole[:-8])
    with pytest.raises(DamagedError, match="damaged"):
        load_sae(clt.folder, "auto", 1)
    for text in ("a: !!python/object/apply:os.system ['true']", "[1, 2]", "a: &x [1]\nb: [*x, *x]", "a: ["):
        (clt.folder / "config.yaml").write_text(text)
        with pytest.raises(DamagedError, match=r"config\.yaml is damaged"):
            load_sae(clt.folder, "auto", 0)
    lm = written_by_llamascopium(tmp_path / "lm").folder
    change_config(lm, "config.json", hook_points_out=["a"])
    with pytest.raises(DamagedError, match="hook_points_out names no hook for layer 1"):
        load_sae(lm, "auto", 1)
