"""The dictionaries of a configuration as an export needs them: their weights, and where they are in the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autointerp.config import JOINED, SaeConfig
from autointerp.corpus.windows import bos_prefix
from autointerp.export.export_target import Source
from autointerp.sae.formats.hooknames import hook_names, n_blocks, to_base_model_path, to_hook_name
from autointerp.sae.sae import Sae
from autointerp.stages.session import Session, loaded_sae, sha256_without_limit


def origin_of(session: Session, sae: SaeConfig) -> dict[str, Any]:
    """What a dictionary's file says of the model and the place that it belongs to, under SAELens's names."""
    loaded, corpus = session.model(), session.config.corpus
    parts = map(str, session.point(sae.hookpoint).parts)
    return {
        "model_name": loaded.name,
        "model_revision": loaded.revision,
        "hook_name": JOINED.join(to_hook_name(part, loaded.model) or part for part in parts),
        "module_path": sae.hookpoint,
        "context_size": corpus.context_length,
        "prepend_bos": bool(bos_prefix(loaded.tokenizer, corpus)),
    }


def sources_of(session: Session, saes: Sequence[SaeConfig]) -> list[Source]:
    """What an export reads of each of these dictionaries. The weights are loaded one after the other, when they are
    asked for."""
    return [_source(session, sae) for sae in saes]


def _source(session: Session, sae: SaeConfig) -> Source:
    def load() -> tuple[Sae, frozenset[str]]:
        weights, sha256 = loaded_sae(session, sae)
        return weights.to("cpu").float(), frozenset({sha256, sha256_without_limit(session, sae)})

    model, (point, output) = session.model().model, session.points(sae)
    return Source(
        name=sae.dictionary,
        hook_names=tuple(hook_names(str(point), model)),
        output_hook_names=None if output is None else tuple(hook_names(str(output), model)),
        base_path=_base_path(session, sae),
        n_layers=n_blocks(model),
        metadata=origin_of(session, sae),
        load=load,
    )


def _base_path(session: Session, sae: SaeConfig) -> str | None:
    point, output = session.points(sae)
    if point.others or (output is not None and output.others):
        return None
    is_one_module = point.path == output.path and point.side == "in" if output else True
    written = output or point
    if not is_one_module or written.side == "in":
        return None
    return to_base_model_path(written.path, session.model().model)
