"""`intervention`: does turning the feature up make the model write what the label says (Paulo et al. 2024)?

A language model reads each continuation (see steering.py) and says how likely the label is as its description: the mean
log-probability per token of the label, nats. No judge is asked; the method is 'label_gain'. No I/O here.

Rows of one label; `n` counts beginnings. Intervals are Student's over the beginnings, of which there are few:

    intervention         the gain below less that of random features: 0 where any push to the same KL does as well
    intervention_gain    mean over the beginnings of (after steered text) - (after the usual text)
    intervention_random  the same with text steered by random features to the same KL, their mean
"""

from __future__ import annotations

from typing import Any

from autointerp import stats
from autointerp.ask.prompts import PromptTemplate
from autointerp.records import Score
from autointerp.score.measured_tasks import counted_row, listed, number
from autointerp.score.score_rows import Identity, Result

INTERVENTION = "intervention"
LABEL_GAIN = "label_gain"
_PARTS = ("_gain", "_random", "")


def gain_payload(label: str, steering: dict[str, Any], template: PromptTemplate, language_model: str) -> dict[str, Any]:
    """Of a task of kind `label_gain`. The template's {text} and {label} are for the measurer to fill in."""
    return {
        "steering": steering,
        "template": template.block("gain"),
        "label": " ".join(label.split()),
        "language_model": language_model,
    }


def intervention_rows(identity: Identity, n_prompts: int, result: dict[str, Any]) -> list[Score]:
    """All rows of one label, the headline last: where it stands, the others do. A beginning without a number for any
    of its texts is a failure."""
    clean = [number(value) for value in listed(result, "clean", n_prompts)]
    steered = [number(value) for value in listed(result, "steered", n_prompts)]
    others = [[number(v) for v in listed({"random": one}, "random", n_prompts)] for one in result.get("random", [])]
    gains: list[float] = []
    floors: list[float] = []
    for usual, pushed, *elsewhere in zip(clean, steered, *others, strict=True):
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
    return Result("ok", stats.t_interval(values)) if values else Result("no_random_features")


def failed_rows(identity: Identity, status: str, error: str | None, n: int = 0, n_failed: int = 0) -> list[Score]:
    """The same rows where there is nothing to score."""
    return [counted_row(identity, INTERVENTION + part, Result(status), n, n_failed, error) for part in _PARTS]
