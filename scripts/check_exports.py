"""Opens exports with the library that they are for, and writes what it makes of them. Run by that library's own
interpreter; it imports nothing of autointerp.

    python scripts/check_exports.py saelens EXPORT X OUT              SAELens 6
    python scripts/check_exports.py sparsify EXPORT X OUT             sparsify (eai-sparsify)
    python scripts/check_exports.py circuit-tracer EXPORT X OUT       circuit-tracer
    python scripts/check_exports.py graph EXPORT MODEL IDS FOLDER     circuit-tracer: an attribution graph in FOLDER
    python scripts/check_exports.py serve FOLDER                      circuit-tracer: its local server; prints the port
    python scripts/check_exports.py models FOLDER                     circuit-tracer: whether its records take our JSON

X is a safetensors file with a tensor `x` [n, d]. OUT gets, of every dictionary, the activations and the reconstruction
of x, and `again.…`: what the library saves itself, for our readers. IDS are token ids, separated by commas.

tests/test_exports_opened.py compares; its docstring says how to make the environments.
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


def tensors_of(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def save(found: dict[str, Any], out: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous() for name, tensor in found.items()}, out)


def saelens(export: Path, x_file: Path, out: Path) -> None:
    from sae_lens import SAE

    x, found = tensors_of(x_file)["x"], {}
    for folder in sorted(path for path in export.iterdir() if path.is_dir()):
        sae = SAE.load_from_disk(folder)
        found[f"{folder.name}.f"] = sae.encode(x) * sae.W_dec.norm(dim=1)
        found[f"{folder.name}.y"] = sae(x)
        sae.save_model(out.with_name("again") / folder.name)
    save(found, out)


def sparsify(export: Path, x_file: Path, out: Path) -> None:
    import torch
    from sparsify import SparseCoder

    x, found = tensors_of(x_file)["x"], {}
    for name, coder in SparseCoder.load_many(str(export), local=True).items():
        told = coder(x)
        f = torch.zeros(len(x), coder.num_latents).scatter(1, told.latent_indices, told.latent_acts)
        found[f"{name}.f"], found[f"{name}.y"] = f * coder.W_dec.norm(dim=1), told.sae_out
        coder.save_to_disk(out.with_name("again") / name)
    save(found, out)


def transcoders(export: Path) -> Any:
    import torch
    from circuit_tracer.utils.caching import load_transcoders_from_cache

    loaded: Any = load_transcoders_from_cache(
        export.name, cache_dir=export.parent, device=torch.device("cpu"), dtype=torch.float32, lazy_decoder=False
    )
    return loaded[0] if isinstance(loaded, tuple) else loaded


def circuit_tracer(export: Path, x_file: Path, out: Path) -> None:
    x, found, opened = tensors_of(x_file)["x"], {}, transcoders(export)
    for layer, transcoder in enumerate(opened):
        found[f"{layer}.f"], found[f"{layer}.y"] = transcoder.encode(x), transcoder(x)
    opened.to_safetensors(str(out.with_name("again")))
    save(found, out)


def graph(export: Path, model: Path, ids: str, folder: Path) -> None:
    """The graph is made from ids: in its version 0.5.0 a BOS whose id is 0 is taken for none when it adds one."""
    import torch
    import transformer_lens.loading_from_pretrained as loading
    from circuit_tracer import ReplacementModel, attribute
    from circuit_tracer.utils.create_graph_files import create_graph_files

    # its functions read models in folders, but before it calls them it looks for the name in its list
    loading.get_official_model_name = lambda name: name
    replaced = ReplacementModel.from_pretrained_and_transcoders(
        str(for_transformers_4(model, folder.with_name("model-of-graph"))), transcoders(export),
        backend="transformerlens", device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    made = attribute([int(number) for number in ids.split(",")], replaced, max_n_logits=3, max_feature_nodes=256)
    create_graph_files(made, slug="a-graph", output_path=str(folder), node_threshold=0.95, edge_threshold=0.98)
    print(json.dumps({"features": len(made.selected_features), "layers": int(made.cfg.n_layers)}))


def for_transformers_4(model: Path, copy: Path) -> Path:
    """A copy of a model that transformers 5 saved. Version 4, which circuit-tracer needs, does not know the name of its
    class of tokenizers."""
    shutil.copytree(model, copy, dirs_exist_ok=True)
    config = copy / "tokenizer_config.json"
    told = json.loads(config.read_text(encoding="utf-8"))
    if told.get("tokenizer_class") == "TokenizersBackend":
        config.write_text(json.dumps(told | {"tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8")
    return copy


def serve(folder: Path) -> None:
    from circuit_tracer.frontend.local_server import serve as serve_graphs

    server = serve_graphs(data_dir=str(folder), port=0)
    print(server.httpd.server_address[1], flush=True)
    sys.stdin.read()  # until the caller closes it
    server.stop()


def models(folder: Path) -> None:
    from circuit_tracer.frontend import feature_models, graph_models

    for path in (folder / "features").iterdir():
        feature_models.Model.model_validate_json(path.read_text(encoding="utf-8"))
    for path in folder.glob("*.json"):
        if path.name not in ("graph-metadata.json", "autointerp-export.json"):
            graph_models.Model.model_validate_json(path.read_text(encoding="utf-8"))


def main() -> None:
    command, *rest = sys.argv[1:]
    if command == "graph":
        graph(Path(rest[0]), Path(rest[1]), rest[2], Path(rest[3]))
    elif command in ("serve", "models"):
        {"serve": serve, "models": models}[command](Path(rest[0]))
    else:
        {"saelens": saelens, "sparsify": sparsify, "circuit-tracer": circuit_tracer}[command](*map(Path, rest))


if __name__ == "__main__":
    main()
