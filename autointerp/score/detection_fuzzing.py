"""`detection` and `fuzzing`: a judge says of a few contexts at a time which of them fit the label (Paulo et al. 2024).

The two differ in what the judge sees: plain contexts, or contexts with marked tokens (see detection_questions.py, also
for the rows). Where a stop rule is configured, a label is asked about in rounds until it is clear enough (see
stopping.py). Some labels are asked about twice (see judge_consistency.py); their scores are over the first time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from autointerp.ask.forecast import Estimate
from autointerp.ask.question import Asker
from autointerp.records import Explanation, Score
from autointerp.score.detection_questions import (
    DETECTION,
    FUZZING,
    Batch,
    Example,
    Judge,
    answer_of,
    batches,
    choose_examples,
    detection_rows,
    template_of,
)
from autointerp.score.judge_consistency import assumed_correlation, is_repeated, judge_repeat, repeated_share
from autointerp.score.natural import Prevalence
from autointerp.score.prevalences import prevalences
from autointerp.score.score_rows import Answer
from autointerp.score.scorer import Labels, MadeBy, Needs, Run, Told, Work, a_few, asks_llm, estimate_of
from autointerp.score.stopping import ROUND, decide, interval_z, likely_share, method_of, plan, stops_early
from autointerp.store.labels_left import keys_of
from autointerp.store.pace import earlier_scores


@dataclass(frozen=True)
class Questioned:
    """One label and the contexts that it is scored on, in the order in which they are asked about."""

    told: Told
    examples: list[Example]
    prevalence: Prevalence | None = None
    """None where the harvest did not count its tiles."""


class ExampleLoader:
    """Reads labels with the examples that a judge is asked about."""

    def __init__(self, run: Run, labels: Sequence[Explanation], scorer: str = DETECTION) -> None:
        """`scorer`: whose examples; those of detection serve other scorers of whole contexts too."""
        self._run, self._scorer = run, scorer
        self._labels = Labels(run, labels, {"top": 2 * run.config.contexts, "sampled": None, "negative": None})

    def __call__(self, places: Sequence[int]) -> list[Questioned]:
        config, dictionary_id = self._run.config, self._run.job.dictionary_id
        told = self._labels(places)
        contexts = {one.explanation.feature: one.contexts for one in told}
        examples = {
            feature: choose_examples(
                self._scorer, some, config.contexts, config.seed, dictionary_id, config.examples_per_call
            )
            for feature, some in contexts.items()
        }
        found = prevalences(self._run.job, self._run.part, list(contexts))
        return [Questioned(one, examples[(f := one.explanation.feature)], found.get(f)) for one in told]


@dataclass(frozen=True)
class ChoiceScorer:
    name: str
    reads_label: bool = True

    def needs(self, run: Run) -> Needs:
        return asks_llm(self.name, run.config)

    def made_by(self, run: Run) -> tuple[MadeBy, ...]:
        return (MadeBy(method_of(run.config), run.config.model, template_of(self.name, run.job.prompts).sha256),)

    async def start(self, run: Run, targets: Sequence[Explanation], asker: Asker | None) -> Work[Questioned]:
        assert asker is not None, self.name
        (by,), config, dictionary_id = self.made_by(run), run.config, run.job.dictionary_id
        judge = Judge.of(self.name, config, config.seed, run.job.prompts)
        correlation, note = assumed_correlation(run, self.name, by) if stops_early(config) else (0.0, None)

        async def answers(item: Questioned, round_: Sequence[list[Example]]) -> list[list[Answer]]:
            """Those of each call."""
            asked = await asker.ask_divided(Batch(judge, item.told.label, some, dictionary_id) for some in round_)
            return [
                [
                    answer_of(example, None if one.value is None else one.value[i], one.status, one.error)
                    for i, example in enumerate(batch.examples)
                ]
                for batch, one in asked
            ]

        async def repeat(item: Questioned, calls: list[list[Answer]], asked: list[Example]) -> None:
            """Asks once more and writes down how far the answers agree; nothing where an endpoint gave up."""
            second = await answers(item, batches(asked, config.examples_per_call, again=True))
            if any(a.prediction.status == "gave_up" for call in [*calls, *second] for a in call):
                return
            row = judge_repeat(run.identity(item.told.explanation, by), self.name, [calls, second])
            if row is not None:
                await asyncio.to_thread(run.job.store.insert_judge_repeats, [row])

        async def score(item: Questioned) -> list[Score]:
            planned = plan(self.name, item.examples, config, dictionary_id)
            rounds: list[list[list[Answer]]] = []
            for round_ in planned:
                rounds.append(await answers(item, round_))
                if decide(rounds, len(planned), config, correlation):
                    break
            identity = run.identity(item.told.explanation, by)
            told = [call for one in rounds for call in one]
            every = [answer for call in told for answer in call]
            if is_repeated(run, self.name, item.told.explanation.feature):
                asked = [example for one in planned[: len(rounds)] for request in one for example in request]
                await repeat(item, told, asked)
            z = interval_z(config, len(planned))
            floor = config.label_precision if run.control is None and run.part == "report" else None
            density = None if item.prevalence is None else item.prevalence.density
            return detection_rows(identity, self.name, every, run.part, z, density, floor)

        calls = ROUND if stops_early(config) else -(-4 * config.contexts // config.examples_per_call)
        notes = () if note is None else (note,)
        return Work(by, ExampleLoader(run, targets, self.name), score, calls, notes=notes)

    def estimate(self, run: Run, targets: Sequence[Explanation]) -> Estimate:
        """The estimate. With a stop rule it gives the most calls possible, and the likely number if judges do as well
        as in earlier scores. What is asked twice is in it."""
        job, config = run.job, run.config
        judge = Judge.of(self.name, config, config.seed, job.prompts)
        some = ExampleLoader(run, targets, self.name)(a_few(targets))
        asked = [(item, batch) for item in some for batch in batches(item.examples, config.examples_per_call)]
        requests = [judge.request(item.told.label, batch, job.dictionary_id) for item, batch in asked]
        written = sum(3 * len(batch) for _, batch in asked)  # "[1, 0, 1]"
        likely = 1.0
        if stops_early(config):
            before = earlier_scores(job.store, job.dictionary_id, self.name, config.model, run.part)
            plans = [plan(self.name, item.examples, config, job.dictionary_id) for item in some]
            (by,) = self.made_by(run)
            likely = likely_share(plans, config, before, assumed_correlation(run, self.name, by)[0])
        twice = repeated_share(run, self.name, [feature for _, feature in keys_of(targets)])
        return estimate_of(requests, written, targets, likely, often=1 + twice)


DETECTION_SCORER = ChoiceScorer(DETECTION)
FUZZING_SCORER = ChoiceScorer(FUZZING)
