"""Scores of candidate labels on the select part, for explainers that choose or correct by them.

They are ordinary score rows of part 'select' by detection, fuzzing or simulation, asked of the [score] endpoint; the
report part is neither read nor asked about here, so that a score published later is not the one selected for. Labels
of one feature are asked about on the same contexts, all of them: sequential stopping is switched off.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from autointerp.ask.forecast import Estimate
from autointerp.ask.job import Job, Outcome
from autointerp.ask.question import Asker
from autointerp.ask.scale import TOP
from autointerp.config import ScoreConfig
from autointerp.errors import InputError
from autointerp.llm.client import LlmClient
from autointerp.records import Context, Explanation, Score
from autointerp.score.correlation import SIMULATION, correlation
from autointerp.score.detection_questions import TIERS, balanced
from autointerp.score.score_rows import Answer
from autointerp.score.scorer import MadeBy, Run, Scorer
from autointerp.score.scorers import scorer_named
from autointerp.score.scoring import score_through
from autointerp.store.group_writer import GroupWriter

CLEAR = 0.3
"""A simulation counts as mistaken about a context where its largest value is off by this share of the scale."""


@dataclass
class Validator:
    """Scores labels on the select part with `scorer`: detection, fuzzing or simulation."""

    job: Job
    scorer: str
    config: ScoreConfig
    _asker: Asker | None = None

    @classmethod
    def of(cls, job: Job, scorer: str, config: ScoreConfig) -> Validator:
        """InputError where no model is named to ask."""
        if not config.model:
            raise InputError(
                f"labels are chosen and revised by {scorer!r} scores; set score.model (and score.base_url)"
            )
        config = replace(config, scorers=(scorer,), stop_width=None, stop_threshold=None, repeat_share=0.0)
        return cls(replace(job, progress=None), scorer, config)

    def _run(self, explainer: str = "") -> Run:
        return Run(self.job, explainer, self.config, part="select")

    def _scorer(self) -> Scorer[Any]:
        return scorer_named(self.scorer)

    def settings(self) -> list[object]:
        """All that a score depends on but the label."""
        c = self.config
        ways = [[by.method, by.template_sha256] for by in self._scorer().made_by(self._run())]
        return [self.scorer, c.model, c.contexts, c.examples_per_call, c.seed, c.method, ways]

    async def scores(self, labels: Sequence[Explanation], client: LlmClient, writer: GroupWriter) -> dict[str, Score]:
        """A score for every label, by explanation_id; those that are not in the store are asked for and written. A
        label whose contexts the endpoint gave up on has none."""
        if not labels:
            return {}
        if self._asker is None or self._asker.client is not client:
            self._asker = Asker(client)
        work = await self._scorer().start(self._run(labels[0].explainer), labels, self._asker)
        known = self._known(labels, work.by)
        waiting = [i for i, label in enumerate(labels) if label.explanation_id not in known]
        if not waiting:
            return known
        await score_through(self._asker, self.job, work, waiting, writer, Outcome())
        return self._known(labels, work.by)

    def _known(self, labels: Sequence[Explanation], by: MadeBy) -> dict[str, Score]:
        """The scores there are, by explanation_id."""
        ids, c = [label.explanation_id for label in labels], self.config
        return self.job.store.scores_of(
            ids, self.job.harvest_id, self.scorer, by.method, "select", c.model, by.template_sha256, c.seed
        )

    def forecast(self, labels: Sequence[Explanation]) -> Estimate:
        """What scoring the labels takes, estimated from a few of them."""
        return self._scorer().estimate(self._run(), labels) if labels else Estimate()


def mistakes(score: Score, contexts: Sequence[Context], most: int) -> tuple[list[Context], list[Context]]:
    """(active contexts taken for silent, silent ones taken for active), at most `most` together, each kind in turn.

    The clearest first: of the missed ones the most active; of the false alarms those expected to be most active, and
    among them random text before text that was chosen to look alike. `contexts` are those of the select part.
    """
    by_id = {context.context_id: context for context in contexts}
    scale = float(TOP) if score.scorer == SIMULATION else 1.0
    missed: list[tuple[float, Context]] = []
    alarms: list[tuple[float, int, Context]] = []
    for prediction in score.predictions:
        context = by_id.get(prediction.context_id)
        if context is None or prediction.predicted is None:
            continue
        truth, said = max(prediction.truth, default=0.0), max(prediction.predicted, default=0.0)
        if context.kind != "negative" and said < truth / 2 and truth - said >= CLEAR * scale:
            missed.append((-context.max_activation, context))
        elif context.kind == "negative" and said >= CLEAR * scale:
            alarms.append((-said, TIERS.index(context.tier or "random"), context))
    missed.sort(key=lambda found: (found[0], found[1].context_id))
    alarms.sort(key=lambda found: (found[0], found[1], found[2].context_id))
    pairs = zip_longest([c for _, c in missed], [c for _, _, c in alarms])
    chosen = [context for pair in pairs for context in pair if context is not None][:most]
    return [c for c in chosen if c.kind != "negative"], [c for c in chosen if c.kind == "negative"]


def halves(contexts: Sequence[Context]) -> tuple[list[Context], list[Context]]:
    """The contexts in two halves without a common document; blocks of a huge one stay together. Documents take turns in
    the order of the hash of their names, those in which the feature is active and the others each among themselves, so
    that either half has both kinds if there are two documents of each."""
    documents: dict[str, list[Context]] = defaultdict(list)
    for context in contexts:
        documents[context.source].append(context)

    def drawn(document: str) -> bytes:
        return hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()

    parts: tuple[list[Context], list[Context]] = ([], [])
    for is_silent in (False, True):
        own = [name for name, held in documents.items() if all(c.kind == "negative" for c in held) == is_silent]
        for turn, name in enumerate(sorted(own, key=drawn)):
            parts[turn % 2].extend(documents[name])
    return parts


def value_on(score: Score, contexts: Sequence[Context]) -> float | None:
    """The score's value over these contexts alone; None where they define none, as without an active or without a
    silent context."""
    by_id = {context.context_id: context for context in contexts}
    answers = [Answer(by_id[p.context_id], p) for p in score.predictions if p.context_id in by_id]
    result = correlation(answers) if score.scorer == SIMULATION else balanced(answers)
    return result.estimate.value
