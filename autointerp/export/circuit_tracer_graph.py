"""Target `circuit-tracer-graph`: graphs that circuit-tracer made, with our labels, as a folder that its local server
shows.

    SLUG.json                 the graph: `clerp` of every feature node is its label, `scan` is where the features are
    graph-metadata.json       the list of the graphs
    features/N.json           each feature of the graphs; N is the Cantor pairing of layer and feature

circuit-tracer's page reads features from the Hub, unless `scan` is a path of the server's own. So these need no upload.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autointerp.errors import DamagedError, InputError, shown
from autointerp.export.circuit_tracer_features import FOLDER, count_feature, layers_of
from autointerp.export.export_target import Job, Tally
from autointerp.export.feature_json import feature_json, node_text
from autointerp.store.feature_details import feature_details
from autointerp.store.rows import DictionaryRow
from autointerp.store.safety.reading import open_for_reading
from autointerp.store.store import Store

SCAN = f"./data/{FOLDER}"
"""Where the page looks for features: what its server is given as a folder is ./data/ to the page."""
MAX_GRAPH_BYTES = 1 << 30
_FEATURE = "cross layer transcoder"
"""The type of every feature's node, also of per-layer transcoders."""
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)
_LARGEST = 1 << 60

Graph = dict[str, Any]


class CircuitTracerGraph:
    name = "circuit-tracer-graph"
    about = "graphs of circuit-tracer (--graph) with labels, for its local server"
    needs_weights = False
    reads_graphs = True

    def write(self, job: Job, folder: Path, tally: Tally) -> None:
        graphs = [read_graph(path) for path in job.graphs]
        slugs = [graph["metadata"]["slug"] for graph in graphs]
        twice = next((slug for slug in slugs if slugs.count(slug) > 1), None)
        if twice is not None:
            raise InputError(f"two graphs are called {twice!r}; give one another slug")
        (folder / FOLDER).mkdir()
        with open_for_reading(job.store, job.say) as store:
            layers = layers_of(store, job.dictionaries)
            texts = _write_features(store, layers, graphs, folder / FOLDER, job, tally)
        for graph in graphs:
            _write_graph(graph, texts, folder, tally)
        listed = json.dumps({"graphs": [graph["metadata"] for graph in graphs]}, indent=1)
        (folder / "graph-metadata.json").write_text(listed, encoding="utf-8")


def pairing(layer: int, feature: int) -> int:
    """The number under which a graph knows a feature."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def unpaired(number: int) -> tuple[int, int]:
    """(layer, feature) of `pairing`."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    feature = number - diagonal * (diagonal + 1) // 2
    return diagonal - feature, feature


def read_graph(path: Path) -> Graph:
    """A graph file of circuit-tracer. Raises InputError where there is none, and DamagedError where it is something
    else."""
    try:
        if not path.is_file():
            raise InputError(f"there is no graph file {path}; circuit-tracer writes one for each --slug")
        if path.stat().st_size > MAX_GRAPH_BYTES:
            raise DamagedError(f"{path} is larger than 1 GB, which is no graph")
        graph = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is no graph of circuit-tracer: not JSON ({error})") from None
    metadata = graph.get("metadata") if isinstance(graph, dict) else None
    nodes = graph.get("nodes") if isinstance(graph, dict) else None
    if not isinstance(metadata, dict) or not isinstance(nodes, list):
        raise DamagedError(f"{path} is no graph of circuit-tracer: it lacks `metadata` or `nodes`")
    slug = metadata.get("slug")
    if not isinstance(slug, str) or not _SLUG.fullmatch(slug) or slug == "graph-metadata":
        raise DamagedError(f"{path}: its slug is {shown(str(slug))}, which is no name for a file")
    for node in nodes:
        if not isinstance(node, dict):
            raise DamagedError(f"{path}: one of its nodes is no table")
        number = node.get("feature")
        if node.get("feature_type") == _FEATURE and not (
            isinstance(number, int) and not isinstance(number, bool) and 0 <= number < _LARGEST
        ):
            raise DamagedError(f"{path}: a node has feature {shown(str(number))}, which is no number of a feature")
    return graph


def _feature_nodes(graph: Graph) -> Iterator[dict[str, Any]]:
    return (node for node in graph["nodes"] if node.get("feature_type") == _FEATURE)


def _write_features(
    store: Store, layers: Mapping[int, DictionaryRow], graphs: list[Graph], folder: Path, job: Job, tally: Tally
) -> dict[int, str | None]:
    """Writes the file of every feature that is a node of a graph. Returns the texts of the nodes by feature number."""
    wanted: dict[int, set[int]] = {}
    for number in {node["feature"] for graph in graphs for node in _feature_nodes(graph)}:
        layer, feature = unpaired(number)
        wanted.setdefault(layer, set()).add(feature)
    texts: dict[int, str | None] = {}
    n_wanted = sum(map(len, wanted.values()))
    with job.counting(job.name)("writing features", n_wanted, "features") as update:
        for layer, features in sorted(wanted.items()):
            row = layers.get(layer)
            if row is None:
                tally.left_out[f"features: the store has no dictionary of layer {layer}"] += len(features)
                continue
            if max(features) >= row.d_sae:
                raise InputError(
                    f"a graph names feature {max(features):,} of layer {layer}, but {row.name} has {row.d_sae:,}: the "
                    "graph was made with other transcoders"
                )
            found = 0
            for detail in feature_details(store, row.dictionary_id, sorted(features), job.contexts):
                number = pairing(layer, detail.shown.feature)
                told = feature_json(detail, row.name, job.contexts)
                text = json.dumps(told, ensure_ascii=False, allow_nan=False)
                (folder / f"{number}.json").write_text(text, encoding="utf-8")
                texts[number] = node_text(detail.shown)
                count_feature(detail.shown, tally)
                found += 1
                update(len(texts))
            if found < len(features):
                tally.left_out[f"features: not harvested ({row.name})"] += len(features) - found
    return texts


def _write_graph(graph: Graph, texts: Mapping[int, str | None], folder: Path, tally: Tally) -> None:
    for node in _feature_nodes(graph):
        text = texts.get(node["feature"])
        if node.get("clerp"):
            tally.left_out["nodes: have a text already"] += 1
        elif text is None:
            tally.left_out["nodes: their feature has no label"] += 1
        else:
            node["clerp"] = text
            tally.written["labelled nodes"] += 1
    graph["metadata"] |= {"scan": SCAN, "transcoder_list": []}
    path = folder / f"{graph['metadata']['slug']}.json"
    path.write_text(json.dumps(graph, ensure_ascii=False), encoding="utf-8")
    tally.written["graphs"] += 1


CIRCUIT_TRACER_GRAPH = CircuitTracerGraph()
