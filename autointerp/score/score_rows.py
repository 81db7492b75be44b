"""From predictions to score rows. No I/O here.

    simulation             pooled Pearson correlation over the tokens of N top + N sampled + N negative contexts of one
                           part, with a bootstrap over documents: the headline score on `report`
    simulation_random      the same over the sampled and the random-tier negative ones among them: what the label says
                           of ordinary text, without the strongest contexts
    simulation_calibrated  1 - sum (t - (a p + b))^2 / sum (t - mean t)^2 over the report contexts, where t is the truth
                           and p the prediction per token, and (a, b) the least-squares line fitted on `select`. Unlike
                           a correlation it asks for the right size, and may be negative

`n` counts the contexts a score asked about, all kinds together (N = n / 3 for `simulation`), `n_failed` those without a
prediction; the value is over the others. It is None with a status where it is not defined ('constant_truth',
'constant_prediction', 'no_contexts'), where an endpoint gave up on a context ('gave_up': asked again by the next run),
and where more than half of the contexts failed (the commonest of their statuses).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autointerp import stats
from autointerp.records import Context, Explanation, Prediction, Score, stable_id
from autointerp.score.simulation import is_random_only

SIMULATION = "simulation"
RANDOM_ONLY = "simulation_random"
CALIBRATED = "simulation_calibrated"
SIMULATION_SCORERS = (SIMULATION, RANDOM_ONLY, CALIBRATED)
Part = Literal["select", "report"]


@dataclass(frozen=True)
class Answer:
    """One context and what was predicted of it."""

    context: Context
    prediction: Prediction
    error: str | None = None


@dataclass(frozen=True)
class Identity:
    """What all score rows of one label and run share, or of one feature where no label is scored."""

    explanation: Explanation | None
    """None: of a label-free scorer; `feature` then says whose score it is."""
    harvest_id: int
    method: str
    control: str | None
    model: str
    template_sha256: str
    seed: int
    feature: tuple[int, int] | None = None
    """(dictionary_id, feature); needed only where there is no explanation."""

    def row(self, scorer: str, part: Part, answers: Sequence[Answer], result: Result, keep: bool) -> Score:
        """`keep`: whether the predictions go with this row (once per context is enough)."""
        failed = [a for a in answers if a.prediction.status != "ok"]
        label = self.explanation
        if label is not None:
            dictionary_id, feature = label.dictionary_id, label.feature
        elif self.feature is not None:
            dictionary_id, feature = self.feature
        else:
            raise ValueError("a score of neither a label nor a feature")
        owner = self.feature if label is None else label.explanation_id
        key = (
            owner, self.harvest_id, scorer, self.method, self.control, part, self.model,
            self.template_sha256, self.seed,
        )  # fmt: skip
        return Score(
            score_id=stable_id(*key),
            dictionary_id=dictionary_id,
            feature=feature,
            explanation_id=None if label is None else label.explanation_id,
            harvest_id=self.harvest_id,
            scorer=scorer,
            method=self.method,
            control=self.control,
            part=part,
            model=self.model,
            template_sha256=self.template_sha256,
            seed=self.seed,
            value=result.estimate.value,
            ci_low=result.estimate.low,
            ci_high=result.estimate.high,
            n=len(answers),
            n_failed=len(failed),
            status=result.status,
            error=failed[0].error if failed else None,
            predictions=[a.prediction for a in answers] if keep else [],
        )


@dataclass(frozen=True)
class Result:
    status: str
    estimate: stats.Estimate = stats.Estimate(None, None, None, 0)


def score_rows(
    identity: Identity, report: Sequence[Answer], select: Sequence[Answer] | None, n_boot: int
) -> list[Score]:
    """All rows of one label, the headline last: where it stands, the others do."""
    seed = identity.seed
    rows = []
    if select is not None:
        rows.append(identity.row(SIMULATION, "select", select, correlation(select, n_boot, seed), keep=True))
        calibrated = calibrated_fit(select, report, n_boot, seed)
        rows.append(identity.row(CALIBRATED, "report", report, calibrated, keep=False))
    ordinary = [a for a in report if is_random_only(a.context)]
    rows.append(identity.row(RANDOM_ONLY, "report", ordinary, correlation(ordinary, n_boot, seed), keep=False))
    rows.append(identity.row(SIMULATION, "report", report, correlation(report, n_boot, seed), keep=True))
    return rows


def obstacle(answers: Sequence[Answer]) -> str | None:
    """The status of a score that cannot be taken, or None."""
    if not answers:
        return "no_contexts"
    failed = Counter(a.prediction.status for a in answers if a.prediction.status != "ok")
    if failed["gave_up"]:
        return "gave_up"
    if 2 * failed.total() > len(answers):
        return failed.most_common(1)[0][0]
    return None


def _series(answers: Sequence[Answer]) -> tuple[list[list[float]], list[list[float]], list[str]]:
    usable = [(a.prediction.truth, a.prediction.predicted, a.context.document) for a in answers]
    good = [(t, p, d) for t, p, d in usable if p is not None]
    return [t for t, _, _ in good], [p for _, p, _ in good], [d for _, _, d in good]


def correlation(answers: Sequence[Answer], n_boot: int, seed: int) -> Result:
    """Pooled Pearson correlation with its bootstrap interval."""
    why = obstacle(answers)
    if why is not None:
        return Result(why)
    truth, predicted, documents = _series(answers)
    estimate = stats.pooled_correlation(truth, predicted, documents, n_boot, seed)
    if estimate.value is not None:
        return Result("ok", estimate)
    flat = [t for context in truth for t in context]
    return Result("constant_truth" if stats.is_constant(flat) else "constant_prediction")


def calibrated_fit(select: Sequence[Answer], report: Sequence[Answer], n_boot: int, seed: int) -> Result:
    """R squared on `report` of predictions calibrated on `select`."""
    why = obstacle(select) or obstacle(report)
    if why is not None:
        return Result(why)
    truth, predicted, _ = _series(select)
    slope, intercept = stats.linear_calibration(
        [p for context in predicted for p in context], [t for context in truth for t in context]
    )
    truth, predicted, documents = _series(report)
    calibrated = [[slope * p + intercept for p in context] for context in predicted]
    estimate = stats.pooled_r_squared(truth, calibrated, documents, n_boot, seed)
    return Result("constant_truth") if estimate.value is None else Result("ok", estimate)
