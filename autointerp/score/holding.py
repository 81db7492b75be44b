"""From which activation on a label holds. No I/O here.

A label is often right about the strongest places of a feature and says nothing of the others. For a threshold t, the
true places are the tiles whose largest activation is at least t; what the label claims does not depend on t. On text as
it comes (see prevalence.py), with d the share of tiles in which the feature fires and f the share of silent tiles that
the label claims all the same,

    precision(t)  the share of claimed tiles that reach t: d h / (d a + (1 - d) f), where a is the share of active tiles
                  that are claimed, and h the share that are claimed and reach t. A weaker active tile is a false alarm
    recall(t)     the share of the tiles that reach t that are claimed

As t rises, precision falls, and recall rises where stronger places are claimed more often. A bound on precision alone
would give the lowest t of all, 0, to every label with few false alarms, however many weak places it misses; recall
alone gives the highest. So the label holds from the t at which the two balance best, that is, at which their harmonic
mean (F1) is largest, among those at which precision is at least `score.label_precision`. Of equal ones the lowest is
taken, and of the activations that separate the same contexts the middle; 0 where all contexts reach it.

Precision and recall at a threshold that was chosen on the same contexts would flatter it. A rule asks nothing, so its
threshold is chosen on the select part and measured on the report part. A judge was asked about the report part alone:
there each document's contexts are counted at the threshold that all other documents choose (cross-fitting). With two
halves instead, the thresholds are those of half as many contexts, and the intervals of recall held the truth in 84 to
90 % of simulations.

Of a feature that fires in most tiles, most of what any label claims is right. A label that claims everything, or as
much at random, has a precision of d s, the share of all tiles that reach t, where s is that of the active ones. So a
label holds from t only where its precision lies above this, beyond noise. That is the same as claiming the tiles that
reach t more often than the others, and so the two shares are compared (`_beats_chance`).

Without a false alarm among m silent tiles, f is not 0 but unknown. To choose t it is taken as half a false alarm among
m + 1, and to confirm it; the precision at t then has no value, only its ends, as in natural.py.

Chosen on some tiles, a precision is likely to come out lower on others. So the label holds from t only where it reaches
the floor there too. How far it lies above, or below, is told by the intervals, which allow for tiles of one document
being alike (clustered_shares.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autointerp import stats
from autointerp.clustered_shares import design_effect, largest_effect, share_of, share_with_effect
from autointerp.prevalence import natural_precision
from autointerp.records import Holding
from autointerp.score.natural import NO_FALSE_ALARM, SilentTiles, is_claimed, is_ordinary
from autointerp.score.score_rows import Answer, documents_of, usable

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

NOWHERE = "nowhere"
NOT_CONFIRMED = "not_confirmed"
NO_BETTER_THAN_CHANCE = "no_better_than_chance"
FEW_CONTEXTS = "few_contexts"
NO_CONTEXTS = "no_contexts"
FEWEST = 15
"""Active contexts from which a threshold is chosen; and as many independent ones for an interval (see `_is_enough`).
From here on 93 to 97 % of intervals held the truth, averaged over simulated labels."""
CHOOSING_Z = 2.5758293035489
"""To be chosen, a threshold has to beat chance by so many standard errors (99 %), to be confirmed by those of 95 %: the
best of many thresholds looks better than it is. Of simulated labels that claim at random, 3 % at most then hold."""
CHOSEN_ON = 0.8
"""For recall, contexts on which the threshold was chosen too count as so many each: it scatters with them. Otherwise 92
to 94 % of its intervals held the truth, and so 94 to 97 %."""


@dataclass(frozen=True)
class Claims:
    """What a label claims of active tiles, a uniform sample of those in which the feature fires, and of silent ones."""

    peaks: Floats
    """[n]: the largest activation of each active tile, raw units."""
    masses: Floats
    """[n]: the sum of its activations."""
    claimed: Flags
    """[n]"""
    documents: list[str]
    """[n]"""
    alarms: Flags
    """[m]: which of the silent tiles are claimed."""
    silent_documents: list[str]
    """[m]"""
    density: float
    """The share of tiles in which the feature fires."""

    @cached_property
    def effect(self) -> float | None:
        """The design effect of what is claimed among the active tiles; None where their documents are too few."""
        return design_effect(self.claimed, self.documents)

    @cached_property
    def noise(self) -> tuple[float, float]:
        """The design effects of what is claimed among the active and among the silent tiles, as large as they can be
        where the documents are too few to tell."""
        silent = design_effect(self.alarms, self.silent_documents)
        return (
            largest_effect(self.documents) if self.effect is None else self.effect,
            largest_effect(self.silent_documents) if silent is None else silent,
        )

    def leaving(self, active: Flags, silent: Flags) -> Claims:
        """Without these tiles."""
        a, s = np.flatnonzero(~active), np.flatnonzero(~silent)
        return Claims(
            self.peaks[a], self.masses[a], self.claimed[a], [self.documents[i] for i in a],
            self.alarms[s], [self.silent_documents[i] for i in s], self.density,
        )  # fmt: skip


def claims_of_rule(active: Sequence[Answer], silent: SilentTiles, density: float) -> Claims:
    """`active`: the sampled contexts and what the rule predicts of them; it claims a tile from natural.CLAIM on."""
    told = usable(active)
    return _claims(told, [is_claimed(a) for a in told], silent.claimed, silent.documents, density)


def claims_of_judge(answers: Sequence[Answer], density: float) -> Claims:
    """`answers`: yes or no to contexts, of which the sampled ones and the silent ones of the random tier count."""
    told = [a for a in usable(answers) if is_ordinary(a.context)]
    active, silent = [a for a in told if a.active], [a for a in told if not a.active]
    return _claims(active, [a.said for a in active], [a.said for a in silent], documents_of(silent), density)


def _claims(
    active: Sequence[Answer],
    claimed: Sequence[bool],
    alarms: ArrayLike,
    silent_documents: Sequence[str],
    density: float,
) -> Claims:
    return Claims(
        np.array([a.context.max_activation for a in active], dtype=np.float64),
        np.array([sum(a.context.activations) for a in active], dtype=np.float64),
        np.array(claimed, dtype=np.bool_), documents_of(active),
        np.asarray(alarms, dtype=np.bool_), list(silent_documents), density,
    )  # fmt: skip


# --- choosing --------------------------------------------------------------------------------------------------------


def choose(claims: Claims, floor: float) -> tuple[str, float | None]:
    """('ok', the threshold), or the status that says why there is none:

    nowhere                no threshold has the precision `floor`, or nothing is claimed
    no_better_than_chance  some have, but none at which the label claims what reaches it more often than the rest
    no_false_alarm         no threshold has it if a false alarm is as likely as it may well be after so few silent
                           tiles; there was none among them, so that more of them might show one
    few_contexts           fewer than FEWEST active contexts
    no_contexts            no silent ones
    """
    n, m = claims.peaks.size, claims.alarms.size
    if n < FEWEST:
        return FEW_CONTEXTS, None
    if not m:
        return NO_CONTEXTS, None
    place = _best(claims, floor)
    if place is None and _best(claims, floor, by_chance=True) is not None:
        return NO_BETTER_THAN_CHANCE, None
    if place is None:
        return (NO_FALSE_ALARM if claims.claimed.any() and not claims.alarms.any() else NOWHERE), None
    return "ok", place


def _best(claims: Claims, floor: float, by_chance: bool = False) -> float | None:
    """`by_chance`: whether a threshold counts at which the label is as precise as one that claims everything."""
    n, m, d = claims.peaks.size, claims.alarms.size, claims.density
    order = np.argsort(-claims.peaks, kind="stable")
    peaks, right = claims.peaks[order], np.cumsum(claims.claimed[order], dtype=np.int64)
    hits = d * right / n  # of all tiles, those that are claimed and reach each peak
    reach = d * np.arange(1, n + 1) / n
    alarms = int(claims.alarms.sum())
    claimed = hits[-1] + (1 - d) * _alarm_rate(alarms, m)
    last = np.append(peaks[:-1] > peaks[1:], True)  # no threshold separates equal peaks
    allowed = last & (hits >= floor * claimed) & (hits > 0)
    if not by_chance:
        allowed &= _beats_chance(claims, np.arange(1, n + 1), right, CHOOSING_Z)
    if not allowed.any():
        return None
    balance = np.where(allowed, 2 * hits / (claimed + reach), -1.0)
    best = int(np.flatnonzero(balance >= balance.max() * (1 - 1e-12))[-1])
    return 0.0 if best == n - 1 else float((peaks[best] + peaks[best + 1]) / 2)


# --- measuring -------------------------------------------------------------------------------------------------------


def held_out(choosing: Claims | None, measured: Claims, floor: float) -> Holding:
    """Chooses the threshold on one part of the corpus and measures on another. None: there is nothing to choose by."""
    status, threshold = (NO_CONTEXTS, None) if choosing is None else choose(choosing, floor)
    if threshold is None:
        return Holding(from_status=status, from_floor=floor)
    return _holding(measured, threshold, np.full(measured.peaks.size, threshold), floor, 1.0)


def cross_fitted(claims: Claims, floor: float) -> Holding:
    """Chooses the threshold by all contexts, and counts each document's at the threshold of all other documents."""
    status, threshold = choose(claims, floor)
    if threshold is None:
        return Holding(from_status=status, from_floor=floor)
    documents, silent = np.array(claims.documents), np.array(claims.silent_documents)
    thresholds = np.zeros(claims.peaks.size)
    for document in dict.fromkeys(claims.documents):
        own = documents == document
        # Without a threshold of the precision, the one that comes nearest to it: precision falls as it rises.
        thresholds[own] = _best(claims.leaving(own, silent == document), floor) or 0.0
    return _holding(claims, threshold, thresholds, floor, CHOSEN_ON)


def _holding(claims: Claims, threshold: float, thresholds: Floats, floor: float, worth: float) -> Holding:
    """Says 'ok' only where the precision on the tiles that are measured reaches the floor too, and is beyond chance;
    else 'not_confirmed' or 'no_better_than_chance', and no threshold. `thresholds`: that at which each tile is counted.
    `worth`: what a tile counts for in the interval of recall."""
    n = claims.peaks.size
    above = claims.peaks >= threshold
    precision, recall = at(claims, thresholds, worth)
    total = claims.masses.sum()
    reach = claims.peaks >= thresholds
    if _likely_precision(claims, reach) < floor:
        status = NOT_CONFIRMED
    else:
        right = (claims.claimed & reach).sum(keepdims=True)
        beats = _beats_chance(claims, reach.sum(keepdims=True), right, stats.Z95)
        status = "ok" if beats.all() else NO_BETTER_THAN_CHANCE
    return Holding(
        label_from=threshold if status == "ok" else None,
        from_status=status,
        from_share=float(above.mean()) if n else None,
        from_mass=float(claims.masses[above].sum() / total) if total > 0 else None,
        from_precision=precision.value, from_precision_low=precision.low, from_precision_high=precision.high,
        from_recall=recall.value, from_recall_low=recall.low, from_recall_high=recall.high,
        from_n=n, from_floor=floor,
    )  # fmt: skip


def at(claims: Claims, thresholds: Floats | float, worth: float = 1.0) -> tuple[stats.Estimate, stats.Estimate]:
    """(precision, recall) at a threshold, or with each active tile counted at its own."""
    reach = claims.peaks >= thresholds
    return _precision(claims, reach), _recall(claims, reach, worth)


def _recall(claims: Claims, reach: Flags, worth: float) -> stats.Estimate:
    found = claims.claimed[reach]
    effect = _effect_within(claims, found, reach) if _is_enough(claims) else None
    return share_with_effect(found, None if effect is None else effect / worth)


def _precision(claims: Claims, reach: Flags) -> stats.Estimate:
    """The product of two shares that are independent of one another: of the claimed tiles, those that are active (by
    natural prevalence), and of the claimed active tiles, those that reach the threshold. Its interval is made from
    theirs by the square-and-add rule."""
    n = claims.peaks.size + claims.alarms.size
    alarms = share_of(claims.alarms, claims.silent_documents)
    true = natural_precision(share_with_effect(claims.claimed, claims.effect), alarms, claims.density)
    if not claims.claimed.any() or alarms.value is None:
        return replace(true, low=None, high=None, n=n)
    value = _likely_precision(claims, reach)
    known = value if alarms.value > 0 else None
    reached = reach[claims.claimed]
    strong = share_with_effect(reached, _effect_within(claims, reached, claims.claimed))
    if not _is_enough(claims) or true.low is None or true.high is None or strong.low is None or strong.high is None:
        return stats.Estimate(known, None, None, n)
    share, of_all = strong.value or 0.0, _likely_precision(claims, np.ones_like(reach))
    low = max(0.0, value - math.hypot(of_all * (share - strong.low), share * (of_all - true.low)))
    high = min(1.0, value + math.hypot(of_all * (strong.high - share), share * (true.high - of_all)))
    return stats.Estimate(known, low, high, n)


def _likely_precision(claims: Claims, reach: Flags) -> float:
    """The precision, with half a false alarm where there was none; 0 where no active tile is claimed."""
    n, m, d = claims.peaks.size, claims.alarms.size, claims.density
    if not m or not claims.claimed.any():
        return 0.0
    alarms = int(claims.alarms.sum())
    hits = d * int((claims.claimed & reach).sum()) / n
    claimed = d * int(claims.claimed.sum()) / n + (1 - d) * _alarm_rate(alarms, m)
    return hits / claimed if claimed > 0 else 0.0


def _beats_chance(claims: Claims, reach: NDArray[np.int64], right: NDArray[np.int64], z: float) -> Flags:
    """Whether the label claims the tiles that reach a threshold more often than all others, weak and silent ones, so
    that the interval of the difference is above 0 (made from Wilson's intervals of `z` standard errors by the
    square-and-add rule). Both [thresholds]: `reach`, how many active tiles reach each, and `right`, how many of these
    are claimed."""
    n, m, d = claims.peaks.size, claims.alarms.size, claims.density
    active, silent = claims.noise
    weak, weak_right = n - reach, claims.claimed.sum() - right
    others = d * weak / n + 1 - d  # their share of all tiles
    rest = np.where(others > 0, others, 1.0)
    strong_share, strong_half = _share(right, reach, active, z)
    weak_share, weak_half = _share(weak_right, weak, active, z)
    alarm_share, alarm_half = _share(claims.alarms.sum(keepdims=True), np.array([m]), silent, z)
    of_weak, of_silent = d * weak / n / rest, (1 - d) / rest
    return (
        (reach > 0)
        & (others > 0)
        & (
            strong_share - of_weak * weak_share - of_silent * alarm_share
            > np.sqrt(strong_half[0] ** 2 + (of_weak * weak_half[1]) ** 2 + (of_silent * alarm_half[1]) ** 2)
        )
    )


def _share(
    hits: NDArray[np.int64], n: NDArray[np.int64], effect: float, z: float
) -> tuple[Floats, tuple[Floats, Floats]]:
    """Shares of hits, and how far Wilson's intervals reach (below, above) them; 0 without tiles."""
    counted = np.maximum(n, 1)
    share = hits / counted
    centre, half = stats.wilson_middle(share, counted / effect, z)
    return share, (np.where(n > 0, share - centre + half, 0.0), np.where(n > 0, centre + half - share, 0.0))


def _alarm_rate(alarms: int, m: int) -> float:
    return alarms / m if alarms else 0.5 / (m + 1)


def _is_enough(claims: Claims) -> bool:
    """Whether the active tiles are worth FEWEST independent ones."""
    return claims.effect is not None and claims.peaks.size / claims.effect >= FEWEST


def _effect_within(claims: Claims, hits: Flags, within: Flags) -> float | None:
    """The design effect of hits among some of the active tiles; where these are of too few documents to tell, that of
    the claims among all."""
    documents = [claims.documents[i] for i in np.flatnonzero(within)]
    effect = design_effect(hits, documents)
    return effect if effect is not None else claims.effect
