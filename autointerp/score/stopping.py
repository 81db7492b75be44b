"""When a label has been asked about enough by `detection` or `fuzzing`. No I/O here; detection_fuzzing.py asks.

A label's requests are asked in rounds of ROUND. After each round ("look") it is left alone

    once its score's 95 % interval is narrower than score.stop_width, or
    once its score is clearly above or below score.stop_threshold.

Looking several times and stopping at the first convenient answer makes errors more likely than they are at a number of
contexts fixed beforehand. So the second rule is an exact group-sequential test. Of the 2.5 % that each side may err, a
look may spend what falls to it and to the looks before it in equal shares (Bonferroni) and was not spent yet; by the
binomial distributions of both classes, whatever sensitivity and specificity make up a score on the threshold. A label
whose true score lies there is called above or below it in at most 5 % of cases, all looks together. The first rule
looks at the width alone, which says little about the side.

Answers of one call are not independent: a judge that misreads a label does so for a whole call. With the correlation
rho of errors within a call the score varies more, by the factor 1 + rho x (sum over pairs of one call) / (sum over
answers), each weighted by what it adds to the score. The boundary is moved outwards by the root of that factor in
standard errors, and so is the width. rho is measured by asking again (see judge_consistency.py); until it is known,
UNMEASURED is taken. Contexts of the tiers that the score does not count are left out here too.

The score rows have a method of their own, 'answers_ordinary_sequential', and `n` is what was asked. With
stop_threshold their intervals have the level of one look, 1 - 0.05 / looks, so that they hold the truth as often as
they should wherever the asking stopped; they may therefore be wider than stop_width.

Balance: every prefix of the contexts in the order of asking holds as many activating as silent ones while there are
both, and of each decile and tier about its share. Inside a round the order is drawn, so that how many of one
request are activating stays left to chance, as it is where no rule is set.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from statistics import NormalDist

from autointerp import stats
from autointerp.config import ScoreConfig
from autointerp.records import stable_id
from autointerp.score.detection_questions import ANSWERS, Example, batches, counts, deal, even_runs
from autointerp.score.score_rows import Answer, usable

ANSWERS_SEQUENTIAL = "answers_ordinary_sequential"
ROUND = 2
"""Requests of one round. One more look for every request would save little and leave each look less to spend."""
SIDE_ERROR = 0.025
"""Chance to call a score that lies on the threshold above it, all looks together; and below it."""
UNMEASURED = 0.1
"""The correlation of a judge's errors within a call that is assumed before it was measured. It costs some calls; where
independence is assumed and the correlation is .3, one label in eight on the threshold is called wrongly."""


def stops_early(config: ScoreConfig) -> bool:
    return config.stop_width is not None or config.stop_threshold is not None


def method_of(config: ScoreConfig) -> str:
    """What `scores.method` says of the choice scorers; the two are never ranked together."""
    return ANSWERS_SEQUENTIAL if stops_early(config) else ANSWERS


# --- what is asked when ----------------------------------------------------------------------------------------------


def plan(
    scorer: str, examples: Sequence[Example], config: ScoreConfig, dictionary_id: int
) -> list[list[list[Example]]]:
    """Rounds of requests of examples: without a stop rule one round, the requests of `batches` as they are.

    A function of the examples and the seed alone: all labels of a feature get the same questions in the same order.
    """
    size = config.examples_per_call
    if not stops_early(config):
        return [batches(examples, size)]
    if not examples:
        return []
    draw = random.Random(stable_id(config.seed, "rounds", scorer, dictionary_id, examples[0].context.feature))
    requests = even_runs(in_balance(examples, draw), size)
    rounds = []
    for start in range(0, len(requests), ROUND):
        some = requests[start : start + ROUND]
        rounds.append(deal(list(chain.from_iterable(some)), [len(request) for request in some], draw))
    return rounds


def in_balance(examples: Sequence[Example], draw: random.Random) -> list[Example]:
    """The examples so that every prefix is balanced, see above."""
    active = _spread([e for e in examples if e.active], lambda e: (e.context.kind, e.context.decile), draw)
    silent = _spread([e for e in examples if not e.active], lambda e: e.context.tier or "", draw)
    pairs = [draw.sample(pair, 2) for pair in zip_longest(active, silent)]
    return [example for pair in pairs for example in pair if example is not None]


def _spread(examples: Sequence[Example], stratum: Callable[[Example], Hashable], draw: random.Random) -> list[Example]:
    """The examples in an order whose prefixes hold about the same share of every stratum."""
    strata: dict[Hashable, list[Example]] = defaultdict(list)
    for example in examples:
        strata[stratum(example)].append(example)
    placed = []
    for key in sorted(strata, key=str):
        members = draw.sample(strata[key], len(strata[key]))
        # Systematic sampling: each stratum starts at a place of its own, so none is first more often than another.
        start = draw.random()
        placed += [((i + start) / len(members), member) for i, member in enumerate(members)]
    return [member for _, member in sorted(placed, key=lambda p: p[0])]


# --- whether it is enough --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """Answers so far that count in the score, failed ones left out."""

    found: int
    """Activating contexts that the judge said yes to, of `active`."""
    active: int
    spared: int
    """Silent contexts that the judge said no to, of `silent`."""
    silent: int
    shared: float = 0.0
    """By how much the variance of the score would grow, as a share of it, if errors within a call went together
    fully."""

    @classmethod
    def at(cls, calls: Sequence[Sequence[Answer]]) -> Look:
        """From the answers of each call."""
        return cls.of([[(a.active, a.said) for a in usable(call) if counts(a.context)] for call in calls])

    @classmethod
    def of(cls, calls: Sequence[Sequence[tuple[bool, bool]]]) -> Look:
        """From (whether the context is activating, whether the judge said so) of each call's answers."""
        every = [one for call in calls for one in call]
        active, silent = sum(truth for truth, _ in every), sum(not truth for truth, _ in every)
        found = sum(truth and said for truth, said in every)
        spared = sum(not truth and not said for truth, said in every)
        if not active or not silent:
            return cls(found, active, spared, silent)
        weights = [[1 / active if truth else 1 / silent for truth, _ in call] for call in calls]
        alone = sum(w * w for call in weights for w in call)
        return cls(found, active, spared, silent, sum(sum(call) ** 2 for call in weights) / alone - 1)


def decide(
    rounds: Sequence[Sequence[Sequence[Answer]]], planned: int, config: ScoreConfig, correlation: float = 0.0
) -> bool:
    """Whether to ask no further after these rounds (of calls, of answers) of `planned`. `correlation`: that of the
    judge's errors within a call."""
    so_far: list[Sequence[Answer]] = []
    looks = []
    for one in rounds:
        so_far += one
        looks.append(Look.at(so_far))
    if any(a.prediction.status == "gave_up" for call in so_far for a in call) and stops_early(config):
        return True  # the next run asks again, from here
    return is_enough(looks, planned, config.stop_width, config.stop_threshold, correlation)


def is_enough(
    looks: Sequence[Look], planned: int, width: float | None, threshold: float | None, correlation: float = 0.0
) -> bool:
    """`decide`, on counts."""
    if width is not None and looks and _width(looks[-1], correlation) < width:
        return True
    return threshold is not None and side(looks, planned, threshold, correlation) != 0


def _width(look: Look, correlation: float) -> float:
    z = stats.Z95 * math.sqrt(_inflation(look, correlation))
    found = stats.balanced_accuracy_interval(look.found, look.active, look.spared, look.silent, z)
    return math.inf if found.low is None or found.high is None else found.high - found.low


def _inflation(look: Look, correlation: float) -> float:
    """The variance of the score, relative to that of independent answers."""
    return 1 + max(0.0, correlation) * look.shared


def side(looks: Sequence[Look], planned: int, threshold: float, correlation: float = 0.0) -> int:
    """1 where the last of the looks shows the score to be above the threshold, -1 below, 0 where neither is clear."""
    allowed, above, below = 0.0, 0.0, 0.0
    verdict = 0
    for look in looks:
        allowed += SIDE_ERROR / planned
        if not look.active or not look.silent:
            continue
        inflation = round(_inflation(look, correlation), 2)
        tails = stats.balanced_accuracy_tails(look.active, look.silent, threshold, inflation)
        at_least, at_most = tails.of(look.found, look.spared)
        verdict = 1 if at_least <= allowed - above else -1 if at_most <= allowed - below else 0
        # Only what the boundary can really use up is spent: counts are few, and tails come in steps.
        above += tails.largest_at_least(allowed - above)
        below += tails.largest_at_most(allowed - below)
    return verdict


def interval_z(config: ScoreConfig, planned: int) -> float:
    """How many standard errors an interval reaches on either side."""
    if config.stop_threshold is None:
        return stats.Z95
    return NormalDist().inv_cdf(1 - SIDE_ERROR / max(1, planned))


# --- forecasts -------------------------------------------------------------------------------------------------------


_ASSUMED = (0.55, 0.65, 0.75, 0.85, 0.95)
"""Scores assumed for labels if no scores are known yet: anything from a coin to near certainty."""
_FEW = 10
"""Earlier scores that say more than an assumption."""
_DRAWS = 5


def likely_share(
    plans: Sequence[Sequence[Sequence[Sequence[Example]]]], config: ScoreConfig, earlier: Sequence[float] = (),
    correlation: float = 0.0,
) -> float:  # fmt: skip
    """Share of the planned requests that would be sent before the rules end the asking, if labels do as well as
    `earlier` scores: answers are drawn, each right with the probability of a score."""
    scores = list(earlier) if len(earlier) >= _FEW else list(_ASSUMED)
    draw = random.Random("likely share")
    sent = planned = 0
    for rounds in plans:
        for _ in range(_DRAWS):
            right = draw.choice(scores)
            calls: list[list[tuple[bool, bool]]] = []
            looks: list[Look] = []
            for asked in rounds:
                sent += len(asked)
                calls += [
                    [(e.active, e.active == (draw.random() < right)) for e in request if counts(e.context)]
                    for request in asked
                ]
                looks.append(Look.of(calls))
                if is_enough(looks, len(rounds), config.stop_width, config.stop_threshold, correlation):
                    break
            planned += sum(map(len, rounds))
    return sent / planned if planned else 1.0
