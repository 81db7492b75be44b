"""Rows of the table `scores`: whose they are, what they were made by, and when there is no value. No I/O here.

A value is None with a status where it is not defined ('constant_truth', 'no_contexts'), where an endpoint gave up on a
context ('gave_up': the next run asks again), and where more than half of the contexts failed (the commonest of their
statuses). A simulation that predicts the same everywhere has the value 0, and says so in its status
('constant_prediction'). What `n` and `n_failed` count is said by every scorer; mostly it is contexts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autointerp import stats
from autointerp.records import Context, Explanation, Prediction, Score, stable_id

Part = Literal["select", "report"]
_KEYS_OF_CONTROLS = {"shuffled": "shuffled within a tenth of the densities"}
"""What stands for a control in the keys of its rows, where its stand-ins were chosen in another way before: so that the
rows from then, which migration 008 renames, are not taken for the new ones."""


@dataclass(frozen=True)
class Answer:
    """One context and what was predicted of it."""

    context: Context
    prediction: Prediction
    error: str | None = None

    @property
    def active(self) -> bool:
        """Where the question is whether the feature is active in the context: the right answer."""
        return self.prediction.truth[0] > 0.5

    @property
    def said(self) -> bool:
        """The answer that was given to that question; False where none was."""
        return self.prediction.predicted is not None and self.prediction.predicted[0] > 0.5


@dataclass(frozen=True)
class Identity:
    """What all score rows of one label and run share, or of one feature where no label is scored."""

    explanation: Explanation | None
    """The scored label; None for a label-free scorer, for which `feature` says whose score it is."""
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
        documents = {a.context.source for a in answers if a.prediction.status == "ok"}
        kinds: Counter[str] = Counter(a.context.tier or a.context.kind for a in answers)
        influences = result.estimate.influences
        label = self.explanation
        if label is not None:
            dictionary_id, feature = label.dictionary_id, label.feature
        elif self.feature is not None:
            dictionary_id, feature = self.feature
        else:
            raise ValueError("a score of neither a label nor a feature")
        owner = self.feature if label is None else label.explanation_id
        key = (
            owner, self.harvest_id, scorer, self.method, _KEYS_OF_CONTROLS.get(self.control or "", self.control), part,
            self.model, self.template_sha256, self.seed,
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
            n_documents=len(documents) if answers else None,
            n_by_kind=dict(kinds) if answers else None,
            documents=None if influences is None else [str(document) for document in influences],
            influences=None if influences is None else list(influences.values()),
            predictions=[a.prediction for a in answers] if keep else [],
        )


@dataclass(frozen=True)
class Result:
    """A value with its interval, or the status that says why there is no value."""

    status: str
    estimate: stats.Estimate = stats.Estimate(None, None, None, 0)


def usable(answers: Iterable[Answer]) -> list[Answer]:
    """The contexts of which something was predicted."""
    return [a for a in answers if a.prediction.predicted is not None]


def documents_of(answers: Iterable[Answer]) -> list[str]:
    """What each context's document was cut from (see records.source_of)."""
    return [a.context.source for a in answers]


def series_of(answers: Iterable[Answer]) -> tuple[list[list[float]], list[list[float]], list[str]]:
    """(the truth, the prediction, the document) of each context of which something was predicted."""
    told = usable(answers)
    return [a.prediction.truth for a in told], [a.prediction.predicted or [] for a in told], documents_of(told)


def obstacle(answers: Sequence[Answer]) -> str | None:
    """The status of a score over these answers that cannot be taken, or None."""
    return obstacle_of([a.prediction.status for a in answers]) if answers else "no_contexts"


def obstacle_of(statuses: Sequence[str]) -> str | None:
    """The status of a score over answers of these statuses that cannot be taken, or None: 'gave_up' where an endpoint
    gave up on one (the next run asks again), or the commonest failure where more than half failed."""
    failed = Counter(status for status in statuses if status != "ok")
    if failed["gave_up"]:
        return "gave_up"
    return failed.most_common(1)[0][0] if 2 * failed.total() > len(statuses) else None


def counted_row(
    identity: Identity, scorer: str, result: Result, n: int, n_failed: int = 0, error: str | None = None
) -> Score:
    """A row without predictions, whose `n` counts something other than contexts."""
    return replace(identity.row(scorer, "report", [], result, keep=False), n=n, n_failed=n_failed, error=error)
