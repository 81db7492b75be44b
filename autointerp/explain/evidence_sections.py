"""The sections of evidence that an explainer can read: what each shows an LLM, and which evidence method finds it.

Texts of a corpus stand in a prompt as JSON on one line (see ask/prompts.py): silent stretches as strings, active tokens
as [token, 1..10] pairs. A section without anything to show is empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from autointerp.ask.beginnings import Mark, beginning, plain_excerpt
from autointerp.ask.prompts import one_line
from autointerp.ask.scale import TOP, shown
from autointerp.records import ChangedToken, Context, FeatureEvidence, PromotedToken, PrunedContext, RelatedWord


@dataclass(frozen=True)
class Room:
    """How much a prompt has room for."""

    contexts: int
    """The strongest contexts; pruned contexts have the same limit."""
    random_contexts: int
    """Contexts drawn at random from wherever the feature is active."""
    negatives: int
    """Silent contexts."""
    listed: int
    """Tokens or words of one kind."""


@dataclass(frozen=True)
class Section:
    """One kind of evidence. An explainer names the sections that it reads, and its template is given their values."""

    name: str
    """What the template calls it."""
    shown: Callable[[FeatureEvidence, Room], Any]
    """The value for the template; empty (or None) where the feature has no evidence of this kind."""
    method: str | None = None
    """The evidence method that finds it; None: every harvested feature has it."""
    unless: str | None = None
    """The reason, in words, why a feature cannot be labelled if this section is empty; None if it may be empty."""


HARVESTED = frozenset({"vocab_projection"})
"""Methods that run as part of a harvest: their findings need no run of `measure`."""


def needed_methods(reads: Sequence[Section]) -> tuple[str, ...]:
    """The evidence methods of which one must have found something before these sections show anything; () where one
    of the sections comes with every harvest."""
    methods = [section.method for section in reads if section.method is not None]
    return tuple(dict.fromkeys(methods)) if len(methods) == len(reads) else ()


def how_to_find(methods: Sequence[str]) -> str:
    """What a person does to get the findings of these methods."""
    if HARVESTED & set(methods):
        return "promoted tokens come with the harvest; run `autointerp harvest`"
    return (
        f"run `autointerp measure`, with {' or '.join(methods)} among [evidence] methods (where it was run already, it "
        "found nothing)"
    )


def lacking(name: str, reads: Sequence[Section], evidence: FeatureEvidence) -> str | None:
    """Which evidence the explainer `name` lacks to say anything of the feature, in words; None where it has enough."""
    least = Room(contexts=1, random_contexts=1, negatives=1, listed=1)
    found = {section.name: section.shown(evidence, least) for section in reads}
    for section in reads:
        if section.unless is not None and not found[section.name]:
            return section.unless
    return None if any(found.values()) else f"there is no evidence of the kind that {name!r} reads"


# --- what the sections show -----------------------------------------------------------------------------------------


def pieces(context: Context, max_activation: float) -> list[str | list[str | int] | Mark]:
    """A context as the LLM sees it: what it begins, silent stretches as strings, active tokens as [token, 1..10]."""
    return [*beginning(context), *_with_levels(context.tokens, shown(context.activations, max_activation))]


def _with_levels(tokens: Sequence[str], levels: Sequence[int]) -> list[str | list[str | int]]:
    out: list[str | list[str | int]] = []
    silent = ""
    for token, level in zip(tokens, levels, strict=True):
        if level == 0:
            silent += token
            continue
        if silent:
            out.append(silent)
            silent = ""
        out.append([token, level])
    return [*out, silent] if silent else out


def _line(values: Sequence[Any]) -> str:
    return one_line(list(values)) if values else ""


def _excerpts(evidence: FeatureEvidence, room: Room) -> list[str]:
    return [one_line(pieces(c, evidence.max_activation)) for c in evidence.top[: room.contexts]]


def _drawn(evidence: FeatureEvidence, room: Room) -> list[str]:
    """Uniform samples of where the feature is active, beside the excerpts: the strongest contexts alone may all show
    the same one of its meanings."""
    peaks = {(c.document, c.position) for c in evidence.top[: room.contexts]}
    others = [c for c in evidence.sampled if (c.document, c.position) not in peaks]
    n = min(room.contexts, room.random_contexts)
    return [one_line(pieces(c, evidence.max_activation)) for c in others[:n]]


def _silent(evidence: FeatureEvidence, room: Room) -> list[str]:
    return [one_line(plain_excerpt(c)) for c in hard_negatives(evidence.negatives, room.negatives)]


def hard_negatives(negatives: Sequence[Context], n: int) -> list[Context]:
    """`n` silent contexts, those most like active ones first: contexts where neighbouring features fire and contexts
    with the feature's top token take turns, random ones come last."""

    def tier(name: str) -> list[Context]:
        return [c for c in negatives if (c.tier or "random") == name]

    pairs = zip_longest(tier("neighbour"), tier("same_token"))
    return [*(c for pair in pairs for c in pair if c is not None), *tier("random")][:n]


def _after_peaks(evidence: FeatureEvidence, room: Room) -> str:
    """The token after the strongest one of each excerpt, each token once."""
    found = []
    for context in evidence.top[: room.contexts]:
        peak = max(range(len(context.tokens)), key=lambda i: context.activations[i])  # noqa: B023
        if peak + 1 < len(context.tokens):
            found.append(context.tokens[peak + 1])
    return _line(list(dict.fromkeys(found))[: room.listed])


def _pruned(evidence: FeatureEvidence, room: Room) -> list[dict[str, str]]:
    kept = [_pruned_context(p) for p in evidence.pruned if p.status == "ok"]
    return kept[: max(1, room.contexts)]


def _pruned_context(pruned: PrunedContext) -> dict[str, str]:
    """A pruned context: `text` with the importance of each token, 1..10, and which substitutes it took or refused, as
    [token, substitute] pairs."""
    levels = [min(TOP, math.ceil(TOP * i - 1e-6)) if i > 0 else 0 for i in pruned.importance]
    tried = [(c.kept, [pruned.tokens[c.position], c.substitute]) for c in pruned.counterfactuals]
    return {
        "text": one_line(_with_levels(pruned.tokens, levels)),
        "kept": _line([pair for kept, pair in tried if kept]),
        "lost": _line([pair for kept, pair in tried if not kept]),
    }


def _tokens(promoted: Sequence[PromotedToken], room: Room) -> str:
    return _line([t.token for t in promoted[: room.listed]])


def _changed(changed: Sequence[ChangedToken], sign: Literal[1, -1], room: Room) -> str:
    return _line([t.token for t in changed if t.sign == sign][: room.listed])


def _words(words: Sequence[RelatedWord], room: Room) -> str:
    return _line([w.word for w in words[: room.listed]])


# --- the table ------------------------------------------------------------------------------------------------------

EXCERPTS = Section("excerpts", _excerpts, unless="the explain split has no context of it")
"""The strongest contexts with their activations."""
DRAWN = Section("drawn", _drawn)
"""Contexts drawn at random from wherever the feature is active."""
SILENT = Section("silent", _silent, unless="the explain split has no silent context of it")
"""Silent contexts that look like active ones."""
AFTER_PEAKS = Section("after_peaks", _after_peaks)
"""Tokens that came after the peaks of the excerpts."""
PRUNED = Section("pruned", _pruned, "pruning")
"""The shortest texts that keep a peak, and what each of their tokens is worth."""
PROMOTED = Section("promoted", lambda e, room: _tokens(e.promoted, room), "vocab_projection")
"""Next tokens that the feature's decoder row promotes."""
SUPPRESSED = Section("suppressed", lambda e, room: _tokens(e.suppressed, room), "vocab_projection")
RAISED = Section("raised", lambda e, room: _changed(e.changed, 1, room), "token_change")
"""Tokens that the model says more when the feature is clamped."""
LOWERED = Section("lowered", lambda e, room: _changed(e.changed, -1, room), "token_change")
RELATED_WORDS = Section("related_words", lambda e, room: _words(e.related_words, room), "mutual_information")
"""Words tied to the feature's direction."""
INPUT_WORDS = Section("input_words", lambda e, room: _words(e.input_words, room), "words")
"""Words whose presence goes with firing."""
IS_OUTPUT = Section("is_output", lambda e, room: e.is_output, "output_statistic")
"""Whether the feature's vocabulary projection stands out from a random direction's: True, False, or None (unknown)."""
