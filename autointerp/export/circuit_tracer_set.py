"""Target `circuit-tracer`: the transcoders of all layers of one model, as circuit-tracer keeps a set.

    config.yaml               the model, the kind, where transcoders read and write, and `scan`, the set's name
    layer_N.safetensors       one a layer, from 0 on, without a gap (sae/circuit_tracer_files.py)
    features/                 what its page shows of them (circuit_tracer_features.py), where they were harvested

circuit-tracer opens it from the Hub, or from a folder in CIRCUIT_TRACER_CACHE_DIR by the folder's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from autointerp.errors import InputError, MismatchError
from autointerp.export.circuit_tracer_features import FOLDER, layers_of, write_features
from autointerp.export.export_target import Job, Source, Tally
from autointerp.export.weights_notes import note_limits
from autointerp.store.safety.reading import open_for_reading

_READS = ("mlp.hook_in", "hook_resid_mid", "ln2.hook_normalized")
_WRITES = ("hook_mlp_out",)
_NAME = re.compile(r"blocks\.(\d+)\.(.+)", re.ASCII)


class CircuitTracerSet:
    name = "circuit-tracer"
    about = "ReLU and JumpReLU transcoders of all layers for circuit-tracer, with `features/`"
    needs_weights = True
    reads_graphs = False

    def write(self, job: Job, folder: Path, tally: Tally) -> None:
        from autointerp.sae.circuit_tracer_files import SetFiles

        assert job.sources is not None
        sources = job.sources()
        layers = _by_layer(sources)
        files = SetFiles(folder)
        digests: dict[str, frozenset[str]] = {}
        for layer, source in layers.items():
            sae, digests[source.name] = source.load()
            files.add(layer, source.name, sae)
            note_limits(source, sae, tally)
            tally.written["layers"] += 1
        files.finish()
        if any(source.metadata.get("prepend_bos") is False for source in sources):
            tally.note(
                "circuit-tracer puts a special token before every prompt, and these dictionaries were trained without"
            )
        _write_features(job, digests, folder, tally)
        _write_config(job.name, layers, folder)


def _by_layer(sources: Sequence[Source]) -> dict[int, Source]:
    """The transcoders by layer. Raises InputError unless they are of all layers of the model, one each, and all read
    and write at the same place in their layer."""
    layers: dict[int, Source] = {}
    for source in sources:
        layer = int(_place(source, source.hook_names, _READS, "reads")[0])
        if layer in layers:
            raise InputError(
                f"{layers[layer].name} and {source.name} both read layer {layer}; choose with --dictionary"
            )
        layers[layer] = source
    n_layers = max((source.n_layers or 0 for source in sources), default=0)
    missing = [str(layer) for layer in range(n_layers) if layer not in layers]
    if missing:
        raise InputError(
            f"circuit-tracer replaces the MLP of every layer, and no transcoder is there of layer {', '.join(missing)} "
            f"of {n_layers}; there is one of {', '.join(map(str, sorted(layers)))}"
        )
    _common(layers, _READS, "read")
    _common(layers, _WRITES, "write")
    return dict(sorted(layers.items()))


def _place(source: Source, names: Sequence[str] | None, known: Sequence[str], does: str) -> tuple[str, str]:
    """(layer, hook) of the first of `known` that is among `names`."""
    if names is None:
        raise InputError(f"{source.name} is an SAE; circuit-tracer takes transcoders (output_hookpoint)")
    found = {match[2]: match[1] for match in map(_NAME.fullmatch, names) if match}
    for hook in known:
        if hook in found:
            return found[hook], hook
    at = ", ".join(names) or "a place without a name in TransformerLens"
    raise InputError(
        f"{source.name} {does} {at}, and a transcoder of circuit-tracer {does} one of {', '.join(known)}: give the "
        "MLP's input (its module's path with :in) and output"
    )


def _common(layers: Mapping[int, Source], known: Sequence[str], does: str) -> str:
    """The hook at which all transcoders read, or write. Raises InputError where they are at different ones, or where
    one writes another layer than it reads."""
    hooks: dict[str, str] = {}
    for layer, source in layers.items():
        names = source.hook_names if does == "read" else source.output_hook_names
        at, hook = _place(source, names, known, f"{does}s")
        if int(at) != layer:
            raise InputError(
                f"{source.name} reads layer {layer} and writes layer {at}, which is no per-layer transcoder"
            )
        hooks[hook] = source.name
    if len(hooks) > 1:
        told = " and ".join(f"{name} at {hook}" for hook, name in hooks.items())
        raise InputError(f"all transcoders of a set {does} at the same place in their layer, but here {told}")
    return next(iter(hooks))


def _write_features(job: Job, digests: Mapping[str, frozenset[str]], folder: Path, tally: Tally) -> None:
    """Writes `features/` from the store, as far as it holds these dictionaries."""
    if not job.store.exists():
        tally.left_out["features/: there is no store yet"] += 1
        return
    with open_for_reading(job.store, job.say) as store:
        held = {row.name: row for row in store.dictionaries()}
        there = [name for name in digests if name in held]
        for name in there:
            if held[name].sae_sha256 not in digests[name]:
                raise MismatchError(
                    f"the store's dictionary {name!r} was made with another SAE than the file that is exported now; "
                    "harvest the new one under another name"
                )
        harvested = tuple(name for name in there if store.current_harvest(held[name].dictionary_id) is not None)
        missing = len(digests) - len(harvested)
        if missing:
            tally.left_out["layers in features/: not harvested"] += missing
        if harvested:
            write_features(store, layers_of(store, harvested), folder / FOLDER, job, tally)


def _write_config(name: str, layers: Mapping[int, Source], folder: Path) -> None:
    values = {
        "model_name": str(next(iter(layers.values())).metadata.get("model_name")),
        "model_kind": "transcoder_set",
        "feature_input_hook": _common(layers, _READS, "read"),
        "feature_output_hook": _common(layers, _WRITES, "write"),
        "scan": name,
    }
    text = "".join(f"{key}: {_yaml_text(value)}\n" for key, value in values.items())
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def _yaml_text(value: str) -> str:
    """`value` as a quoted string of YAML, which is that of JSON but for the form of rare characters."""
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(sign if sign.isprintable() else f"\\U{ord(sign):08X}" for sign in quoted)


CIRCUIT_TRACER = CircuitTracerSet()
