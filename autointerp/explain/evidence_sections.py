"""The sections of evidence that an explainer can read: what each shows an LLM, and which evidence method finds it.

Texts of a corpus stand in a prompt as JSON on one line (see ask/prompts.py): silent stretches as strings, active tokens
as [token, 1..10] pairs. A section without anything to show is empty. Drawn excerpts and cut texts have files of their
own (drawn_groups.py, cut_texts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from autointerp.ask.beginnings import plain_excerpt
from autointerp.ask.prompts import one_line
from autointerp.explain.cut_texts import cut_text, says_more
from autointerp.explain.drawn_groups import groups
from autointerp.explain.excerpts import excerpt, peak_of
from autointerp.records import ChangedToken, Context, FeatureEvidence, PromotedToken, RelatedWord


@dataclass(frozen=True)
class Room:
    """How much a prompt has room for."""

    contexts: int
    """The strongest contexts; pruned contexts have the same limit."""
    random_contexts: int
    """Contexts drawn at random from wherever the feature is active; at most twice as many as the strongest ones, so
    that a prompt that is too long shrinks in both."""
    negatives: int
    """Silent contexts; of those with the same token no more than MAX_SAME_TOKEN."""
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


MAX_SAME_TOKEN = 3
"""Silent contexts with the token of a peak that `combined` shows, at most."""
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


def _line(values: Sequence[Any]) -> str:
    return one_line(list(values)) if values else ""


def _excerpts(evidence: FeatureEvidence, room: Room) -> list[str]:
    return [excerpt(c, evidence.max_activation) for c in evidence.top[: room.contexts]]


def _drawn(evidence: FeatureEvidence, room: Room) -> list[dict[str, Any]]:
    """Uniform samples of where the feature is active, beside the excerpts: the strongest contexts alone may all show
    the same one of its meanings, or a meaning that most of its places lack."""
    peaks = {(c.document, c.position) for c in evidence.top[: room.contexts]}
    others = [c for c in evidence.sampled if (c.document, c.position) not in peaks]
    return [
        {
            "deciles": group.deciles, "percent": group.percent,
            "excerpts": [excerpt(c, evidence.max_activation) for c in group.contexts],
        }
        for group in groups(others, min(2 * room.contexts, room.random_contexts))
    ]  # fmt: skip


def _same_token(evidence: FeatureEvidence, room: Room) -> list[str]:
    """Contexts that hold the token of a peak and in which the feature is silent nevertheless."""
    peaks = {c.tokens[at] for c in evidence.top if (at := peak_of(c)) is not None}
    silent = [c for c in evidence.negatives if c.tier == "same_token"]
    n = min(room.contexts, room.negatives, MAX_SAME_TOKEN)
    return [excerpt(c, evidence.max_activation, peaks) for c in silent[:n]]


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
        peak = peak_of(context)
        if peak is not None and peak + 1 < len(context.tokens):
            found.append(context.tokens[peak + 1])
    return _line(list(dict.fromkeys(found))[: room.listed])


def _pruned(evidence: FeatureEvidence, room: Room) -> list[dict[str, str]]:
    return [cut_text(p) for p in evidence.pruned if p.status == "ok"][: room.contexts]


def _cut_texts(evidence: FeatureEvidence, room: Room) -> list[dict[str, str]]:
    """Those that say more than the excerpt that they were cut from, which is shown too."""
    by_id = {c.context_id: c for c in evidence.top}
    kept = [p for p in evidence.pruned if p.status == "ok" and says_more(p, by_id.get(p.context_id))]
    return [cut_text(p) for p in kept[: room.contexts]]


def _tokens(
    name: str, method: str, tokens_of: Callable[[FeatureEvidence], Sequence[PromotedToken | ChangedToken]]
) -> Section:
    """The section of one list of tokens, without those that recur in the lists of many features."""

    def shown(evidence: FeatureEvidence, room: Room) -> str:
        recurring = evidence.recurring.get(name, ())
        tokens = [t.token for t in tokens_of(evidence)]
        return _line([token for token in tokens if token not in recurring][: room.listed])

    return Section(name, shown, method)


def _words(words: Sequence[RelatedWord], room: Room) -> str:
    return _line([w.word for w in words[: room.listed]])


# --- the table ------------------------------------------------------------------------------------------------------

EXCERPTS = Section("excerpts", _excerpts, unless="the explain split has no context of it")
"""The strongest contexts with their activations."""
DRAWN = Section("drawn", _drawn)
"""Contexts drawn at random from wherever the feature is active, in groups by their decile."""
SAME_TOKEN_SILENT = Section("same_token", _same_token)
"""Silent contexts with the token of a peak."""
SILENT = Section("silent", _silent, unless="the explain split has no silent context of it")
"""Silent contexts that look like active ones."""
AFTER_PEAKS = Section("after_peaks", _after_peaks)
"""Tokens that came after the peaks of the excerpts."""
PRUNED = Section("pruned", _pruned, "pruning")
"""The shortest texts that keep a peak, and what each of their tokens is worth."""
CUT_TEXTS = Section("pruned", _cut_texts, "pruning")
"""Those of them that say more than the excerpts."""
PROMOTED = _tokens("promoted", "vocab_projection", lambda e: e.promoted)
"""Next tokens that the feature's decoder row promotes."""
SUPPRESSED = _tokens("suppressed", "vocab_projection", lambda e: e.suppressed)
LENS_PROMOTED = _tokens("lens_promoted", "jacobian_lens", lambda e: [t for t in e.lens if t.sign == 1])
"""Next tokens that the feature promotes by way of the blocks after it."""
LENS_SUPPRESSED = _tokens("lens_suppressed", "jacobian_lens", lambda e: [t for t in e.lens if t.sign == -1])
RAISED = _tokens("raised", "token_change", lambda e: [t for t in e.changed if t.sign == 1])
"""Tokens that the model says more when the feature is clamped."""
LOWERED = _tokens("lowered", "token_change", lambda e: [t for t in e.changed if t.sign == -1])
RELATED_WORDS = Section("related_words", lambda e, room: _words(e.related_words, room), "mutual_information")
"""Words tied to the feature's direction."""
INPUT_WORDS = Section("input_words", lambda e, room: _words(e.input_words, room), "words")
"""Words whose presence goes with firing."""
STANDS_OUT = Section("stands_out", lambda e, room: e.stands_out, "output_statistic")
"""Whether the promoted tokens stand out clearly from those of a random direction: True, False, or None (unknown)."""
