"""How long the run on the real model will take on this machine, from what was measured on it a moment ago.

The model's passes and the training steps are measured. What comes after them is Python and SQL for every feature. Its
CPU seconds below were measured once, on the machine of docs/measured.md, and count as many times as this machine takes
longer for a fixed piece of Python; so that part is the least certain.
"""

from __future__ import annotations

from dataclasses import dataclass

from autointerp.config import EvidenceConfig, TrainConfig

HARVEST_WORK = 1.4
"""Time of a harvest as a multiple of the model's passes over its text: encoding, evidence, and windows read again."""
EVIDENCE_TOKENS = EvidenceConfig().relation_tokens
"""Tokens that the evidence methods read once more."""
MERGE_S, EVIDENCE_S = 0.006, 0.006
"""Seconds for each feature."""
OUTPUT_S = 20.0
"""Seconds in which `output_statistic` draws its random directions."""
LABEL_S, SCORE_S = 0.055, 0.09
"""Seconds for each label."""
START_S = 15.0
"""Loading the model twice and opening the store."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured on this machine."""

    tokens_per_s: float
    """Tokens of the model's passes that end at the last hookpoint."""
    steps_per_s: float
    """Training steps of one dictionary."""
    slowness: float = 1.0
    """How many times as long a fixed piece of Python takes as on the machine where the constants were measured."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a run has to do."""

    train_tokens: int
    corpus_tokens: int
    features: int
    dictionaries: int = 1
    batch_size: int = TrainConfig().batch_size
    passes: int | None = None
    """Tokens that the model reads in training, where activations are kept; None: one for each vector."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds of the stages of a run."""

    start: float
    train: float
    harvest: float
    evidence: float
    first_labels: float
    other_labels: float

    @property
    def until_first_labels(self) -> float:
        return self.start + self.train + self.harvest + self.evidence + self.first_labels

    @property
    def whole(self) -> float:
        return self.until_first_labels + self.other_labels


def forecast(speed: Speed, sizes: Sizes, first: int) -> Forecast:
    """The seconds that a run of these sizes takes, of which `first` features are labelled before the others."""
    n = sizes.features * sizes.dictionaries
    read = sizes.train_tokens if sizes.passes is None else sizes.passes
    steps = sizes.dictionaries * (sizes.train_tokens // sizes.batch_size)
    slow, of_label = speed.slowness, speed.slowness * (LABEL_S + SCORE_S)
    return Forecast(
        start=slow * START_S,
        train=read / speed.tokens_per_s + steps / speed.steps_per_s,
        harvest=HARVEST_WORK * sizes.corpus_tokens / speed.tokens_per_s + slow * MERGE_S * n,
        evidence=sizes.dictionaries * (EVIDENCE_TOKENS / speed.tokens_per_s + slow * OUTPUT_S) + slow * EVIDENCE_S * n,
        first_labels=of_label * min(first, n),
        other_labels=of_label * max(0, n - first),
    )


def largest_that_fits(speed: Speed, choices: tuple[Sizes, ...], first: int, seconds: float) -> Sizes:
    """The first of `choices`, which begin with the largest, whose first labels come within `seconds`; else the last."""
    fitting = (sizes for sizes in choices if forecast(speed, sizes, first).until_first_labels <= seconds)
    return next(fitting, choices[-1])


def span(seconds: float) -> str:
    """`45 seconds`, `9 minutes`, `2.5 hours`: no more digits than a forecast is worth."""
    if seconds < 90:
        return f"{max(5, round(seconds / 5) * 5)} seconds"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"
