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
from autointerp.clustered_shares import design_effect, share_of, share_with_effect
from autointerp.prevalence import natural_precision
from autointerp.records import Holding
from autointerp.score.natural import NO_FALSE_ALARM, SilentTiles, is_claimed, is_ordinary
from autointerp.score.score_rows import Answer, documents_of, usable

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

NOWHERE = "nowhere"
NOT_CONFIRMED = "not_confirmed"
FEW_CONTEXTS = "few_contexts"
NO_CONTEXTS = "no_contexts"
FEWEST = 15
"""Active contexts from which a threshold is chosen; and as many independent ones for an interval (see `_is_enough`).
From here on 93 to 97 % of intervals held the truth, averaged over simulated labels."""
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

    nowhere         no threshold has the precision `floor`, or nothing is claimed
    no_false_alarm  nor is there one if a false alarm is as likely as it may well be after so few silent tiles; there
                    was none among them, so that more of them might show one
    few_contexts    fewer than FEWEST active contexts
    no_contexts     no silent ones
    """
    n, m = claims.peaks.size, claims.alarms.size
    if n < FEWEST:
        return FEW_CONTEXTS, None
    if not m:
        return NO_CONTEXTS, None
    place = _best(claims, floor)
    if place is None:
        return (NO_FALSE_ALARM if claims.claimed.any() and not claims.alarms.any() else NOWHERE), None
    return "ok", place


def _best(claims: Claims, floor: float) -> float | None:
    n, m, d = claims.peaks.size, claims.alarms.size, claims.density
    order = np.argsort(-claims.peaks, kind="stable")
    peaks = claims.peaks[order]
    hits = d * np.cumsum(claims.claimed[order]) / n  # of all tiles, those that are claimed and reach each peak
    reach = d * np.arange(1, n + 1) / n
    alarms = int(claims.alarms.sum())
    claimed = hits[-1] + (1 - d) * _alarm_rate(alarms, m)
    last = np.append(peaks[:-1] > peaks[1:], True)  # no threshold separates equal peaks
    allowed = last & (hits >= floor * claimed) & (hits > 0)
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
    """Says 'ok' only where the precision on the tiles that are measured reaches the floor too; else 'not_confirmed',
    and no threshold. `thresholds`: that at which each tile is counted. `worth`: what a tile counts for in the interval
    of recall."""
    n = claims.peaks.size
    above = claims.peaks >= threshold
    precision, recall = at(claims, thresholds, worth)
    total = claims.masses.sum()
    confirmed = _likely_precision(claims, claims.peaks >= thresholds) >= floor
    return Holding(
        label_from=threshold if confirmed else None,
        from_status="ok" if confirmed else NOT_CONFIRMED,
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
