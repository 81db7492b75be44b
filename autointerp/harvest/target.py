"""The target of a harvest: one dictionary and the folder for its units."""

from __future__ import annotations

from dataclasses import dataclass

from autointerp.harvest.shards import HarvestFolder
from autointerp.harvest.split_pass import Block
from autointerp.model.hooks import Hookpoint
from autointerp.sae.sae import Sae


@dataclass(frozen=True, slots=True)
class Target:
    """One dictionary to harvest."""

    hookpoint: Hookpoint
    sae: Sae
    folder: HarvestFolder
    name: str = ""
    """The dictionary's name, for messages."""
    blocks: tuple[Block, ...] = ()
    """The features processed in each pass over a unit. If empty, `harvest` chooses them by the free memory."""
