"""Exports opened by the libraries that they are for: the same activations and reconstructions to 1e-5, both ways, and
for circuit-tracer an attribution graph with our labels on its own local server.

Each library runs in the interpreter of an environment of its own, which a variable names; without it, its tests are
skipped:

    AUTOINTERP_PEERS_PYTHON             torch==2.13.0, sae-lens, eai-sparsify
    AUTOINTERP_CIRCUIT_TRACER_PYTHON    torch==2.13.0, circuit-tracer

They were last run with sae-lens 6.54.12, eai-sparsify 1.3.3, and circuit-tracer 0.5.0 with transformer-lens 3.2.1.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import run, write_corpus
from support.exported_sets import D_SAE, LAYERS, transcoder, write_project
from torch import Tensor

from autointerp.export.circuit_tracer_graph import SCAN
from autointerp.sae.formats import load_sae
from autointerp.sae.sae import Sae

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "scripts" / "check_exports.py"
PYTHONS = {
    "saelens": "AUTOINTERP_PEERS_PYTHON",
    "sparsify": "AUTOINTERP_PEERS_PYTHON",
    "circuit-tracer": "AUTOINTERP_CIRCUIT_TRACER_PYTHON",
}
WIDTH = 64
SOME_IDS = "0,40,60,80,100,120"
"""A BOS and five tokens of the small model's vocabulary."""


def python_of(target: str) -> str:
    found = os.environ.get(PYTHONS[target], "")
    if not found:
        pytest.skip(f"{PYTHONS[target]} does not name an interpreter with {target} installed")
    return found


def opened(target: str, *arguments: object) -> str:
    """What the script prints in the library's interpreter."""
    done = subprocess.run(
        [python_of(target), str(SCRIPT), *map(str, arguments)], capture_output=True, text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def exported(capsys: pytest.CaptureFixture[str], target: str, out: Path, config: Path, *more: str) -> None:
    code, _, told = run(capsys, "export", target, str(out), "-c", str(config), *more)
    assert code == 0, told


def transcoders_for(target: str) -> list[Sae]:
    k = 4 if target == "sparsify" else None
    made = [transcoder(WIDTH, layer, k=k) for layer in range(LAYERS)]
    if target == "sparsify":
        made[1].row_norms = torch.linspace(0.2, 3, D_SAE)
    else:
        made[1] = transcoder(WIDTH, 1, threshold=0.0, skip=False)
    return made


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", PYTHONS)
def test_both_compute_the_same(
    target: str, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python_of(target)
    made, out = transcoders_for(target), tmp_path / "out"
    exported(capsys, target, out, write_project(tmp_path, tiny_llama, made))
    x = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(5))
    save_file({"x": x}, tmp_path / "x.safetensors")
    opened(target, target, out, tmp_path / "x.safetensors", tmp_path / "told.safetensors")
    told = load_file(tmp_path / "told.safetensors")
    assert len(told) == 2 * LAYERS
    names = sorted(name.removesuffix(".f") for name in told if name.endswith(".f"))
    for name, ours in zip(names, made, strict=True):
        assert 0 < int((told[f"{name}.f"] > 0).sum()) < told[f"{name}.f"].numel()
        close(told[f"{name}.f"], ours.encode(x))
        close(told[f"{name}.y"], ours(x))
        again = tmp_path / "again"  # what the library saved, read by us
        sae = load_sae(again / (f"layer_{name}.safetensors" if target == "circuit-tracer" else name))
        close(sae.encode(x), told[f"{name}.f"])
        close(sae(x), told[f"{name}.y"])


def harvested(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A project whose transcoders are harvested and labelled by rules."""
    corpus = write_corpus(folder / "texts")
    made = [transcoder(WIDTH, layer, threshold=1.0) for layer in range(LAYERS)]
    config = write_project(folder, model, made, corpus)
    more = "[harvest]\ncontext_tokens = 16\ntop_contexts = 4\nsampled_contexts = 4\nnegatives = 3\n"
    config.write_text(f'{config.read_text()}{more}[explain]\nexplainer = "patterns"\n')
    for command in ("harvest", "explain"):
        for layer in range(LAYERS):
            code, _, told = run(capsys, command, "-c", str(config), "--dictionary", f"layer {layer}")
            assert code == 0, told
    return config


def test_a_graph_on_its_local_server_has_our_labels(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = python_of("circuit-tracer")
    config = harvested(tiny_llama, tmp_path, capsys)
    graphs, shown, mine = tmp_path / "graphs", tmp_path / "shown", tmp_path / "mine"
    exported(capsys, "circuit-tracer", mine, config)
    index = json.loads(gzip.decompress((mine / "features" / "index.json.gz").read_bytes()))
    assert {layer: len(one["offsets"]) for layer, one in index.items()} == {
        str(layer): D_SAE + 1 for layer in range(LAYERS)
    }
    told = json.loads(opened("circuit-tracer", "graph", mine, tiny_llama, SOME_IDS, graphs).splitlines()[-1])
    assert told["layers"] == LAYERS and told["features"] > 0
    made = json.loads((graphs / "a-graph.json").read_text())
    assert made["metadata"]["scan"] == "mine"
    exported(capsys, "circuit-tracer-graph", shown, config, "--graph", str(graphs / "a-graph.json"))
    server = subprocess.Popen(
        [python, str(SCRIPT), "serve", str(shown)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"

        def fetched(path: str) -> Any:
            with urlopen(f"{url}/{path}") as reply:
                return json.loads(reply.read())

        assert [one["slug"] for one in fetched("data/graph-metadata.json")["graphs"]] == ["a-graph"]
        graph = fetched("data/a-graph.json")
        features = [node for node in graph["nodes"] if node["feature_type"] == "cross layer transcoder"]
        assert features and graph["metadata"]["scan"] == SCAN
        for node in features:  # as the page asks for them
            feature = fetched(f"{SCAN.removeprefix('./')}/{node['feature']}.json")
            assert str(feature["index"]) == node["node_id"].split("_")[1]
            label = feature["autointerp"]["label"]
            assert node["clerp"].startswith(label) if label else node["clerp"] == ""
        assert any(node["clerp"] for node in features)
    finally:
        server.communicate(timeout=60)
    opened("circuit-tracer", "models", shown)
