"""How consistent a judge is: what it says of the same contexts when they are asked about once more, in other batches.

For a share of all labels (score.repeat_share) `detection` and `fuzzing` ask everything twice. From both times follow

    agreement    the share of contexts with the same answer both times
    correlation  how far errors within one call go together: the mean product of two errors about different contexts of
                 one call, less that of two errors of different calls, over the variance. Which contexts stand together
                 is drawn, so what pairs of contexts have in common otherwise falls out of the difference

Both are sums over labels (table judge_repeats), from which view judge_consistency makes the estimates. Stop rules (see
stopping.py) allow for the correlation. No I/O here but the question what was measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from autointerp.records import JudgeRepeat, stable_id
from autointerp.score.score_rows import Answer, Identity, usable
from autointerp.score.scorer import MadeBy, Run
from autointerp.score.stopping import UNMEASURED
from autointerp.store.judge_repeats import JudgeConsistency

FEWEST_LABELS = 20
"""With fewer the measured correlation says less than an assumption; the view has no interval then."""


def is_repeated(run: Run, scorer: str, feature: int) -> bool:
    """Whether everything about the labels of a feature is asked twice. A function of feature and seed alone, so that it
    is known before there are labels; nothing is asked twice of a control."""
    drawn = stable_id("repeat", run.config.seed, scorer, run.job.dictionary_id, feature)
    return run.control is None and int(drawn[:8], 16) < run.config.repeat_share * 2**32


def repeated_share(run: Run, scorer: str, features: Sequence[int]) -> float:
    """The share of labels about which everything is asked twice, from the feature of each."""
    return sum(is_repeated(run, scorer, feature) for feature in features) / max(1, len(features))


def assumed_correlation(run: Run, scorer: str, by: MadeBy) -> tuple[float, str]:
    """(the correlation within a call that stop rules allow for, a line that says where it comes from): the upper end
    of what was measured of this judge, or UNMEASURED."""
    found = run.job.store.judge_consistency(run.job.dictionary_id, scorer, by.model, by.template_sha256)
    if found is None or found.n_labels < FEWEST_LABELS or found.ci_high is None:
        n = 0 if found is None else found.n_labels
        return UNMEASURED, (
            f"{scorer}: the stop rule assumes that errors within a call correlate by {UNMEASURED:g}, since it was "
            f"measured on {n} labels so far, and {FEWEST_LABELS} are needed (score.repeat_share is "
            f"{run.config.repeat_share:g})"
        )
    correlation = min(max(found.ci_high, 0.0), 1.0)
    return correlation, f"{scorer}: the stop rule allows for errors within a call that correlate by {_told(found)}"


def _told(found: JudgeConsistency) -> str:
    return f"{found.ci_high:.2f}, the upper end of {found.correlation:.2f} measured on {found.n_labels} labels"


def judge_repeat(identity: Identity, scorer: str, times: Sequence[Sequence[Sequence[Answer]]]) -> JudgeRepeat | None:
    """The row of one label, from its answers at each of two times, call by call; None where fewer than two contexts
    were answered. The label of `identity` is a real one."""
    label = identity.explanation
    assert label is not None, scorer
    calls = [call for one in times for call in one]
    told = [(i, a) for i, call in enumerate(calls) for a in usable(call)]
    if len({a.context.context_id for _, a in told}) < 2:
        return None
    call = np.array([i for i, _ in told])
    context = np.array([a.context.context_id for _, a in told])
    active = np.array([a.active for _, a in told])
    said = np.array([a.said for _, a in told])
    error = (said != active).astype(np.float64)
    for of_class in (active, ~active):
        if of_class.any():
            error[of_class] -= error[of_class].mean()
    squares = float(error @ error)
    within = _pairs(call, error)
    of_context = _pairs(context, error)
    every = (len(told) * (len(told) - 1) // 2, (float(error.sum()) ** 2 - squares) / 2)
    answers: dict[int, list[bool]] = defaultdict(list)
    for place, yes in zip(context.tolist(), said.tolist(), strict=True):
        answers[place].append(yes)
    twice = [both for both in answers.values() if len(both) == 2]
    key = (
        label.explanation_id, identity.harvest_id, scorer, identity.method, identity.model, identity.template_sha256,
        identity.seed,
    )  # fmt: skip
    return JudgeRepeat(
        repeat_id=stable_id("judge repeat", *key),
        dictionary_id=label.dictionary_id,
        feature=label.feature,
        explanation_id=label.explanation_id,
        harvest_id=identity.harvest_id,
        scorer=scorer,
        method=identity.method,
        model=identity.model,
        template_sha256=identity.template_sha256,
        seed=identity.seed,
        n_twice=len(twice),
        n_agreed=sum(one == other for one, other in twice),
        n_answers=len(told),
        square_sum=squares,
        n_within=within[0],
        within_sum=within[1],
        n_between=every[0] - within[0] - of_context[0],
        between_sum=every[1] - within[1] - of_context[1],
    )


def _pairs(group: np.ndarray, error: np.ndarray) -> tuple[int, float]:
    """(pairs of answers of one group, the sum of the products of their errors)."""
    _, place, sizes = np.unique(group, return_inverse=True, return_counts=True)
    sums = np.bincount(place, weights=error)
    return int((sizes * (sizes - 1) // 2).sum()), float((sums @ sums - error @ error) / 2)
