"""Target `circuit-tracer-features`: the folder `features/` from which circuit-tracer's page reads what a feature is.

    features/index.json.gz    {"0": {"filename": "layer_0.bin", "offsets": [...]}, ...}, one more offset than features
    features/layer_0.bin      of each feature: its length in 4 bytes, little-endian, then gzipped JSON

The page reads it from the Hub, beside the weights: `scan` in a graph is the repository's name. It needs only the store.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autointerp.errors import InputError
from autointerp.export.export_target import Job, Tally
from autointerp.export.feature_json import feature_json, why_no_label
from autointerp.store.feature_details import ShownFeature, feature_details
from autointerp.store.rows import DictionaryRow
from autointerp.store.safety.reading import open_for_reading
from autointerp.store.store import Store

FOLDER = "features"
_LAYER = re.compile(r"\.(\d{1,6})(?=[.:]|$)", re.ASCII)


class CircuitTracerFeatures:
    name = "circuit-tracer-features"
    about = "what circuit-tracer's page shows of each feature: `features/` with labels and contexts"
    needs_weights = False
    reads_graphs = False

    def write(self, job: Job, folder: Path, tally: Tally) -> None:
        with open_for_reading(job.store, job.say) as store:
            write_features(store, layers_of(store, job.dictionaries), folder / FOLDER, job, tally)


def layers_of(store: Store, chosen: tuple[str, ...]) -> dict[int, DictionaryRow]:
    """The chosen dictionaries by the layer that they read. Raises InputError where two read one layer, or where a
    dictionary's hookpoint names no layer."""
    rows = [store.dictionary(name) for name in chosen] or store.dictionaries() or [store.dictionary()]
    found: dict[int, DictionaryRow] = {}
    for row in rows:
        match = _LAYER.search(row.hookpoint)
        if match is None:
            raise InputError(
                f"{row.name}: its hookpoint {row.hookpoint!r} names no layer, and circuit-tracer has layers"
            )
        layer = int(match[1])
        if layer in found:
            raise InputError(
                f"{found[layer].name} and {row.name} both read layer {layer}, and circuit-tracer has one dictionary a "
                "layer; choose with --dictionary, which may be repeated"
            )
        found[layer] = row
    return dict(sorted(found.items()))


def write_features(
    store: Store, layers: Mapping[int, DictionaryRow], folder: Path, job: Job, tally: Tally
) -> None:  # fmt: skip
    """Fills `folder`, which is made, with the features of these dictionaries."""
    folder.mkdir()
    index: dict[str, Any] = {}
    for layer, row in layers.items():
        if store.current_harvest(row.dictionary_id) is None:
            tally.left_out[f"layers: not harvested ({row.name})"] += 1
            continue
        file = folder / f"layer_{layer}.bin"
        index[str(layer)] = {"filename": file.name, "offsets": _write_layer(store, row, file, job, tally)}
    if not index:
        raise InputError(f"{store.path}: none of {_names(layers)} was harvested; run `autointerp harvest` first")
    (folder / "index.json.gz").write_bytes(gzip.compress(json.dumps(index).encode(), mtime=0))


def _write_layer(store: Store, row: DictionaryRow, file: Path, job: Job, tally: Tally) -> list[int]:
    """Writes the features of one dictionary, and returns where each begins, and where the last one ends."""
    offsets = [0]
    with file.open("xb") as out, job.counting(row.name)("writing features", row.d_sae, "features") as update:
        for detail in feature_details(store, row.dictionary_id, range(row.d_sae), job.contexts):
            if detail.shown.feature != len(offsets) - 1:  # the index goes by place
                raise InputError(f"{store.path} lacks feature {len(offsets) - 1} of {row.name}; harvest it again")
            text = json.dumps(feature_json(detail, row.name, job.contexts), ensure_ascii=False, allow_nan=False)
            packed = gzip.compress(text.encode(), 6, mtime=0)
            out.write(len(packed).to_bytes(4, "little") + packed)
            offsets.append(offsets[-1] + 4 + len(packed))
            count_feature(detail.shown, tally)
            update(len(offsets) - 1)
    if len(offsets) - 1 != row.d_sae:
        raise InputError(
            f"{store.path} holds {len(offsets) - 1} of {row.d_sae} features of {row.name}; harvest it again"
        )
    return offsets


def count_feature(shown: ShownFeature, tally: Tally) -> None:
    tally.written["features"] += 1
    if shown.label is not None:
        tally.written["labels"] += 1
    else:
        tally.left_out[f"labels: {why_no_label(shown)}"] += 1


def _names(layers: Mapping[int, DictionaryRow]) -> str:
    return ", ".join(row.name for row in layers.values())


CIRCUIT_TRACER_FEATURES = CircuitTracerFeatures()
