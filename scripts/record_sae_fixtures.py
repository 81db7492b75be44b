"""Records tests/fixtures/sae: tiny SAEs saved by the libraries that train them, and what those libraries compute.

    python scripts/record_sae_fixtures.py

Run it under an interpreter that has sae-lens 6.54, eai-sparsify 1.3 and dictionary_learning 0.1, since they need other
versions of our own dependencies. Every folder holds the files that the library's own saver wrote, and `expected.npz`
with

    x [n, d_in]          inputs
    features [n, d_sae]  the library's features, times the length of their decoder rows
    y [n, d_out]         its reconstruction

OpenAI's format has no library to install, so its files are written and computed here, in NumPy, from its definition.
Gemma Scope's files are written here and computed by SAELens's JumpReLU.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

OUT = Path(__file__).parents[1] / "tests" / "fixtures" / "sae"
D_IN, D_SAE, K, N = 8, 16, 3, 12


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uneven() -> torch.Tensor:
    """Lengths of decoder rows, far from 1."""
    return torch.linspace(0.3, 2.5, D_SAE).unsqueeze(1)


def inputs(width: int = D_IN) -> torch.Tensor:
    return rand(N, width, seed=99) * 2 + 0.3


def expect(folder: Path, x: Any, features: Any, norms: Any, y: Any) -> None:
    arrays = {"x": x, "features": torch.as_tensor(features) * torch.as_tensor(norms), "y": y}
    np.savez(
        folder / "expected.npz", **{n: np.asarray(torch.as_tensor(a).detach(), np.float32) for n, a in arrays.items()}
    )


def fill(module: torch.nn.Module, seed: int, unit: bool = False) -> None:
    """Fill every parameter with random weights of a fixed seed. Decoder rows have uneven lengths unless `unit`."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(module.named_parameters())):
            value = rand(*parameter.shape, seed=1000 * seed + index)
            small = parameter.ndim == 1
            parameter.copy_(value * 0.2 if small else value / parameter.shape[-1] ** 0.5)
            if name == "W_dec":
                rows = torch.nn.functional.normalize(parameter, dim=1)
                parameter.copy_(rows if unit else rows * uneven())
            if name == "decoder.weight":
                columns = torch.nn.functional.normalize(parameter, dim=0)
                parameter.copy_(columns if unit else columns * uneven().T)


def saelens() -> None:
    import sae_lens as S
    from sae_lens import SAE

    about = {"model_name": "gpt2", "hook_name": "blocks.1.hook_resid_post", "context_size": 64, "prepend_bos": True}
    common: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "device": "cpu"}

    def record(name: str, sae: Any, *, inference: bool = False) -> None:
        folder = OUT / "saelens" / name
        (sae.save_inference_model if inference else sae.save_model)(folder)
        loaded = SAE.load_from_disk(folder) if inference else sae
        x = inputs()
        norms = loaded.W_dec.detach().norm(dim=1)
        if getattr(loaded.cfg, "rescale_acts_by_decoder_norm", False):
            norms = torch.ones_like(norms)  # its features are already those
        with torch.no_grad():
            expect(folder, x, loaded.encode(x), norms, loaded(x))

    def config(cls: Any, **more: Any) -> Any:
        return cls(**common, metadata=S.saes.sae.SAEMetadata(**about), **more)

    cases: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("standard", S.StandardSAE, S.StandardSAEConfig, {}),
        ("standard_raw_input", S.StandardSAE, S.StandardSAEConfig, {"apply_b_dec_to_input": False}),
        ("standard_layer_norm", S.StandardSAE, S.StandardSAEConfig, {"normalize_activations": "layer_norm"}),
        (
            "standard_norm_rescale",
            S.StandardSAE,
            S.StandardSAEConfig,
            {"normalize_activations": "constant_norm_rescale"},
        ),
        ("topk", S.TopKSAE, S.TopKSAEConfig, {"k": K}),
        ("topk_rescaled", S.TopKSAE, S.TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
        ("jumprelu", S.JumpReLUSAE, S.JumpReLUSAEConfig, {}),
        ("gated", S.GatedSAE, S.GatedSAEConfig, {}),
        ("transcoder", S.Transcoder, S.TranscoderConfig, {"d_out": 6, "apply_b_dec_to_input": False}),
        ("skip_transcoder", S.SkipTranscoder, S.SkipTranscoderConfig, {"d_out": 6, "apply_b_dec_to_input": False}),
        (
            "jumprelu_transcoder",
            S.JumpReLUTranscoder,
            S.JumpReLUTranscoderConfig,
            {"d_out": 6, "apply_b_dec_to_input": False},
        ),
        (
            "jumprelu_skip_transcoder",
            S.JumpReLUSkipTranscoder,
            S.JumpReLUSkipTranscoderConfig,
            {"d_out": D_IN, "apply_b_dec_to_input": False},
        ),
    ]
    for seed, (name, cls, config_class, more) in enumerate(cases):
        sae = cls(config(config_class, **more))
        fill(sae, seed)
        if hasattr(sae, "threshold"):
            sae.threshold.data = rand(D_SAE, seed=500 + seed).abs() * 0.5
        record(name, sae)

    # training runs: the file saved at their end, and their checkpoints
    for seed, (name, cls, config_class) in enumerate(
        [
            ("batchtopk", S.BatchTopKTrainingSAE, S.BatchTopKTrainingSAEConfig),
            ("matryoshka_batchtopk", S.MatryoshkaBatchTopKTrainingSAE, S.MatryoshkaBatchTopKTrainingSAEConfig),
        ]
    ):
        more = {"matryoshka_widths": [4, D_SAE]} if "matryoshka" in name else {}
        training = cls(config(config_class, k=float(K), **more))
        fill(training, 40 + seed)
        training.topk_threshold = torch.tensor(0.6, dtype=torch.double)
        finished = OUT / "saelens" / f"{name}_finished"
        record(f"{name}_finished", training, inference=True)
        checkpoint = OUT / "saelens" / f"{name}_checkpoint"
        training.save_model(checkpoint)
        shutil.copy(finished / "expected.npz", checkpoint / "expected.npz")
    training = S.TopKTrainingSAE(config(S.TopKTrainingSAEConfig, k=K))
    fill(training, 45)
    record("topk_checkpoint", training)
    training = S.JumpReLUTrainingSAE(config(S.JumpReLUTrainingSAEConfig))
    fill(training, 46)
    training.threshold.data = rand(D_SAE, seed=546).abs() * 0.5
    record("jumprelu_checkpoint", training)

    # a checkpoint on scaled inputs, with the factor in a file beside it; SAELens's fold defines what the factor means
    scaled = S.StandardTrainingSAE(
        config(S.StandardTrainingSAEConfig, normalize_activations="expected_average_only_in")
    )
    fill(scaled, 47)
    folder = OUT / "saelens" / "standard_scaled_checkpoint"
    scaled.save_model(folder)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.7}))
    scaled.fold_activation_norm_scaling_factor(0.7)
    with torch.no_grad():
        expect(folder, inputs(), scaled.encode(inputs()), scaled.W_dec.norm(dim=1), scaled(inputs()))

    old(S)


def old(S: Any) -> None:
    """Record configurations as versions 2 to 5 wrote them, with weights as version 6's own upgrade reads them."""
    from sae_lens import SAE

    flat = {
        "model_name": "gpt2",
        "hook_point": "blocks.1.hook_resid_pre",
        "hook_point_layer": 1,
        "hook_point_head_index": None,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "context_size": 128,
        "prepend_bos": True,
        "normalize_activations": False,
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": None,
        "sae_lens_version": "5.9.1",
    }
    cases: list[tuple[str, dict[str, Any]]] = [
        ("v2_relu", {"activation_fn_str": "relu"}),
        ("v3_topk", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": "none"}),
        ("v5_jumprelu", {"architecture": "jumprelu", "activation_fn_str": "relu", "apply_b_dec_to_input": False}),
        ("v4_scaling_factor", {"architecture": "standard", "finetuning_scaling_factor": True}),
    ]
    for seed, (name, more) in enumerate(cases):
        folder = OUT / "saelens" / name
        folder.mkdir(parents=True)
        rows = torch.nn.functional.normalize(rand(D_SAE, D_IN, seed=600 + seed), dim=1) * uneven()
        tensors = {
            "W_enc": rand(D_IN, D_SAE, seed=610 + seed) / D_IN**0.5,
            "b_enc": rand(D_SAE, seed=620 + seed) * 0.2,
            "W_dec": rows,
            "b_dec": rand(D_IN, seed=630 + seed) * 0.2,
        }
        if "jumprelu" in name:
            tensors["threshold"] = rand(D_SAE, seed=640).abs() * 0.5
        tensors["scaling_factor"] = torch.ones(D_SAE)
        save_file(tensors, folder / "sae_weights.safetensors")
        (folder / "cfg.json").write_text(json.dumps(flat | more))
        x = inputs()
        if name == "v4_scaling_factor":  # version 6 no longer reads it; by definition W_dec rows times the factor
            tensors["scaling_factor"] = torch.linspace(0.5, 1.5, D_SAE)
            save_file(tensors, folder / "sae_weights.safetensors")
            f = ((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]).relu() * tensors["scaling_factor"]
            expect(folder, x, f, rows.norm(dim=1), f @ rows + tensors["b_dec"])
            continue
        sae = SAE.load_from_disk(folder)
        with torch.no_grad():
            expect(folder, x, sae.encode(x), sae.W_dec.norm(dim=1), sae(x))


def sparsify() -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    cases: list[tuple[str, dict[str, Any]]] = [
        ("sae", {"num_latents": D_SAE}),
        ("sae_expansion", {"expansion_factor": 2, "normalize_decoder": False}),
        ("sae_skip", {"num_latents": D_SAE, "skip_connection": True}),
        ("transcoder", {"num_latents": D_SAE, "transcode": True}),
        ("skip_transcoder", {"num_latents": D_SAE, "transcode": True, "skip_connection": True}),
    ]
    for seed, (name, more) in enumerate(cases):
        coder = SparseCoder(D_IN, SparseCoderConfig(k=K, **more))
        fill(coder, 60 + seed, unit=name == "sae")
        folder = OUT / "sparsify" / name
        coder.save_to_disk(folder)
        x = inputs()
        with torch.no_grad():
            out = coder(x)
            dense = torch.zeros(N, D_SAE).scatter(1, out.latent_indices, out.latent_acts)
            expect(folder, x, dense, coder.W_dec.norm(dim=1), out.sae_out)


def dictionary_learning() -> None:
    import dictionary_learning.dictionary as D
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK
    from dictionary_learning.utils import load_dictionary

    dictionaries = [
        D.AutoEncoder(D_IN, D_SAE),
        D.AutoEncoderNew(D_IN, D_SAE),
        D.GatedAutoEncoder(D_IN, D_SAE),
        D.JumpReluAutoEncoder(D_IN, D_SAE),
        AutoEncoderTopK(D_IN, D_SAE, K),
        BatchTopKSAE(D_IN, D_SAE, K),
        MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, [4, 12]),
    ]
    for seed, dictionary in enumerate(dictionaries):
        name = type(dictionary).__name__
        fill(dictionary, 80 + seed)
        if "BatchTopK" in name:
            dictionary.threshold.fill_(0.5)
        if name == "JumpReluAutoEncoder":
            dictionary.threshold.data = rand(D_SAE, seed=580).abs() * 0.5
        folder = OUT / "dictionary_learning" / name
        folder.mkdir(parents=True)
        trainer = {
            "dict_class": name,
            "trainer_class": "Trainer",
            "activation_dim": D_IN,
            "dict_size": D_SAE,
            "k": K,
            "layer": 1,
            "lm_name": "EleutherAI/pythia-70m",
            "submodule_name": "resid_post_layer_1",
        }
        torch.save({n: t.cpu() for n, t in dictionary.state_dict().items()}, folder / "ae.pt")
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
        loaded = load_dictionary(str(folder), "cpu")[0]
        norms = (loaded.decoder.weight.norm(dim=0) if hasattr(loaded, "decoder") else loaded.W_dec.norm(dim=1)).detach()
        with torch.no_grad():
            expect(folder, inputs(), loaded.encode(inputs()), norms, loaded(inputs()))


def gemma_scope() -> None:
    import sae_lens as S

    for name, rename in (("params", False), ("old_names", True)):
        folder = OUT / "gemma_scope" / name
        folder.mkdir(parents=True)
        sae = S.JumpReLUSAE(S.JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=False))
        fill(sae, 90)
        sae.threshold.data = rand(D_SAE, seed=590).abs() * 0.5
        arrays = {n: t.detach().numpy() for n, t in sae.named_parameters()}
        if rename:
            arrays = {n.replace("W_", "w_"): a for n, a in arrays.items()}
        np.savez(folder / "params.npz", **arrays)
        with torch.no_grad():
            expect(folder, inputs(), sae.encode(inputs()), sae.W_dec.norm(dim=1), sae(inputs()))


def openai() -> None:
    rng = np.random.default_rng(7)
    x = inputs().numpy().astype(np.float64)
    for activation in ("TopK", "ReLU"):
        encoder = rng.normal(size=(D_SAE, D_IN)) / D_IN**0.5
        decoder = rng.normal(size=(D_IN, D_SAE))
        pre_bias, latent_bias = rng.normal(size=D_IN) * 0.2, rng.normal(size=D_SAE) * 0.2
        mean, scale = np.zeros((N, 1)), np.ones((N, 1))
        u = x
        if activation == "TopK":
            mean, scale = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
            u = (x - mean) / (scale + 1e-5)
        pre = (u - pre_bias) @ encoder.T + latent_bias
        f = np.maximum(pre, 0)
        if activation == "TopK":
            f[pre < np.sort(pre, 1)[:, -K][:, None]] = 0
        y = (f @ decoder.T + pre_bias) * scale + mean
        state: dict[str, Any] = {
            name: torch.tensor(value, dtype=torch.float32)
            for name, value in (
                ("pre_bias", pre_bias),
                ("latent_bias", latent_bias),
                ("encoder.weight", encoder),
                ("decoder.weight", decoder),
            )
        }
        state |= {"stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long), "activation": activation}
        if activation == "TopK":
            state["activation_state_dict"] = {"k": K, "postact_fn": "ReLU"}
        folder = OUT / "openai" / activation
        folder.mkdir(parents=True)
        torch.save(state, folder / "autoencoder.pt")
        expect(folder, x, f, np.linalg.norm(decoder, axis=0), y)


def main() -> None:
    for record in (saelens, sparsify, dictionary_learning, gemma_scope, openai):
        shutil.rmtree(OUT / record.__name__, ignore_errors=True)
        record()
    for path in OUT.rglob("cfg.json"):  # SAELens writes its keys in the order of a set, which differs in every run
        path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    files = [path for path in OUT.rglob("*") if path.is_file()]
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1000:.0f} kB in {OUT}", file=sys.stderr)
    assert all(load_file(path) for path in files if path.suffix == ".safetensors")


if __name__ == "__main__":
    main()
