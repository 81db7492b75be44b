"""Score rows of scorers that predict the activation of every token. No I/O here.

    simulation             pooled Pearson correlation over the tokens of N top + N sampled + N negative contexts of one
                           part: for ranking, and for comparison with other tools
    simulation_random      that correlation over the sampled and the random-tier negative ones among them, two active
                           to one silent at every density. It is no more of ordinary text than `simulation` is: that
                           is simulation_natural (see natural.py)
    simulation_calibrated  1 - sum (t - (a p + b))^2 / sum (t - mean t)^2 over the report contexts, where t is the truth
                           and p the prediction per token, and (a, b) the least-squares line fitted on `select`. Unlike
                           a correlation it asks for the right size, and may be negative

`simulation` is a variant of the score of Bills et al. 2023, not that score. They correlate over the 5 strongest of many
text records and 5 drawn uniformly from all records, 1 : 1. Here a third of the contexts is drawn from those where the
feature is active, so that weak activations count, and half of the silent third was chosen to look like the active ones.
So values of the two cannot be compared.

`n` counts the contexts that a score asked about, all kinds together (N = n / 3 for `simulation`), and `n_by_kind` those
of each kind; `n_failed` counts those without a prediction, and the value is over the others. Intervals are jackknives
over documents (see autointerp/jackknife.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from autointerp import jackknife, stats
from autointerp.records import Score
from autointerp.score.natural import is_ordinary
from autointerp.score.score_rows import Answer, Identity, Result, obstacle, series_of

SIMULATION = "simulation"
RANDOM_ONLY = "simulation_random"
CALIBRATED = "simulation_calibrated"


def correlation_rows(identity: Identity, report: Sequence[Answer], select: Sequence[Answer] | None) -> list[Score]:
    """All rows of one label, the headline last: where it stands, the others do."""
    rows = []
    if select is not None:
        rows.append(identity.row(SIMULATION, "select", select, correlation(select), keep=True))
        calibrated = calibrated_fit(select, report)
        rows.append(identity.row(CALIBRATED, "report", report, calibrated, keep=False))
    drawn = [a for a in report if is_ordinary(a.context)]
    rows.append(identity.row(RANDOM_ONLY, "report", drawn, correlation(drawn), keep=False))
    rows.append(identity.row(SIMULATION, "report", report, correlation(report), keep=True))
    return rows


def correlation(answers: Sequence[Answer]) -> Result:
    """Pooled Pearson correlation with its interval. A constant prediction of a truth that varies is worth 0, with the
    status 'constant_prediction': it is a score of the label. A constant truth says nothing of the label, so there is no
    value."""
    why = obstacle(answers)
    if why is not None:
        return Result(why)
    truth, predicted, documents = series_of(answers)
    estimate = jackknife.pooled_correlation(truth, predicted, documents)
    if estimate.value is None:
        return Result("constant_truth")
    flat = [p for context in predicted for p in context]
    return Result("constant_prediction" if stats.is_constant(flat) else "ok", estimate)


def calibrated_fit(select: Sequence[Answer], report: Sequence[Answer]) -> Result:
    """R squared on `report` of predictions calibrated on `select`."""
    why = obstacle(select) or obstacle(report)
    if why is not None:
        return Result(why)
    truth, predicted, _ = series_of(select)
    slope, intercept = stats.linear_calibration(
        [p for context in predicted for p in context], [t for context in truth for t in context]
    )
    truth, predicted, documents = series_of(report)
    calibrated = [[slope * p + intercept for p in context] for context in predicted]
    estimate = jackknife.pooled_r_squared(truth, calibrated, documents)
    return Result("constant_truth") if estimate.value is None else Result("ok", estimate)
