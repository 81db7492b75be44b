"""`intervention`: does turning the feature up make the model write what the label says (Paulo et al. 2024)?

A language model reads each continuation (see steered_texts.py) and says how likely the label is as its description: the
mean log-probability per token of the label, nats. No judge is asked; the scoring method is 'label_gain'.

Rows of one label; `n` counts beginnings. Intervals are Student's over the beginnings, of which there are few:

    intervention         the gain below less that of random features: 0 where any push to the same KL does as well
    intervention_gain    mean over the beginnings of (after steered text) - (after the usual text)
    intervention_random  the gain with text steered by random features to the same KL, their mean
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autointerp.ask.forecast import Estimate
from autointerp.ask.job import BLOCK
from autointerp.ask.prompts import PromptTemplate, load_template
from autointerp.ask.question import Asker
from autointerp.means import t_interval
from autointerp.records import Explanation, Measurement, Score
from autointerp.score.measurements import Measured, asked_and_answered, measure_task
from autointerp.score.score_rows import Identity, Result, counted_row
from autointerp.score.scorer import Labels, MadeBy, Needs, Run, Told, Work
from autointerp.score.steered_texts import pool_of, prompts_for, steering_asked
from autointerp.score.surprisal import SUBJECT_MODEL
from autointerp.tasks import LabelGain, LabelGainAnswer, Steering

INTERVENTION = "intervention"
LABEL_GAIN = "label_gain"
_PARTS = ("_gain", "_random", "")


def gain_asked(label: str, steering: Steering, template: PromptTemplate, language_model: str) -> LabelGain:
    """How likely the label is after each steered text. Whoever measures fills in the template's {text} and {label}."""
    return LabelGain(steering, template.block("gain"), " ".join(label.split()), language_model)


def intervention_rows(identity: Identity, n_prompts: int, result: dict[str, Any]) -> list[Score]:
    """All rows of one label, the headline last: where it stands, the others do. A beginning without a number for any
    of its texts is a failure."""
    answer = LabelGainAnswer.parse_result(result, n_prompts)
    gains: list[float] = []
    floors: list[float] = []
    for usual, pushed, *elsewhere in zip(answer.clean, answer.steered, *answer.random, strict=True):
        known = [value for value in elsewhere if value is not None]
        if usual is not None and pushed is not None and len(known) == len(elsewhere):
            gains.append(pushed - usual)
            floors += [sum(known) / len(known) - usual] if known else []
    failed = n_prompts - len(gains)
    if 2 * failed > n_prompts or not gains:
        return failed_rows(identity, "no_tokens", "no log-probability of the label", n_prompts, failed)
    lifts = [gain - floor for gain, floor in zip(gains, floors, strict=True)] if floors else []
    return [
        counted_row(identity, INTERVENTION + part, _mean(values), n_prompts, failed)
        for part, values in zip(_PARTS, (gains, floors, lifts), strict=True)
    ]


def _mean(values: list[float]) -> Result:
    return Result("ok", t_interval(values)) if values else Result("no_random_features")


def failed_rows(identity: Identity, status: str, error: str | None, n: int = 0, n_failed: int = 0) -> list[Score]:
    """The rows of a label that cannot be scored."""
    return [counted_row(identity, INTERVENTION + part, Result(status), n, n_failed, error) for part in _PARTS]


@dataclass(frozen=True)
class InterventionScorer:
    name: str = INTERVENTION
    reads_label: bool = True

    def needs(self, run: Run) -> Needs:
        return Needs(measured=True)

    def made_by(self, run: Run) -> tuple[MadeBy, ...]:
        template = load_template(f"score/{INTERVENTION}", run.job.prompts)
        return (MadeBy(LABEL_GAIN, run.config.language_model or SUBJECT_MODEL, template.sha256),)

    async def start(self, run: Run, targets: Sequence[Explanation], asker: Asker | None) -> Work[Measured[list[str]]]:
        (by,) = self.made_by(run)
        template = load_template(f"score/{INTERVENTION}", run.job.prompts)
        labels, pool = Labels(run, targets), pool_of(run.job, run.config.seed)

        def load(places: list[int]) -> list[Measured[list[str]]]:
            return asked_and_answered(run.job, [item(told) for told in labels(places)])

        def item(told: Told) -> Measured[list[str]]:
            prompts = prompts_for(pool, told.explanation.feature)
            if not prompts:
                return Measured(told, prompts, measurement=Measurement("", "no_contexts"))
            if not told.whole_label.strip():
                return Measured(told, prompts, measurement=Measurement("", "empty_label"))
            steering = steering_asked(prompts, run.config)
            asked = gain_asked(told.whole_label, steering, template, run.config.language_model)
            return Measured(told, prompts, measure_task(told.explanation, asked))

        async def score(item: Measured[list[str]]) -> list[Score] | None:
            found, identity = item.measurement, run.identity(item.told.explanation, by)
            if found is None:
                return None
            if found.status != "ok":
                return failed_rows(identity, found.status, found.error)
            return intervention_rows(identity, len(item.about), found.result or {})

        return Work(by, load, score, block=BLOCK)

    def estimate(self, run: Run, targets: Sequence[Explanation]) -> Estimate:
        return Estimate()


INTERVENTION_SCORER = InterventionScorer()
