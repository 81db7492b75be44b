"""Crosscoders: files written from each tool's layout, against that tool's arithmetic written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from autointerp.errors import DamagedError, InputError
from autointerp.sae.formats import detect, load_sae, sae_sha256
from autointerp.sae.readings import with_reading
from autointerp.sae_reading import Reading

PARTS, WIDTH, N_FEATURES, N_TOKENS = 2, 5, 14, 60
Compute = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Features [n, m] and reconstruction [n, L, d] of inputs [n, L, d], as the tool computes them."""


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def finetuning_state(rule: int | None = 1, mean_and_std: str = "none") -> tuple[dict[str, Tensor], Compute]:
    """The state of a BatchTopKCrossCoder whose code normalisation is `rule`."""
    enc, b_enc = drawn(PARTS, WIDTH, N_FEATURES, seed=1), drawn(N_FEATURES, seed=2) * 0.2
    dec, b_dec = drawn(PARTS, N_FEATURES, WIDTH, seed=3), drawn(PARTS, WIDTH, seed=4)
    state = {
        "encoder.weight": enc, "encoder.bias": b_enc, "decoder.weight": dec, "decoder.bias": b_dec,
        "k": torch.tensor(4), "threshold": torch.tensor(3.0), "target_rms": torch.tensor(1.0),
    }  # fmt: skip
    if rule is not None:
        state["code_normalization_id"] = torch.tensor(rule)
    mean, std = drawn(PARTS, WIDTH, seed=5), drawn(PARTS, WIDTH, seed=6).abs() + 0.5
    scale = torch.ones(PARTS)
    if mean_and_std == "none":
        mean, std = torch.full_like(mean, torch.nan), torch.full_like(std, torch.nan)
    elif mean_and_std == "whole":
        scale = 1 / (std.square().sum(1) + 1e-8).sqrt()
    state |= {"activation_mean": mean, "activation_std": std, "activation_global_scale": scale}
    norm = {1: dec.norm(dim=2).sum(0), 2: dec.norm(dim=(0, 2)), 4: torch.ones(N_FEATURES)}.get(rule or 1)

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        if mean_and_std != "none":
            x = (x - mean) * scale[:, None] if mean_and_std == "whole" else (x - mean) / (std + 1e-8)
        pre = (torch.einsum("bld,ldf->bf", x, enc) + b_enc).relu()
        assert norm is not None
        features = pre * (pre * norm > 3.0)
        out = torch.einsum("bf,lfd->bld", features, dec) + b_dec
        if mean_and_std != "none":
            out = out / (scale[:, None] + 1e-8) if mean_and_std == "whole" else out * (std + 1e-8)
            out = out + mean
        return features, out

    return state, compute


CASES: dict[str, Any] = {
    "sum": (1, "none"), "whole_norm": (2, "none"), "no_norm": (4, "none"), "older": (None, "none"),
    "normalised_by_part": (1, "whole"), "normalised_by_number": (1, "single"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_finetuning_crosscoder_gates_by_the_norms_it_names(name: str, tmp_path: Path) -> None:
    state, compute = finetuning_state(*CASES[name])
    torch.save(state, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"lm_name": "base", "layer": 13}}))
    assert detect(tmp_path) == detect(tmp_path / "ae.pt") == "crosscoder"
    sae, x = load_sae(tmp_path), drawn(N_TOKENS, PARTS, WIDTH, seed=7) * 2
    features, out = compute(x)
    found = sae.encode(x.flatten(1))
    assert 0 < int((features > 0).sum()) < features.numel() and torch.equal(found > 0, features > 0)
    torch.testing.assert_close(sae(x.flatten(1)), out.flatten(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(N_FEATURES))
    gated = {} if name == "no_norm" else {"gated_by_norm": True}
    assert sae.metadata == {"parts": 2, "model_name": "base", "hook_layer": 13, "declared": {"l0": 4.0}} | gated
    torch.save(state | {"code_normalization_id": torch.tensor(4)}, tmp_path / "ae.pt")
    ungated = with_reading(sae, Reading(gate="without_norm"))
    torch.testing.assert_close(ungated.encode(x.flatten(1)), load_sae(tmp_path).encode(x.flatten(1)))


def test_a_plain_crosscoder_is_relu_and_a_compiled_one_is_the_same(tmp_path: Path) -> None:
    state, _ = finetuning_state()
    plain = {name: t for name, t in state.items() if name.startswith(("encoder", "decoder"))}
    save_file(plain, tmp_path / "model.safetensors")
    torch.save({f"_orig_mod.{name}": t for name, t in plain.items()}, tmp_path / "compiled.pt")
    assert detect(tmp_path / "compiled.pt") == "crosscoder"
    x = drawn(N_TOKENS, PARTS, WIDTH, seed=7)
    pre = torch.einsum("bld,ldf->bf", x, plain["encoder.weight"]) + plain["encoder.bias"]
    out = torch.einsum("bf,lfd->bld", pre.relu(), plain["decoder.weight"]) + plain["decoder.bias"]
    for sae in (load_sae(tmp_path / "compiled.pt"), load_sae(tmp_path, "crosscoder")):
        torch.testing.assert_close(sae(x.flatten(1)), out.flatten(1), rtol=1e-5, atol=1e-5)
    assert sae_sha256(tmp_path / "compiled.pt") != sae_sha256(tmp_path, "crosscoder")


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"code_normalization_id": torch.tensor(5)}, InputError, "active in one of them and silent in another"),
        ({"threshold": torch.ones(PARTS)}, InputError, "a threshold for each layer or model"),
        ({"code_normalization_id": torch.tensor(3)}, InputError, "mixes two norms"),
        ({"code_normalization_id": torch.tensor(9)}, InputError, "1, 2 and 4 are known"),
        ({"threshold": torch.tensor(-1.0)}, InputError, "training never set it"),
        ({"encoder.weight": torch.ones(1, WIDTH, N_FEATURES)}, InputError, "does not say which of them"),
        ({"decoder.bias": torch.ones(WIDTH)}, DamagedError, r"decoder\.bias has shape"),
        ({"encoder.bias": torch.full((N_FEATURES,), torch.inf)}, DamagedError, r"encoder\.bias holds NaN or infinite"),
        (
            {
                "activation_mean": torch.zeros(PARTS, WIDTH), "activation_std": torch.ones(PARTS, WIDTH),
                "activation_global_scale": torch.tensor([3.0, 4.0]),
            },
            InputError, "does not follow from activation_std",
        ),
    ],
)  # fmt: skip
def test_what_a_finetuning_crosscoder_leaves_open_is_refused(
    change: dict[str, Tensor], error: type[Exception], reason: str, tmp_path: Path
) -> None:
    torch.save(finetuning_state()[0] | change, tmp_path / "ae.pt")
    with pytest.raises(error, match=reason):
        load_sae(tmp_path / "ae.pt")


def write_crosscode(
    folder: Path, activation: str = "ReLUActivation", read: tuple[int, ...] = (2, 1), written: tuple[int, ...] = (2, 1),
    **change: Tensor | None,
) -> tuple[dict[str, Any], Compute]:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    enc, dec = drawn(*read, WIDTH, N_FEATURES, seed=1), drawn(N_FEATURES, *written, WIDTH, seed=2)
    b_enc, b_dec, log_bar = drawn(N_FEATURES, seed=3) * 0.2, drawn(*written, WIDTH, seed=4), drawn(N_FEATURES, seed=5)
    state: dict[str, Any] = {
        "_W_enc_XiDiL": enc, "_W_dec_LXoDo": dec, "b_enc_L": b_enc, "_b_dec_XoDo": b_dec,
        "is_folded": torch.tensor(True), "folded_scaling_factors_in_Xi": torch.ones(read),
        "folded_scaling_factors_out_Xo": torch.ones(written),
    }  # fmt: skip
    settings = {"TopkActivation": "k: 3", "BatchTopkActivation": "k_per_example: 3"}.get(activation, "size: 14")
    if activation == "AnthropicSTEJumpReLUActivation":
        state["_activation_fn.log_threshold_L"] = log_bar
    state |= change
    torch.save({name: t for name, t in state.items() if t is not None}, folder / "model.pt")
    (folder / "model_cfg.yaml").write_text(
        f"activation_fn:\n  cfg:\n    {settings}\n  classname: {activation}\n"
        "crosscoding_dims: !!python/tuple\n- 2\n- 1\nn_models: 2\nd_model: 5\n"
    )

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x.flatten(1) @ enc.reshape(-1, N_FEATURES) + b_enc
        if activation == "ReLUActivation":
            features = pre.relu()
        elif activation == "TopkActivation":
            features = torch.zeros_like(pre).scatter(-1, pre.topk(3).indices, pre.topk(3).values)
        else:
            features = pre * (pre > log_bar.exp())
        return features, torch.einsum("bl,l...->b...", features, dec) + b_dec

    return state, compute


@pytest.mark.parametrize("activation", ["ReLUActivation", "AnthropicSTEJumpReLUActivation", "TopkActivation"])
@pytest.mark.parametrize(("read", "written"), [((2, 1), (2, 1)), ((2, 3), (2, 3)), ((), (3,)), ((), ())])
def test_crosscode_reads_models_and_hooks_side_by_side(
    activation: str, read: tuple[int, ...], written: tuple[int, ...], tmp_path: Path
) -> None:
    _, compute = write_crosscode(tmp_path, activation, read, written)
    assert detect(tmp_path) == "crosscode"
    sae, x = load_sae(tmp_path), drawn(N_TOKENS, *read, WIDTH, seed=7)
    features, out = compute(x)
    assert torch.equal(sae.encode(x.flatten(1)) > 0, features > 0)
    torch.testing.assert_close(sae(x.flatten(1)), out.flatten(1), rtol=1e-5, atol=1e-5)
    assert sae.metadata["models"] == 2
    assert sae.metadata["parts"] == (written[0] * (written[1] if len(written) > 1 else 1) if written else 1)


def test_what_crosscode_does_not_keep_is_refused(tmp_path: Path) -> None:
    write_crosscode(tmp_path / "a", is_folded=torch.tensor(False))
    with pytest.raises(InputError, match="before the scales of the activations were folded"):
        load_sae(tmp_path / "a")
    write_crosscode(tmp_path / "b", "BatchTopkActivation")
    with pytest.raises(InputError, match="saves no threshold for single tokens"):
        load_sae(tmp_path / "b")
    write_crosscode(tmp_path / "c", "GroupMaxActivation")
    with pytest.raises(InputError, match="'GroupMaxActivation' is not supported"):
        load_sae(tmp_path / "c")
    write_crosscode(tmp_path / "d", is_folded=None)
    with pytest.raises(DamagedError, match="lacks is_folded"):
        load_sae(tmp_path / "d")
    write_crosscode(tmp_path / "e", b_enc_L=torch.ones(3))
    with pytest.raises(DamagedError, match="b_enc_L has shape"):
        load_sae(tmp_path / "e")
    write_crosscode(tmp_path / "f")
    (tmp_path / "f" / "model_cfg.yaml").write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(DamagedError, match="no plain YAML"):
        load_sae(tmp_path / "f")


def test_biases_may_be_absent_and_a_linear_path_is_kept(tmp_path: Path) -> None:
    skip = drawn(WIDTH, 3, WIDTH, seed=9)
    _, compute = write_crosscode(tmp_path, read=(), written=(3,), W_skip_DPD=skip)
    sae, x = load_sae(tmp_path), drawn(N_TOKENS, WIDTH, seed=7)
    out = compute(x)[1] + torch.einsum("bd,dpo->bpo", x, skip)
    torch.testing.assert_close(sae(x), out.flatten(1), rtol=1e-5, atol=1e-5)
    write_crosscode(tmp_path, b_enc_L=None, _b_dec_XoDo=None)
    sae, x = load_sae(tmp_path), drawn(N_TOKENS, 2, 1, WIDTH, seed=7)
    pre = (x.flatten(1) @ drawn(2, 1, WIDTH, N_FEATURES, seed=1).reshape(-1, N_FEATURES)).relu()
    torch.testing.assert_close(sae(x.flatten(1)), pre @ drawn(N_FEATURES, 2, 1, WIDTH, seed=2).reshape(14, -1))
