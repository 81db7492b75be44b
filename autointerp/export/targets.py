"""The table of export targets: one entry each, one file each."""

from __future__ import annotations

from autointerp.errors import InputError, nearest
from autointerp.export.circuit_tracer_features import CIRCUIT_TRACER_FEATURES
from autointerp.export.circuit_tracer_graph import CIRCUIT_TRACER_GRAPH
from autointerp.export.circuit_tracer_set import CIRCUIT_TRACER
from autointerp.export.export_target import Target
from autointerp.export.saelens_folders import SAELENS
from autointerp.export.sparsify_folders import SPARSIFY

TARGETS: tuple[Target, ...] = (
    SAELENS,
    SPARSIFY,
    CIRCUIT_TRACER,
    CIRCUIT_TRACER_FEATURES,
    CIRCUIT_TRACER_GRAPH,
)


def target_named(name: str) -> Target:
    """Raises InputError, which lists the names, where there is no such target."""
    for target in TARGETS:
        if target.name == name:
            return target
    names = [target.name for target in TARGETS]
    raise InputError(f"there is no export target {name!r}.{nearest(name, names)} There is {', '.join(names)}")
