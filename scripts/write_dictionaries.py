"""Has a library write dictionaries in its own format, and writes what the library computes from them.

    python scripts/write_dictionaries.py saelens FOLDER         sae-lens 6.54
    python scripts/write_dictionaries.py circuit_tracer FOLDER  circuit-tracer 0.5, and Gemma Scope 2 by its loader
    python scripts/write_dictionaries.py llamascopium FOLDER    llamascopium 2.0

Run it in an interpreter that has the library; it needs nothing else. Each dictionary has a folder of its own with the
files that the library's own saver wrote, and `expected.safetensors`:

    x [n, d_in]          inputs
    features [n, d_sae]  the library's values, times the length of their decoder rows
    y [n, d_out]         its reconstruction
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.simplefilter("ignore")

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

D_IN, D_SAE, N = 8, 24, 40


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs() -> torch.Tensor:
    return rand(N, D_IN, seed=99) * 2 + 0.3


def uneven(low: float = 0.3, high: float = 2.5) -> torch.Tensor:
    return torch.linspace(low, high, D_SAE).unsqueeze(1)


def rows(low: float = 0.3, high: float = 2.5) -> torch.Tensor:
    return torch.nn.functional.normalize(rand(D_SAE, D_IN, seed=3), dim=1) * uneven(low, high)


def expect(folder: Path, features: torch.Tensor, norms: torch.Tensor, y: torch.Tensor) -> None:
    found = {"x": inputs(), "features": features * norms, "y": y}
    save_file({name: t.detach().float().contiguous() for name, t in found.items()}, folder / "expected.safetensors")


def saelens(out: Path) -> None:
    import sae_lens as S

    about = S.saes.sae.SAEMetadata(model_name="gpt2", hook_name="blocks.1.hook_resid_post", prepend_bos=True)
    common: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "device": "cpu", "metadata": about}
    cases = [
        ("abstopk", S.AbsTopKSAE(S.AbsTopKSAEConfig(k=5, **common))),
        ("abstopk_rescaled", S.AbsTopKSAE(S.AbsTopKSAEConfig(k=5, rescale_acts_by_decoder_norm=True, **common))),
        ("pursuit", S.MatchingPursuitSAE(S.MatchingPursuitSAEConfig(**common))),
        ("pursuit_ends", S.MatchingPursuitSAE(S.MatchingPursuitSAEConfig(
            residual_threshold=1.0, max_iterations=6, stop_on_duplicate_support=False, **common))),
    ]  # fmt: skip
    for name, sae in cases:
        pursuit = name.startswith("pursuit")
        with torch.no_grad():
            sae.W_dec.copy_(rows(0.7, 1.2) if pursuit else rows())
            sae.b_dec.copy_(rand(D_IN, seed=4) * 0.3)
            if not pursuit:
                sae.W_enc.copy_(rand(D_IN, D_SAE, seed=1) / 2)
                sae.b_enc.copy_(rand(D_SAE, seed=2) * 0.2)
            sae.save_model(out / name)
            norms = torch.ones(D_SAE) if name.endswith("rescaled") else sae.W_dec.norm(dim=1)
            expect(out / name, sae.encode(inputs()), norms, sae(inputs()))


def circuit_tracer(out: Path) -> None:
    from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder

    cases = [
        ("relu", torch.nn.functional.relu, False, ""),
        ("jumprelu_skip", JumpReLU(rand(D_SAE, seed=5).abs() * 0.5), True, ""),
        ("topk", TopK(18), False, "activation: topk\nk: 18\n"),
    ]
    for name, activation, skip, more in cases:
        found = SingleLayerTranscoder(
            D_IN, D_SAE, activation, 3, skip_connection=skip, device=torch.device("cpu"), dtype=torch.float32
        )
        with torch.no_grad():
            found.W_enc.copy_(rand(D_SAE, D_IN, seed=1) / 2)
            found.W_dec.copy_(rows())
            found.b_enc.copy_(rand(D_SAE, seed=2) * 0.2)
            found.b_dec.copy_(rand(D_IN, seed=4) * 0.3)
            if skip:
                found.W_skip.copy_(rand(D_IN, D_IN, seed=6) / 3)
            (out / name).mkdir(parents=True)
            found.to_safetensors(str(out / name / "layer_3.safetensors"))
            (out / name / "config.yaml").write_text(
                "model_name: gpt2\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n"
                f"feature_output_hook: hook_mlp_out\n{more}"
            )
            expect(out / name, found.encode(inputs()), found.W_dec.norm(dim=1), found(inputs()))
    gemma_scope_2(out)


def gemma_scope_2(out: Path) -> None:
    """Transcoders of Gemma Scope 2, written from their layout and computed by circuit-tracer's loader of them."""
    from circuit_tracer.transcoder.single_layer_transcoder import load_gemma_scope_2_transcoder

    for name, skip in (("layer_3_width_24_l0_medium", False), ("layer_3_width_24_l0_medium_affine", True)):
        tensors = {
            "w_enc": rand(D_IN, D_SAE, seed=1) / 2,
            "w_dec": rows(),
            "b_enc": rand(D_SAE, seed=2) * 0.2,
            "b_dec": rand(D_IN, seed=4) * 0.3,
            "threshold": rand(D_SAE, seed=5).abs() * 0.5,
        }
        if skip:
            tensors["affine_skip_connection"] = rand(D_IN, D_IN, seed=6) / 3
        (out / name).mkdir(parents=True)
        save_file(tensors, out / name / "params.safetensors")
        found = load_gemma_scope_2_transcoder(str(out / name / "params.safetensors"), 3, torch.device("cpu"))
        expect(out / name, found.encode(inputs()), found.W_dec.norm(dim=1), found(inputs()))


def llamascopium(out: Path) -> None:
    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder

    hook, other = "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"
    cases: list[tuple[str, dict[str, Any]]] = [
        ("jumprelu", {"act_fn": "jumprelu"}),
        ("jumprelu_bare", {"act_fn": "jumprelu", "sparsity_include_decoder_norm": False}),
        ("transcoder", {"act_fn": "jumprelu", "hook_point_out": other}),
        ("topk", {"act_fn": "topk", "top_k": 5}),
        ("glu", {"act_fn": "relu", "use_glu_encoder": True}),
        ("each_vector", {"act_fn": "topk", "top_k": 5, "norm_activation": "token-wise"}),
    ]
    for name, changes in cases:
        settings = {"hook_point_in": hook, "hook_point_out": hook} | changes
        found = SparseAutoEncoder(
            SAEConfig(d_model=D_IN, expansion_factor=D_SAE / D_IN, device="cpu", dtype=torch.float32, **settings)
        )
        with torch.no_grad():
            found.W_E.copy_(rand(D_IN, D_SAE, seed=1) / 2)
            found.b_E.copy_(rand(D_SAE, seed=2) * 0.2)
            found.W_D.copy_(rows())
            found.b_D.copy_(rand(D_IN, seed=4) * 0.3)
            if settings.get("use_glu_encoder"):
                found.W_E_glu.copy_(rand(D_IN, D_SAE, seed=7))
                found.b_E_glu.copy_(rand(D_SAE, seed=8))
            if settings["act_fn"] == "jumprelu":
                found.activation_function.log_jumprelu_threshold.copy_((rand(D_SAE, seed=5).abs() * 0.5).log())
            found.set_dataset_average_activation_norm({hook: 3.5, other: 0.8})
            found.save_pretrained(out / name)
            found.cfg.save_hyperparameters(out / name)
            written = settings["hook_point_out"]
            scaled, scales = found.normalize_activations({hook: inputs()}, return_scale_factor=True)
            if written not in scales:
                scales |= {written: found.compute_norm_factor(inputs(), hook_point=written)}
            features = found.encode(scaled[hook])
            unit = 1.0 if settings.get("norm_activation") == "token-wise" else scales[written]
            expect(out / name, features, found.W_D.norm(dim=1) / unit, found.decode(features) / scales[written])


if __name__ == "__main__":
    {"saelens": saelens, "circuit_tracer": circuit_tracer, "llamascopium": llamascopium}[sys.argv[1]](Path(sys.argv[2]))
