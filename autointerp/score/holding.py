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
m + 1; the precision at t then has no value, only its ends, as in natural.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.records import Holding, source_of
from autointerp.score.natural import CLAIM, NO_FALSE_ALARM, SilentTiles, is_ordinary
from autointerp.score.score_rows import Answer

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

NOWHERE = "nowhere"
NOT_CONFIRMED = "not_confirmed"
FEW_CONTEXTS = "few_contexts"
NO_CONTEXTS = "no_contexts"
FEWEST = 15
"""Active contexts from which a threshold is chosen; and as many independent ones for an interval (see `_independent`).
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

    def leaving(self, active: Flags, silent: Flags) -> Claims:
        """Without these tiles."""
        a, s = np.flatnonzero(~active), np.flatnonzero(~silent)
        return Claims(
            self.peaks[a], self.masses[a], self.claimed[a], [self.documents[i] for i in a],
            self.alarms[s], [self.silent_documents[i] for i in s], self.density,
        )  # fmt: skip


def claims_of_rule(active: Sequence[Answer], silent: SilentTiles, density: float) -> Claims:
    """`active`: the sampled contexts and what the rule predicts of them; it claims a tile from CLAIM on."""
    usable = [a for a in active if a.prediction.predicted is not None]
    claimed = [max(a.prediction.predicted or [0.0]) >= CLAIM for a in usable]
    return _claims(usable, claimed, silent.peak >= CLAIM, silent.documents, density)


def claims_of_judge(answers: Sequence[Answer], density: float) -> Claims:
    """`answers`: yes or no to contexts, of which the sampled ones and the silent ones of the random tier count."""
    usable = [a for a in answers if a.prediction.predicted is not None and is_ordinary(a.context)]
    said = [(a.prediction.predicted or [0.0])[0] > 0.5 for a in usable]
    fires = [a.prediction.truth[0] > 0.5 for a in usable]
    active = [(a, yes) for a, yes, on in zip(usable, said, fires, strict=True) if on]
    silent = [(a, yes) for a, yes, on in zip(usable, said, fires, strict=True) if not on]
    return _claims(
        [a for a, _ in active], [yes for _, yes in active], np.array([yes for _, yes in silent], dtype=np.bool_),
        [a.context.source for a, _ in silent], density,
    )  # fmt: skip


def _claims(
    active: Sequence[Answer], claimed: Sequence[bool], alarms: Flags, silent_documents: Sequence[str], density: float
) -> Claims:
    return Claims(
        np.array([a.context.max_activation for a in active], dtype=np.float64),
        np.array([sum(a.context.activations) for a in active], dtype=np.float64),
        np.array(claimed, dtype=np.bool_), [a.context.source for a in active],
        np.asarray(alarms, dtype=np.bool_), [source_of(d) for d in silent_documents], density,
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
    claimed = hits[-1] + (1 - d) * (alarms / m if alarms else 0.5 / (m + 1))
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
    """`thresholds`: that at which each tile is counted. `worth`: what a tile counts for in the interval of recall."""
    n = claims.peaks.size
    above = claims.peaks >= threshold
    precision, recall = at(claims, thresholds, worth)
    total = claims.masses.sum()
    confirmed = precision.high is None or precision.high >= floor
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
    n, found = int(reach.sum()), int((reach & claims.claimed).sum())
    if not n:
        return stats.Estimate(None, None, None, 0)
    independent = _independent(claims.documents)
    if independent < FEWEST:
        return stats.Estimate(found / n, None, None, n)
    low, high = stats.wilson_of_share(found / n, worth * n * independent / len(claims.documents))
    return stats.Estimate(found / n, low, high, n)


def _precision(claims: Claims, reach: Flags) -> stats.Estimate:
    """The product of two shares that are independent of one another: of the claimed tiles, those that are active (by
    natural prevalence), and of the claimed active tiles, those that reach the threshold. Its interval is made from
    theirs by the square-and-add rule."""
    n, m, d = claims.peaks.size, claims.alarms.size, claims.density
    active, alarms = int(claims.claimed.sum()), int(claims.alarms.sum())
    if not n or not m or not active + alarms:
        return stats.Estimate(None, None, None, n + m)
    independent = _independent(claims.documents)
    if not active:
        return stats.Estimate(0.0, None, None, n + m)
    strong = int((claims.claimed & reach).sum()) / active
    false = alarms / m if alarms else 0.5 / (m + 1)
    odds = math.log(d / (1 - d)) if 0 < d < 1 else math.inf if d else -math.inf
    balance = math.log(active / n / false)
    low_active, high_active = stats.wilson_of_share(active / n, independent)
    low_false, high_false = stats.wilson_of_share(alarms / m, _independent_silent(claims))
    below = math.hypot(math.log(active / n / max(low_active, 1e-12)), math.log(high_false / false))
    above = math.hypot(math.log(high_active * n / active), math.log(false / max(low_false, 1e-12)))
    true, least, most = (_share(odds + balance + shift) for shift in (0.0, -below, above))
    low_strong, high_strong = stats.wilson_of_share(strong, active * independent / n)
    value = strong * true
    low = max(0.0, value - math.hypot(true * (strong - low_strong), strong * (true - least)))
    high = min(1.0, value + math.hypot(true * (high_strong - strong), strong * (most - true)))
    if independent < FEWEST:
        return stats.Estimate(value if alarms else None, None, None, n + m)
    return stats.Estimate(value if alarms else None, low, high, n + m)


def _share(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0


def _independent(documents: Sequence[str]) -> float:
    """How many independent tiles tell as much as these, if those of one document are alike: as many where each is of a
    document of its own (Kish's effective size)."""
    if not documents:
        return 0.0
    counts = np.unique(np.array(documents), return_counts=True)[1].astype(np.float64)
    return float(counts.sum() ** 2 / (counts @ counts))


def _independent_silent(claims: Claims) -> float:
    """How many independent silent tiles tell as much of the share of false alarms as these: there are thousands, and
    how much those of one document are alike is seen from how the share scatters over documents."""
    m, share = claims.alarms.size, float(claims.alarms.mean())
    _, of = np.unique(np.array(claims.silent_documents), return_inverse=True)
    groups = int(of.max()) + 1
    if groups < 2 or share in (0.0, 1.0):
        return float(m)
    residual = np.bincount(of, claims.alarms - share, minlength=groups)
    variance = groups / (groups - 1) * float(residual @ residual) / m**2
    return min(float(m), share * (1 - share) / variance) if variance > 0 else float(m)
