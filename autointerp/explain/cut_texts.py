"""Cut texts: the shortest text that keeps a peak, as an explainer sees it, and whether it adds to the excerpt."""

from __future__ import annotations

from autointerp.ask.prompts import one_line
from autointerp.ask.scale import TOP, shown
from autointerp.explain.excerpts import peak_of, with_levels
from autointerp.records import Context, PrunedContext

LONG = 6
"""Tokens from which on a cut text is long: where every one of them is worth everything, none stands out."""


def cut_text(pruned: PrunedContext) -> dict[str, str]:
    """`text` with the importance of each token, 1..10, and which replacements it took (`kept`) or refused (`lost`), as
    [place, token, other]. A token that was replaced is a piece of its own, and `place` counts the pieces from 1, so
    that a repeated token cannot be mistaken for another."""
    levels = _levels(pruned)
    replaced = {c.position for c in pruned.counterfactuals}
    pieces = with_levels(pruned.tokens, levels, replaced)
    apart = [i for i, level in enumerate(levels) if level > 0 or i in replaced]
    places = [n for n, piece in enumerate(pieces, 1) if isinstance(piece, list)]
    place = dict(zip(apart, places, strict=True))
    tried = [(c.kept, [place[c.position], pruned.tokens[c.position], c.substitute]) for c in pruned.counterfactuals]

    def listed(is_kept: bool) -> str:
        found = [one for kept, one in tried if kept == is_kept]
        return one_line(found) if found else ""

    return {"text": one_line(pieces), "kept": listed(True), "lost": listed(False)}


def says_more(pruned: PrunedContext, context: Context | None) -> bool:
    """Whether the cut text says more than the excerpt that it was cut from (None: not known). It does not where it is
    long and every token is worth everything, or where it is all of the excerpt up to the peak."""
    if len(pruned.tokens) >= LONG and all(level == TOP for level in _levels(pruned)):
        return False
    peak = None if context is None else peak_of(context)
    if context is None or peak is None or len(pruned.tokens) == 1:
        return True
    return "".join(pruned.tokens) != "".join(context.tokens[: peak + 1])


def _levels(pruned: PrunedContext) -> list[int]:
    return shown(pruned.importance, 1.0)
