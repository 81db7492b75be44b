"""best_of_n: the best of several labels by [explain] base, by their score on the select part.

Sample i has seed `seed + i`, which is sent unless the endpoint refuses seeds; the first keeps the configured
temperature, the others have at least TEMPERATURE, or they would all be the same. They are judged on select, so that the
score on report is not the best of several draws (the winner's curse).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from autointerp.ask.explanation_row import with_meanings
from autointerp.ask.forecast import Estimate
from autointerp.config import ExplainConfig
from autointerp.explain.composite import (
    check_base,
    composite_row,
    estimate_parts,
    estimate_validation,
    labels_of,
    make_in_blocks,
    part,
    recipe_sha256,
    validator_of,
)
from autointerp.explain.evidence_sections import Section
from autointerp.explain.explainer import ExplainRun, OpenRun
from autointerp.explain.label_question import LabelPrompt
from autointerp.number_ranges import ranges
from autointerp.records import Explanation, Score, Side

TEMPERATURE = 0.7
"""The lowest temperature of all samples but the first."""


class BestOfN:
    name = "best_of_n"
    reads: tuple[Section, ...] = ()
    side: Side | None = None
    is_free = False

    def made_of(self, config: ExplainConfig) -> tuple[str, ...]:
        return (config.base,)

    def _samples(self, run: ExplainRun) -> list[LabelPrompt]:
        return [part(run, sample(run.config, i)) for i in range(run.config.samples)]

    def check(self, run: ExplainRun) -> None:
        check_base(run)
        self._samples(run)
        validator_of(run)

    def digest(self, run: ExplainRun) -> str:
        return recipe_sha256(run, self._samples(run), None, validator_of(run))

    async def explain(self, work: OpenRun, features: Sequence[int]) -> None:
        run, samples, digest, validator = (
            work.run,
            self._samples(work.run),
            self.digest(work.run),
            validator_of(work.run),
        )
        await work.client(run.config)
        judge = await work.client(validator.config)

        async def make(block: Sequence[int]) -> list[Explanation]:
            # The last sample first: the latest row of an explainer is the one that `score` takes, and that is to be the
            # first sample, at the configured seed and temperature.
            asked = [await labels_of(work, prompt, block) for prompt in reversed(samples)]
            candidates = {f: [labels[f] for labels in reversed(asked)] for f in block}
            usable = [e for f in block for e in candidates[f] if e.status == "ok"]
            scores = await validator.scores(usable, judge, work.writer)
            return [best(composite_row(run, digest, candidates[f]), candidates[f], scores) for f in block]

        await make_in_blocks(work, features, make)

    def estimate(self, run: ExplainRun, features: Sequence[int]) -> list[tuple[str, Estimate]]:
        samples = self._samples(run)
        judging = estimate_validation(run, validator_of(run), samples, features)
        return [*estimate_parts(run, samples, features), judging]


def sample(config: ExplainConfig, i: int) -> ExplainConfig:
    """How the i-th candidate is asked for."""
    temperature = config.temperature
    if i > 0 and temperature is not None:
        temperature = max(temperature, TEMPERATURE)
    seed = (config.seed + i) % (int(ranges(ExplainConfig)["seed"].high) + 1)
    return replace(config, explainer=config.base, seed=seed, temperature=temperature)


def best(row: Explanation, candidates: Sequence[Explanation], scores: Mapping[str, Score]) -> Explanation:
    """`row` with the text of the candidate with the best score, the first of several. Where none has a score it is the
    first candidate with a text, and `error` says so. Where the endpoint gave up on one of them there is no choice yet.
    """
    usable = [e for e in candidates if e.text is not None]
    given_up = next((e for e in candidates if e.status == "gave_up"), None)
    if given_up is not None:
        return replace(row, status="gave_up", error=given_up.error)
    if not usable:
        first = next((e for e in candidates if e.status == "abstained"), candidates[0])
        return replace(row, status=first.status, error=first.error)
    if any(e.explanation_id not in scores for e in usable):
        return replace(row, status="gave_up", error="the endpoint gave up on the score of a candidate")
    ranked = [(scores[e.explanation_id].value, e) for e in usable]
    scored = [(value, e) for value, e in ranked if value is not None]
    winner = max(scored, key=lambda pair: pair[0])[1] if scored else usable[0]
    note = None if scored else f"chosen unseen, no candidate has a score: {scores[winner.explanation_id].status}"
    return with_meanings(row, winner, note)
