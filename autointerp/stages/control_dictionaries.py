"""What is configured to make the controls of whole dictionaries, and where the store holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autointerp.config import Config, SaeConfig
from autointerp.dictionary_controls import FROZEN_PARTS, RANDOM_MODELS, control_name, is_control
from autointerp.errors import InputError
from autointerp.store.rows import DictionaryRow
from autointerp.store.store import Store
from autointerp.terminal import Terminal


def control_configs(
    config: Config, saes: Sequence[SaeConfig], controls: Sequence[str], terminal: Terminal
) -> list[Config]:
    """The configurations that make `controls` of `saes`: one for each model that they are trained on, since all
    dictionaries of one model are trained together.

    A control has the size and the recipe of its dictionary, the text and the seed of [train]. One of a dictionary that
    was loaded from a file has the k of its harvest, and the architecture of its [[sae]] table.

    Raises InputError if one of `saes` is loaded from a file and not harvested yet.
    """
    like = [_trained_here(config, sae, terminal) for sae in saes]
    made = [_on_random_model(config, like, control) for control in RANDOM_MODELS if control in controls]
    asked = [control for control in FROZEN_PARTS if control in controls]
    if asked:
        frozen = [
            replace(sae, name=control_name(sae.dictionary, control), frozen=FROZEN_PARTS[control])
            for control in asked
            for sae in like
        ]
        made.append(replace(config, sae=tuple(frozen)))
    return made


def check_names(dictionaries: Sequence[str]) -> None:
    """Raise InputError if one of these is the name of a control, of which there is no control."""
    for name in dictionaries:
        if is_control(name):
            raise InputError(
                f"{name!r} is the name of a control, and there is no control of it; name another dictionary, or give "
                "that of its [[sae]] another name"
            )


def _trained_here(config: Config, sae: SaeConfig, terminal: Terminal) -> SaeConfig:
    """The table by which an SAE of this one's size is trained. It keeps the name of the dictionary."""
    sae = replace(sae, name=sae.dictionary)
    if not sae.path:
        return sae
    if sae.source_layer is not None:
        raise InputError(
            f"{sae.dictionary} is one source layer of a cross-layer transcoder. These are not trained here, "
            "so it has no control; name another one"
        )
    with Store.open(Path(config.store.path), read_only=True) as store:
        held = store.dictionary(sae.dictionary)
        k = store.mean_active(held.dictionary_id)
    if k is None:
        raise InputError(f"{sae.dictionary} was not harvested yet; run `autointerp run` first")
    if held.architecture != sae.architecture:
        terminal.warn(
            f"{sae.dictionary} is a loaded SAE of the architecture {held.architecture}; its controls are trained as "
            f"{sae.architecture}, which `architecture` in its [[sae]] table sets"
        )
    # the format was that of the file at `path`
    return replace(sae, path=None, format="auto", reading="", d_sae=held.d_sae, k=max(1, round(k)))


def _on_random_model(config: Config, saes: Sequence[SaeConfig], control: str) -> Config:
    seed = config.train.seed if config.model.random_weights is None else config.model.random_weights
    model = replace(config.model, random_weights=seed, keep_embeddings=control == "random_model_embeddings")
    named = [replace(sae, name=control_name(sae.dictionary, control)) for sae in saes]
    return replace(config, model=model, sae=tuple(named))


def held_controls(store: Store, rows: Sequence[DictionaryRow], control: str) -> list[DictionaryRow]:
    """The control of every dictionary of `rows` that is no control itself. Raises InputError if the store lacks one, or
    if all of `rows` are controls."""
    of = [row for row in rows if not is_control(row.name)]
    if not of:
        check_names([row.name for row in rows])
    held = {row.name: row for row in store.dictionaries()}
    found = []
    for row in of:
        wanted = control_name(row.name, control)
        if wanted not in held:
            raise InputError(f"{store.path} holds no {wanted!r} yet; `autointerp run --control {control}` makes it")
        found.append(held[wanted])
    return found
