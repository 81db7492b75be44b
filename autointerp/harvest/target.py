"""What a harvest works on: one dictionary and the folder that its units go to."""

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
    """For messages."""
    blocks: tuple[Block, ...] = ()
    """The features processed in each pass over a unit. Empty: `harvest` chooses them by the memory that is free."""
