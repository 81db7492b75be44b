"""Keeps how much each feature writes at each part of a joined hookpoint, for SQL and pages."""

from __future__ import annotations

import torch

from autointerp.model.hooks import OTHER, Hookpoint, part_columns
from autointerp.model.load import LoadedModel
from autointerp.sae.sae import Sae
from autointerp.store.store import Store


def keep_decoder_norms(store: Store, dictionary_id: int, loaded: LoadedModel, weights: Sae, written: Hookpoint) -> None:
    """Fill the table decoder_norms for a dictionary that writes at `written`, once. Nothing is kept of a hookpoint that
    is not joined."""
    if not written.others or store.has_decoder_norms(dictionary_id):
        return
    rows = weights.W_dec
    norms = torch.stack([rows[:, begin:end].norm(dim=1) for begin, end in part_columns(loaded, written)], dim=1)
    models = [(loaded.other or loaded).name if part.of_other else loaded.name for part in written.parts]
    hookpoints = [str(part).removeprefix(OTHER) for part in written.parts]
    store.replace_decoder_norms(dictionary_id, hookpoints, models, norms.cpu().numpy())
