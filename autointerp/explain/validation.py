"""Scores of candidate labels on the select part, for explainers that choose or correct by them.

They are ordinary score rows of part 'select' by detection, fuzzing or simulation, asked of the [score] endpoint; the
report part is neither read nor asked about here, so that a score published later is not the one selected for. Labels
of one feature are asked about on the same contexts, all of them: sequential stopping is switched off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from autointerp.ask.forecast import Estimate
from autointerp.ask.job import Blocks, Job, Outcome, run_pool
from autointerp.ask.scale import TOP
from autointerp.config import ScoreConfig
from autointerp.errors import InputError
from autointerp.llm.capabilities import Capabilities, probe
from autointerp.llm.client import LlmClient
from autointerp.records import Context, Explanation, Score
from autointerp.score import choices, scoring, simulation
from autointerp.score.choice_run import forecast_choices, score_choices
from autointerp.score.controls import Labelled
from autointerp.score.score_rows import SIMULATION, Answer, Identity, correlation
from autointerp.score.simulation import Simulator, choose_contexts
from autointerp.store.group_writer import GroupWriter

CLEAR = 0.3
"""A simulation counts as mistaken about a context where its largest value is off by this share of the scale."""


@dataclass
class Validator:
    """Scores labels on the select part with `scorer`: detection, fuzzing or simulation."""

    job: Job
    scorer: str
    config: ScoreConfig
    _found: Capabilities | None = None
    """Of the endpoint, once asked."""

    @classmethod
    def of(cls, job: Job, scorer: str, config: ScoreConfig) -> Validator:
        """InputError where no model is named to ask."""
        if not config.model:
            raise InputError(
                f"labels are chosen and revised by {scorer!r} scores; set score.model (and score.base_url)"
            )
        config = replace(config, scorers=(scorer,), stop_width=None, stop_threshold=None)
        return cls(replace(job, progress=None), scorer, config)

    def settings(self) -> list[object]:
        """All that a score depends on but the label."""
        c = self.config
        templates = [self._template(method) for method in self._methods()]
        return [self.scorer, c.model, c.contexts, c.examples_per_call, c.seed, c.method, templates]

    def _methods(self) -> tuple[str, ...]:
        if self.scorer != SIMULATION:
            return (choices.ANSWERS,)
        return simulation.LLM_METHODS if self.config.method == "auto" else (self.config.method,)

    def _template(self, method: str) -> str:
        if self.scorer == SIMULATION:
            return simulation.template_of(method, self.job.prompts).sha256
        return choices.template_of(self.scorer, self.job.prompts).sha256

    def known(self, labels: Sequence[Explanation], method: str) -> dict[str, Score]:
        """The scores there are, by explanation_id."""
        c = self.config
        ids = [label.explanation_id for label in labels]
        return self.job.store.scores_of(
            ids, self.job.harvest_id, self.scorer, "select", c.model, self._template(method), c.seed
        )

    async def scores(self, labels: Sequence[Explanation], client: LlmClient, writer: GroupWriter) -> dict[str, Score]:
        """A score for every label, by explanation_id; those that are not in the store are asked for and written. A
        label whose contexts the endpoint gave up on has none."""
        method, simulator = choices.ANSWERS, None
        if self.scorer == SIMULATION and labels:
            self._found = self._found or await probe(client)
            method = scoring.choose_method(self.config, self._found)
            simulator = Simulator.of(method, self.config, self._found, self.config.seed, self.job.prompts)
        known = self.known(labels, method)
        waiting = [label for label in labels if label.explanation_id not in known]
        if not waiting:
            return known
        if simulator is not None:
            await self._simulate(simulator, waiting, client, writer)
        else:
            await score_choices(
                self.job, self.scorer, waiting[0].explainer, self.config, None, waiting, writer, client, Outcome(),
                part="select",
            )  # fmt: skip
        return self.known(labels, method)

    async def _simulate(
        self, simulator: Simulator, labels: Sequence[Explanation], client: LlmClient, writer: GroupWriter
    ) -> None:
        job, config = self.job, self.config

        async def work(item: Labelled) -> None:
            answers = await scoring.ask_all(job, simulator, client, item, item.select or [])
            identity = Identity(
                item.explanation, job.harvest_id, simulator.method, None, config.model, simulator.template.sha256,
                config.seed,
            )  # fmt: skip
            await writer.score(_select_row(identity, answers, config.bootstrap))

        workers = 2 + 2 * job.in_flight // max(1, 3 * config.contexts)
        blocks = Blocks(range(len(labels)), lambda places: self._labelled([labels[i] for i in places]), size=16)
        await run_pool(blocks, min(workers, len(labels)), work, client.stop)

    def _labelled(self, labels: Sequence[Explanation]) -> list[Labelled]:
        job, n = self.job, self.config.contexts
        features = list(dict.fromkeys(label.feature for label in labels))
        scales = job.store.feature_evidence(job.dictionary_id, job.harvest_id, features, 0)
        limits = {"top": n, "sampled": 2 * n, "negative": None}
        contexts = job.store.contexts_of(job.dictionary_id, job.harvest_id, features, "select", limits)
        return [
            Labelled(e, e, scales[e.feature].max_activation, [], choose_contexts(contexts[e.feature], n))
            for e in labels
        ]

    def forecast(self, labels: Sequence[Explanation]) -> Estimate:
        """Of scoring the labels, from a few of them."""
        if not labels:
            return Estimate()
        if self.scorer != SIMULATION:
            return forecast_choices(self.job, self.scorer, self.config, labels, "select")
        some = self._labelled(labels[:: max(1, len(labels) // 8)])
        asked = [(item.label, context) for item in some for context in item.select or []]
        return scoring.simulation_estimate(self.job, self.config, asked, len(labels) / len(some))


def _select_row(identity: Identity, answers: Sequence[Answer], n_boot: int) -> Score:
    return identity.row(SIMULATION, "select", answers, correlation(answers, n_boot, identity.seed), keep=True)


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
            alarms.append((-said, choices.TIERS.index(context.tier or "random"), context))
    missed.sort(key=lambda found: (found[0], found[1].context_id))
    alarms.sort(key=lambda found: (found[0], found[1], found[2].context_id))
    pairs = zip_longest([c for _, c in missed], [c for _, _, c in alarms])
    chosen = [context for pair in pairs for context in pair if context is not None][:most]
    return [c for c in chosen if c.kind != "negative"], [c for c in chosen if c.kind == "negative"]
