"""A context as an explainer sees it: JSON on one line, silent stretches as strings, active tokens as [token, 1..10]."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from autointerp.ask.beginnings import Beginning, beginning
from autointerp.ask.prompts import one_line
from autointerp.ask.scale import shown
from autointerp.records import Context

Piece = str | list[str | int]
"""Silent text, or [token, level]."""


def excerpt(context: Context, max_activation: float, silent: Collection[str] = ()) -> str:
    """The context on one line. Tokens in `silent` stand apart where the feature is silent too, as [token, 0]."""
    return one_line(pieces(context, max_activation, silent))


def pieces(context: Context, max_activation: float, silent: Collection[str] = ()) -> list[Piece | Beginning]:
    """What the context begins, and its text in pieces."""
    alone = [i for i, token in enumerate(context.tokens) if token in silent]
    return [*beginning(context), *with_levels(context.tokens, shown(context.activations, max_activation), alone)]


def with_levels(tokens: Sequence[str], levels: Sequence[int], alone: Collection[int] = ()) -> list[Piece]:
    """Tokens with a level above 0, and those at the places `alone`, as [token, level]; others joined to strings."""
    out: list[Piece] = []
    text = ""
    for i, (token, level) in enumerate(zip(tokens, levels, strict=True)):
        if level == 0 and i not in alone:
            text += token
            continue
        if text:
            out.append(text)
            text = ""
        out.append([token, level])
    return [*out, text] if text else out


def peak_of(context: Context) -> int | None:
    """The place of the strongest token; None in a context without tokens."""
    return max(range(len(context.tokens)), key=lambda i: context.activations[i], default=None)
