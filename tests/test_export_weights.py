"""Exports of dictionaries: the other tool's numbers are ours, its places are named in its terms, and what it has no
form for is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.commands import run
from support.exported_sets import LAYERS, as_circuit_tracer, transcoder, write_project
from support.sae_format_helpers import change_config, change_tensors
from support.store_fixtures import add_dictionary
from torch import Tensor

from autointerp.export.whole_folder import MARK
from autointerp.sae.circuit_tracer_files import SetFiles
from autointerp.sae.formats import load_sae, sae_sha256
from autointerp.sae.sae import Sae
from autointerp.store import Store

WIDTH = 64


@pytest.fixture
def x() -> Tensor:
    return torch.randn(100, WIDTH, generator=torch.Generator().manual_seed(3))


def exported(
    capsys: pytest.CaptureFixture[str], target: str, config: Path, *more: str
) -> tuple[int, Path, str]:  # fmt: skip
    out = config.parent / f"out-{target}"
    code, _, told = run(capsys, "export", target, str(out), "-c", str(config), *more)
    return code, out, told


def test_circuit_tracer_gets_the_same_numbers(
    tiny_llama: Path, tmp_path: Path, x: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [transcoder(WIDTH, 1), transcoder(WIDTH, 2, threshold=0.0, skip=False), transcoder(WIDTH, 3)]
    code, out, told = exported(capsys, "circuit-tracer", write_project(tmp_path, tiny_llama, made))
    assert code == 0, told
    for layer, ours in enumerate(made):
        tensors = load_file(out / f"layer_{layer}.safetensors")
        assert ("activation_function.threshold" in tensors) == (layer != 1)
        assert "W_skip" in tensors  # circuit-tracer asks the first layer whether all have one
        f, y = as_circuit_tracer(tensors, x)
        assert 0 < int((f > 0).sum()) < f.numel()
        torch.testing.assert_close(f, ours.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(y, ours(x), rtol=1e-5, atol=1e-5)
    config = dict(re.findall(r'^(\w+): "(.*)"$', (out / "config.yaml").read_text(), re.MULTILINE))
    assert config == {
        "model_name": str(tiny_llama),
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "scan": "out-circuit-tracer",
    }
    assert not (out / "features").exists()
    assert json.loads((out / MARK).read_text())["left_out"] == {"features/: there is no store yet": 1}


def test_values_below_zero_go_along(tmp_path: Path, x: Tensor) -> None:
    """Those that a threshold below 0 lets through are part of the reconstruction, here and there."""
    ours = transcoder(WIDTH, 1, relu=False)
    SetFiles(tmp_path).add(0, "negative", ours)
    f, y = as_circuit_tracer(load_file(tmp_path / "layer_0.safetensors"), x)
    assert int((f < 0).sum()) > 0
    torch.testing.assert_close(f.relu(), ours.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y, ours(x), rtol=1e-5, atol=1e-5)


def test_a_transcoder_may_read_the_stream_before_the_norm(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [transcoder(WIDTH, layer) for layer in range(LAYERS)]
    config = write_project(tmp_path, tiny_llama, made, reads="post_attention_layernorm:in")
    code, out, told = exported(capsys, "circuit-tracer", config)
    assert code == 0, told
    assert 'feature_input_hook: "hook_resid_mid"' in (out / "config.yaml").read_text()


def changed(config: Path, old: str, new: str) -> Path:
    """The configuration with the first occurrence of a text replaced."""
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    return config


MLP_0 = "model.layers.0.mlp"
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, str] | None, str]] = {
    "topk": ({"k": 4}, None, r"layer 1 is a TopK transcoder \(k = 4\).*sparsify"),
    "place": ({}, (f"{MLP_0}:in", "model.layers.0:in"), "reads blocks.0.hook_resid_pre.*one of mlp.hook_in"),
    "mixed": ({}, (f"{MLP_0}:in", "model.layers.0.post_attention_layernorm:in"), "read at the same place"),
    "across": ({}, (f'output_hookpoint = "{MLP_0}"', 'output_hookpoint = "model.layers.1.mlp"'), "writes layer 1"),
    "sae": ({}, (f'output_hookpoint = "{MLP_0}"\n', ""), "is an SAE"),
}
"""How the transcoder of layer 1 is made, what is changed in the configuration, and what is said."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_circuit_tracer_has_no_form_for_is_refused(
    name: str, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, change, message = REFUSED[name]
    made = [transcoder(WIDTH, layer, **(settings if layer == 1 else {})) for layer in range(LAYERS)]
    config = write_project(tmp_path, tiny_llama, made)
    if change is not None:
        config = changed(config, *change)
    code, out, told = exported(capsys, "circuit-tracer", config)
    assert code == 2 and re.search(message, " ".join(told.split())), told
    assert not out.exists() and not list(tmp_path.glob(".out*"))


def test_missing_layers_are_named(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_project(tmp_path, tiny_llama, [transcoder(WIDTH, layer) for layer in range(LAYERS)])
    chosen = ("--dictionary", "layer 0", "--dictionary", "layer 2")
    code, _, told = exported(capsys, "circuit-tracer", config, *chosen)
    assert code == 2 and "no transcoder is there of layer 1 of 3" in told


def test_saelens_and_sparsify_get_folders_that_are_read_again(
    tiny_llama: Path, tmp_path: Path, x: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    made: dict[str, list[Sae]] = {
        "saelens": [transcoder(WIDTH, 1), transcoder(WIDTH, 2, skip=False)],
        "sparsify": [transcoder(WIDTH, 1, k=4), transcoder(WIDTH, 2, k=4, skip=False)],
    }
    names = {"saelens": ["layer_0", "layer_1"], "sparsify": ["layers.0.mlp", "layers.1.mlp"]}
    for target, saes in made.items():
        (tmp_path / target).mkdir()
        config = write_project(tmp_path / target, tiny_llama, saes)
        code, out, told = exported(capsys, target, config)
        assert code == 0, told
        folders = sorted(path for path in out.iterdir() if path.is_dir())
        assert [folder.name.partition("-")[0] for folder in folders] == names[target]
        for folder, ours in zip(folders, saes, strict=True):
            again = load_sae(folder)
            torch.testing.assert_close(again.encode(x), ours.encode(x), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(again(x), ours(x), rtol=1e-5, atol=1e-5)
            assert again.metadata["prepend_bos"] is True and again.metadata["model_name"] == str(tiny_llama)
    again = load_sae(next((tmp_path / "saelens" / "out-saelens").glob("layer_0*")))
    # the same place, since an untrained norm multiplies by one
    assert again.metadata["hook_name"] == "blocks.0.ln2.hook_normalized"
    assert again.metadata["hook_name_out"] == "blocks.0.hook_mlp_out"


def test_sparsify_takes_one_module_only(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [transcoder(WIDTH, layer, k=4) for layer in range(LAYERS)]
    config = write_project(tmp_path, tiny_llama, made, reads="post_attention_layernorm:in")
    code, out, told = exported(capsys, "sparsify", config)
    assert code == 2 and "the same module's input" in told and not out.exists()


def test_a_store_of_the_same_dictionary_is_known_by_its_hash(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by the one of earlier versions, which left out the limit of length."""
    config = write_project(tmp_path, tiny_llama, [transcoder(WIDTH, layer) for layer in range(LAYERS)])
    for layer in range(LAYERS):
        change_config(tmp_path / "saes" / str(layer), metadata={"longest_vector": 7.5})
    with Store.open(tmp_path / "x.duckdb", create=True) as store:
        for layer, with_limit in enumerate((True, False, True)):
            sha256 = sae_sha256(tmp_path / "saes" / str(layer), with_limit=with_limit)
            add_dictionary(store, f"layer {layer}", sae_sha256=sha256)
    code, out, told = exported(capsys, "circuit-tracer", config)
    assert code == 0 and "left out: 3 layers in features/: not harvested" in told, told
    change_tensors(tmp_path / "saes" / "1" / "sae_weights.safetensors", b_dec=torch.zeros(WIDTH))
    code, _, told = exported(capsys, "circuit-tracer", config, "--force")
    assert code == 8 and "'layer 1' was made with another SAE" in told
    assert (out / "layer_1.safetensors").exists()  # of the first export


def test_a_limit_that_other_tools_do_not_know_is_told(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_project(tmp_path, tiny_llama, [transcoder(WIDTH, 1)])
    cfg = tmp_path / "saes" / "0" / "cfg.json"
    settings = json.loads(cfg.read_text())
    settings["metadata"]["longest_vector"] = 7.5
    cfg.write_text(json.dumps(settings))
    code, _, told = exported(capsys, "saelens", config)
    assert code == 0 and "longer than 7.5" in told
