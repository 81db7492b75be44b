"""What a scorer is.

A scorer is an object that fits `Scorer`, and one entry in `scorers.BUILT_IN` (or an entry point of another package). It
says what it needs, what its rows are made by, and how one label becomes rows. It knows nothing of pools, transactions,
clients or progress: scoring.py runs all scorers in one loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from autointerp.ask.forecast import Estimate
from autointerp.ask.job import Job
from autointerp.ask.question import Asker
from autointerp.config import EndpointConfig, ScoreConfig
from autointerp.errors import InputError
from autointerp.llm.requests import Request
from autointerp.records import Context, Explanation, Score
from autointerp.score.controls import free_controls, replaceable, stand_ins
from autointerp.score.score_rows import Identity, Part
from autointerp.store.labels_left import LabelsLeft

Item = TypeVar("Item")
Target_contra = TypeVar("Target_contra", contravariant=True)


@dataclass(frozen=True)
class MadeBy:
    """How a score was made and who judged. One label can have one score of a scorer for each."""

    method: str
    """`scores.method`, the scoring method. Scores of different methods are never averaged or ranked together."""
    model: str
    """`scores.model`."""
    template_sha256: str
    """`scores.template_sha256`: the prompt's digest, or a substitute if there is no prompt."""


@dataclass(frozen=True)
class Run:
    """One pass of the configured scorers over one dictionary."""

    job: Job
    explainer: str
    """The explainer whose labels are scored."""
    config: ScoreConfig
    control: str | None = None
    """None for real scores, or else the control that replaces the labels (see controls.py)."""
    part: Part = "report"
    """The held-out documents that are asked about: 'report' for published scores, 'select' for choosing labels by."""

    def identity(self, target: Explanation | int, by: MadeBy) -> Identity:
        """The fields that all rows of one label share, or all rows of one feature if the scorer reads no label."""
        seed, harvest_id = self.config.seed, self.job.harvest_id
        if isinstance(target, int):
            feature = (self.job.dictionary_id, target)
            return Identity(None, harvest_id, by.method, None, by.model, by.template_sha256, seed, feature)
        return Identity(target, harvest_id, by.method, self.control, by.model, by.template_sha256, seed)


@dataclass(frozen=True)
class Needs:
    """The things that a scorer needs besides the store."""

    endpoint: EndpointConfig | None = None
    """The endpoint that it asks. Scorers of one endpoint share a client, and so its rate limits."""
    measured: bool = False
    """Whether its scores wait for `autointerp measure`, which runs the language model."""
    probes: bool = False
    """Whether the endpoint is asked first what it supports. Such a scorer works before the others, so that an endpoint
    that does not fit ends the run before anything is spent on it."""


@dataclass(frozen=True)
class Work(Generic[Item]):
    """A scorer at work on the targets (labels or features) that it has not scored yet."""

    by: MadeBy
    load: Callable[[list[int]], list[Item]]
    """Loads the items for places in the sequence of targets. It is called in a worker thread, block by block."""
    score: Callable[[Item], Awaitable[list[Score] | None]]
    """All rows of one target, the scorer's own row last: a target without that row counts as not scored. None where
    the target waits for `autointerp measure`."""
    calls: int = 1
    """About how many requests one target takes. The more it takes, the fewer targets are worked on at a time."""
    block: int = 16
    """Targets that are loaded together."""
    notes: tuple[str, ...] = ()
    """Notes for the user, one line each."""
    finish: Callable[[], None] = lambda: None
    """Called once at the end, even if the run was stopped."""


class Scorer(Protocol[Target_contra]):
    """A way to score labels (`reads_label`, targets are Explanation rows) or features as such (targets are numbers)."""

    @property
    def name(self) -> str:
        """`scores.scorer` of its own row, and its name in the configuration. The names of rows that are parts of the
        score begin with it and an underscore: "detection_sensitivity"."""

    @property
    def reads_label(self) -> bool:
        """False for a scorer of features as such. No control applies to it, and its rows have no explanation."""

    def needs(self, run: Run) -> Needs:
        """The scorer's needs, read before anything is asked. Raises InputError if the configuration lacks something."""

    def made_by(self, run: Run) -> tuple[MadeBy, ...]:
        """How its rows will be made, in several ways if the endpoint decides. A target with a row by any is done."""

    async def start(self, run: Run, targets: Sequence[Target_contra], asker: Asker | None) -> Work[Any]:
        """Begins to work on the targets. `asker` is None unless the scorer needs an endpoint."""

    def estimate(self, run: Run, targets: Sequence[Target_contra]) -> Estimate:
        """Estimates what scoring these targets (one or more) will ask of the endpoint. Nothing is sent."""


# --- helpers of scorers -----------------------------------------------------------------------------------------------


def asks_llm(scorer: str, config: ScoreConfig) -> Needs:
    """The needs of a scorer that asks [score] model. Raises InputError if no model is named."""
    need_model(config, f"scorer {scorer!r} asks an LLM")
    return Needs(config)


def need_model(config: ScoreConfig, why: str) -> None:
    if not config.model:
        raise InputError(f"{why}; set score.model (and score.base_url)")


@dataclass(frozen=True)
class Told:
    """One label, what a scorer is told in its place, and held-out contexts of its feature."""

    explanation: Explanation
    told: Explanation | None
    """The label itself, or what a control puts in its place; None for the empty label."""
    contexts: Sequence[Context] = ()

    @property
    def label(self) -> str:
        """What is told of where the feature is active; '' for the empty label."""
        return "" if self.told is None else self.told.judged_text

    @property
    def whole_label(self) -> str:
        """All that the label says, what the feature leads to included; '' for the empty label."""
        return "" if self.told is None else self.told.whole_text


class Labels:
    """Reads labels block by block, with what a scorer is told in their place and with contexts of their features."""

    def __init__(self, run: Run, labels: Sequence[Explanation], limits: dict[str, int | None] | None = None) -> None:
        """`limits`: how many contexts of each kind (top, sampled, negative) are read of the part `run.part`, None for
        all of a kind; no contexts where it is not given."""
        self._run, self._labels, self._limits = run, labels, limits
        self._told = stand_ins(run.job, run.explainer, run.config.seed, run.control, labels)

    def __call__(self, places: Sequence[int]) -> list[Told]:
        job, labels = self._run.job, [self._labels[i] for i in places]
        contexts: dict[int, list[Context]] = {}
        if self._limits is not None:
            features = list(dict.fromkeys(label.feature for label in labels))
            contexts = job.store.contexts_of(job.dictionary_id, job.harvest_id, features, self._run.part, self._limits)
        return [
            Told(label, self._told[i], contexts.get(label.feature, ())) for i, label in zip(places, labels, strict=True)
        ]


class FreeControls:
    """The controls of score.controls that a scorer which costs nothing scores along with the labels; none under a
    control."""

    def __init__(self, run: Run, labels: Sequence[Explanation]) -> None:
        self._told: dict[str, Sequence[Explanation | None]] = {}
        self._places: dict[str, dict[str, int]] = {}
        """By control, the place of each label that it can replace."""
        if run.control is None and run.part == "report" and isinstance(labels, LabelsLeft):
            for name in free_controls(run.job, run.explainer, run.config.controls):
                left = replaceable(run.job, run.explainer, name, labels)
                self._told[name] = stand_ins(run.job, run.explainer, run.config.seed, name, left)
                self._places[name] = {explanation_id: i for i, (explanation_id, _) in enumerate(left.keys)}

    def instead_of(self, label: Explanation) -> list[tuple[str, Explanation | None]]:
        """(control, what it puts in the place of the label) for each control that can."""
        places = [(name, of_label.get(label.explanation_id)) for name, of_label in self._places.items()]
        return [(name, self._told[name][place]) for name, place in places if place is not None]


def a_few(targets: Sequence[Any]) -> list[int]:
    """Places of about eight targets, evenly spaced: those that a forecast looks at."""
    return list(range(0, len(targets), max(1, len(targets) // 8)))


def estimate_of(
    requests: Sequence[Request], written: float, targets: Sequence[Any], likely: float = 1.0, often: float = 1.0
) -> Estimate:
    """The estimate for all targets, from the requests of `a_few` of them, whose replies have `written` characters.
    `often`: how often a target is asked about, on average."""
    return Estimate.of(requests, often * len(targets) / max(1, len(a_few(targets))), written, likely)


def pending(scorer: Scorer[Any], run: Run) -> LabelsLeft | list[int]:
    """The chosen labels (or features, for a scorer that reads no label) that `scorer` has not scored yet; under a
    control, those that something can replace."""
    job, ways = run.job, scorer.made_by(run)
    if not scorer.reads_label:
        done_by = [
            job.store.features_to_score(
                job.dictionary_id, scorer.name, by.method, by.model, by.template_sha256, run.part, job.selection,
                run.config.seed,
            )
            for by in ways
        ]  # fmt: skip
        return [feature for feature in done_by[0] if all(feature in left for left in done_by[1:])]
    left: LabelsLeft | None = None
    for by in ways:
        found = job.store.explanations_to_score(
            job.dictionary_id, run.explainer, scorer.name, by.method, by.model, by.template_sha256, run.part,
            job.selection, control=run.control, seed=run.config.seed,
        )  # fmt: skip
        left = found if left is None else left.among(found)
    assert left is not None, f"{scorer.name} names no way in which its rows are made"
    return replaceable(job, run.explainer, run.control, left)
