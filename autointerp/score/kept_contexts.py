"""Whether a harvest keeps as many contexts as the scores ask for. Where it does not, a score is over fewer contexts of
some kind, or over the same ones twice, and estimates something else than it would with fewer contexts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kept_by(harvest: Mapping[str, Any]) -> dict[str, int]:
    """What a harvest of the store kept per feature and split, from its row's config: top_contexts, sampled_contexts,
    negatives (of each tier); those that the row names."""
    found = {**harvest.get("harvest", {}), **harvest.get("merge", {})}
    return {name: found[name] for name in ("top_contexts", "sampled_contexts", "negatives") if name in found}


def shortfall(contexts: int, kept: Mapping[str, int]) -> str | None:
    """What is short where `score.contexts` is N = `contexts`; None where nothing is.

    N strongest contexts are read; 2 N sampled ones, of which a simulation leaves out those that show a strongest one's
    peak; and N random silent ones, which alone count in the headline of detection and fuzzing.
    """
    needed = {"top_contexts": contexts, "sampled_contexts": 2 * contexts, "negatives": contexts}
    short = {name: n for name, n in needed.items() if kept.get(name, n) < n}
    if not short:
        return None
    most = min(
        kept.get("top_contexts", contexts), kept.get("sampled_contexts", 2 * contexts) // 2,
        kept.get("negatives", contexts),
    )  # fmt: skip
    held = ", ".join(f"{name} = {kept[name]}" for name in short)
    wanted = ", ".join(f"{name} = {n}" for name, n in short.items())
    return (
        f"score.contexts = {contexts} is more than the harvest keeps ({held}): scores take fewer contexts of a kind, "
        f"or the same ones twice, and do not compare with scores over fewer contexts; set score.contexts to at most "
        f"{max(most, 1)}, or harvest with {wanted}. Column n_by_kind of `scores` says what each score was taken over"
    )
