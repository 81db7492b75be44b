"""Score rows of scorers that give every context one number, the larger the better the label fits it. No I/O here.

    embedding                AUROC of the activating against the random silent contexts, ties counted half. The other
                             tiers were chosen to look active, and how many of them there are hangs on the feature
    embedding_random         AUROC against the silent ones of one tier (random, same_token, neighbour); only tiers that
                             were asked about

`n` and `n_failed` count contexts. The interval counts documents (see jackknife.pooled_auroc). For every
context the truth is kept (1 activating, 0 silent) and the number, as the prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

from autointerp import jackknife
from autointerp.records import Prediction, Score
from autointerp.score.detection_questions import TIERS, Example, counts
from autointerp.score.score_rows import Answer, Identity, Result, obstacle


def number_answer(example: Example, said: float | None, status: str = "ok", error: str | None = None) -> Answer:
    """The Answer for the number given to one context. Without a number, `said` is None and `status` says why."""
    predicted = None if said is None else [said]
    truth = [float(example.active)]
    return Answer(example.context, Prediction(example.context.context_id, truth, predicted, status), error)


def auroc_rows(identity: Identity, scorer: str, answers: Sequence[Answer]) -> list[Score]:
    """All rows of one label, the headline last: where it stands, the others do."""
    active = [a for a in answers if a.active]
    silent = [a for a in answers if not a.active]
    rows = []
    for tier in TIERS:
        of_tier = [a for a in silent if a.context.tier == tier]
        if of_tier:
            part = [*active, *of_tier]
            result = auroc_result(part)
            rows.append(identity.row(f"{scorer}_{tier}", "report", part, result, keep=False))
    return [*rows, identity.row(scorer, "report", answers, _headline(answers), keep=True)]


def _headline(answers: Sequence[Answer]) -> Result:
    why = obstacle(answers)
    return auroc_result([a for a in answers if counts(a.context)]) if why is None else Result(why)


def auroc_result(answers: Sequence[Answer]) -> Result:
    """AUROC; 'constant_truth' where only contexts of one class got a number."""
    why = obstacle(answers)
    if why is not None:
        return Result(why)
    known = [(a.active, a.prediction.predicted, a.context.source) for a in answers]
    of_class = {
        side: [(p[0], document) for truth, p, document in known if p is not None and truth == side]
        for side in (True, False)
    }
    estimate = jackknife.pooled_auroc(
        [p for p, _ in of_class[True]], [p for p, _ in of_class[False]], [d for _, d in of_class[True]],
        [d for _, d in of_class[False]],
    )  # fmt: skip
    return Result("constant_truth") if estimate.value is None else Result("ok", estimate)
