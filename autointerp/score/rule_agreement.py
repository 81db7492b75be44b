"""`rule_agreement`: do the words of a label say what its rule says?

A rule can be right where its label reads as something else, and the score of the rule would then be claimed for words
that do not deserve it. So a judge is shown tiles of ordinary text, half of which the rule claims, and says which of
them fit the words, by the prompt of `detection`. Where the feature fires is not asked.

    rule_agreement              the mean of the two shares below: .5 is chance
    rule_agreement_sensitivity  the share of the claimed tiles that the judge chooses by the words
    rule_agreement_specificity  the share of the others that it leaves alone

Up to 2 N tiles of each kind (N: score.contexts) are drawn with the seed from the known tiles of the part and the
sampled contexts of the feature, in which a rare claim is more likely. A label without a rule has the status 'no_rule',
one whose rule claims none of them 'no_claim', and one whose rule claims all of them 'no_contexts'.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autointerp.ask.forecast import Estimate
from autointerp.ask.question import Asker
from autointerp.records import Context, Explanation, Score, stable_id
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule
from autointerp.score.detection_questions import (
    DETECTION,
    Batch,
    Example,
    Judge,
    answer_of,
    balanced,
    batches,
    share_right,
    template_of,
)
from autointerp.score.natural import CLAIM, NO_CLAIM
from autointerp.score.ordinary_tiles import OrdinaryTiles
from autointerp.score.score_rows import Result
from autointerp.score.scorer import Labels, MadeBy, Needs, Run, Told, Work, a_few, asks_llm, estimate_of

RULE_AGREEMENT = "rule_agreement"
NO_RULE = "no_rule"


@dataclass(frozen=True)
class Compared:
    """One label, and the tiles that a judge is asked about."""

    told: Told
    examples: list[Example]
    status: str = "ok"
    """Or why there are none."""


class TileLoader:
    """Reads labels with tiles that their rules claim and tiles that they do not."""

    def __init__(self, run: Run, labels: Sequence[Explanation]) -> None:
        self._run = run
        self._labels = Labels(run, labels, {"sampled": None})
        self._known = OrdinaryTiles(run.job, run.part)

    def __call__(self, places: Sequence[int]) -> list[Compared]:
        return [self._of(told) for told in self._labels(places)]

    def _of(self, told: Told) -> Compared:
        if told.explanation.rule is None:
            return Compared(told, [], NO_RULE)
        rule, feature = Rule.from_json(told.explanation.rule), told.explanation.feature
        sampled = told.contexts
        read = (self._known.texts, ManyTexts.of(sampled))
        is_claimed = np.concatenate([texts.peaks(texts.predict(rule)) >= CLAIM for texts in read])
        draw = random.Random(stable_id(self._run.config.seed, RULE_AGREEMENT, self._run.job.dictionary_id, feature))
        chosen: list[Example] = []
        for claimed, missing in ((True, NO_CLAIM), (False, "no_contexts")):
            found = np.flatnonzero(is_claimed == claimed).tolist()
            if not found:
                return Compared(told, [], missing)
            draw.shuffle(found)
            chosen += self._different(found, sampled, feature, claimed)
        draw.shuffle(chosen)
        return Compared(told, chosen)

    def _different(self, places: list[int], sampled: Sequence[Context], feature: int, claimed: bool) -> list[Example]:
        """The first 2 N of these tiles, known ones and then sampled contexts, that differ in their text."""
        n_known = len(self._known.tiles)
        found: dict[str, Example] = {}
        for place in places:
            if len(found) == 2 * self._run.config.contexts:
                break
            if place < n_known:
                tile = self._known.tiles[place]
                shown = _context(place, feature, tile.document, tile.tokens, claimed, tile.begins)
            else:
                of = sampled[place - n_known]
                shown = _context(place, feature, of.document, of.tokens, claimed, of.begins)
            found.setdefault(shown.text, Example(shown))
        return list(found.values())


def _context(
    number: int, feature: int, document: str, tokens: Sequence[str], claimed: bool, begins: str | None
) -> Context:
    """A tile as a context whose right answer is whether the rule claims it; `number` is no id of the store's."""
    return Context(
        context_id=-1 - number, feature=feature, split="report", kind="sampled" if claimed else "negative",
        tier=None if claimed else "random", decile=None, rank=number, document=document, position=0,
        tokens=list(tokens), activations=[float(claimed)] * len(tokens), begins_document=begins == "document",
        begins_window=begins is not None,
    )  # fmt: skip


@dataclass(frozen=True)
class RuleAgreement:
    name: str = RULE_AGREEMENT
    reads_label: bool = True

    def needs(self, run: Run) -> Needs:
        return asks_llm(self.name, run.config)

    def made_by(self, run: Run) -> tuple[MadeBy, ...]:
        return (MadeBy("answers", run.config.model, template_of(DETECTION, run.job.prompts).sha256),)

    async def start(self, run: Run, targets: Sequence[Explanation], asker: Asker | None) -> Work[Compared]:
        assert asker is not None
        (by,), config = self.made_by(run), run.config
        judge = Judge.of(DETECTION, config, config.seed, run.job.prompts)

        async def score(item: Compared) -> list[Score]:
            identity = run.identity(item.told.explanation, by)
            if not item.examples:
                return [identity.row(self.name, run.part, [], Result(item.status), keep=False)]
            asked = await asker.ask_divided(
                Batch(judge, item.told.label, some, run.job.dictionary_id)
                for some in batches(item.examples, config.examples_per_call)
            )
            answers = [
                answer_of(example, None if one.value is None else one.value[i], one.status, one.error)
                for batch, one in asked
                for i, example in enumerate(batch.examples)
            ]
            claimed, others = [a for a in answers if a.active], [a for a in answers if not a.active]
            return [
                identity.row(f"{self.name}_sensitivity", run.part, claimed, share_right(claimed), keep=False),
                identity.row(f"{self.name}_specificity", run.part, others, share_right(others), keep=False),
                identity.row(self.name, run.part, answers, balanced(answers), keep=False),
            ]

        calls = -(-4 * config.contexts // config.examples_per_call)
        return Work(by, TileLoader(run, targets), score, calls)

    def estimate(self, run: Run, targets: Sequence[Explanation]) -> Estimate:
        judge = Judge.of(DETECTION, run.config, run.config.seed, run.job.prompts)
        asked = [
            (item, some)
            for item in TileLoader(run, targets)(a_few(targets))
            for some in batches(item.examples, run.config.examples_per_call)
        ]
        requests = [judge.request(item.told.label, some, run.job.dictionary_id) for item, some in asked]
        return estimate_of(requests, float(sum(3 * len(some) for _, some in asked)), targets)  # "[1, 0, 1]"


RULE_AGREEMENT_SCORER = RuleAgreement()
