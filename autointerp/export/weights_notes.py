"""What goes with a dictionary's numbers: where it comes from, and what it does here and not in another tool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autointerp.export.export_target import Source, Tally

if TYPE_CHECKING:
    from autointerp.sae.sae import Sae


def described(source: Source, sae: Sae) -> dict[str, Any]:
    """What the file says of its origin, with model, place and way of reading as they are here."""
    own = {key: value for key, value in source.metadata.items() if key != "context_size"}
    return {"context_size": source.metadata.get("context_size"), **sae.metadata, **own}


def note_limits(source: Source, sae: Sae, tally: Tally) -> None:
    if sae.longest is not None:
        tally.note(
            f"{source.name}: here no feature is active on a vector longer than {sae.longest:.4g} (an attention sink); "
            "other tools have no such limit, so there features are active on those tokens too"
        )
