"""revise: the label by [explain] base, rewritten in view of contexts of the select part on which it misled the judge.

The documents of select are halved. The rewrite is made from the mistakes on the first half, and it replaces the label
only if it scores better on the second, which it has not seen: a rewrite fits the mistakes it was shown, whether or not
it is a better label. Every rewrite is a row of its own, by the explainer DRAFT, and judged like any label. Where the
first half holds no mistake, or the second half too little to judge by, the label is kept without a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from autointerp.ask.explanation_row import with_meanings
from autointerp.ask.forecast import Estimate
from autointerp.ask.job import BLOCK, Blocks, run_pool
from autointerp.config import ExplainConfig
from autointerp.explain.asking import as_taken, ask_label, estimate_labels, evidence_for
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
from autointerp.explain.evidence_sections import EXCERPTS, Section
from autointerp.explain.explainer import ExplainRun, OpenRun
from autointerp.explain.label_question import Correction, LabelPrompt
from autointerp.explain.one_call import OneCall
from autointerp.explain.validation import halves, mistakes, value_on
from autointerp.records import Context, Explanation, FeatureEvidence, Score, Side

REVISER = OneCall("revise", (EXCERPTS,), "input")
"""The question that shows a label and its mistakes. A revised label has its base's side, so the LLM is not asked."""
DRAFT = "revise_draft"
"""The explainer's name in the rows of rewrites, kept or not."""


class Revise:
    name = "revise"
    reads: tuple[Section, ...] = ()
    side: Side | None = None
    is_free = False

    def made_of(self, config: ExplainConfig) -> tuple[str, ...]:
        return (config.base,)

    def _base(self, run: ExplainRun) -> LabelPrompt:
        return part(run, replace(run.config, explainer=run.config.base))

    def check(self, run: ExplainRun) -> None:
        check_base(run)
        self._base(run)
        validator_of(run)

    def digest(self, run: ExplainRun) -> str:
        reviser = REVISER.prompt(run.config, run.job.prompts)
        correction: list[object] = [reviser.template.sha256, run.config.mistakes, "judged on other documents"]
        return recipe_sha256(run, [self._base(run)], correction, validator_of(run))

    async def explain(self, work: OpenRun, features: Sequence[int]) -> None:
        run, base, digest, validator = work.run, self._base(work.run), self.digest(work.run), validator_of(work.run)
        await work.client(run.config)
        judge = await work.client(validator.config)

        async def make(block: Sequence[int]) -> list[Explanation]:
            labels = await labels_of(work, base, block)
            usable = [label for label in labels.values() if label.status == "ok"]
            scores = await validator.scores(usable, judge, work.writer)
            wrong = _corrections(run, [labels[f] for f in block], scores)
            drafts = await _rewrite(work, digest, wrong) if wrong else {}
            ready = [d for f, d in drafts.items() if d.status == "ok" and d.judged_text != labels[f].judged_text]
            drafted = await validator.scores(ready, judge, work.writer)
            rows = []
            for f in block:
                label = labels[f]
                if f not in drafts:
                    row = composite_row(run, digest, [label])
                    rows.append(kept(row, label, scores.get(label.explanation_id)))
                    continue
                row = composite_row(run, digest, [label, drafts[f]])
                score = drafted.get(drafts[f].explanation_id)
                rows.append(better(row, label, drafts[f], wrong[f], score))
            return rows

        await make_in_blocks(work, features, make)

    def estimate(self, run: ExplainRun, features: Sequence[int]) -> list[tuple[str, Estimate]]:
        """The estimate if every label had mistakes, so that every rewrite is judged as well."""
        base = self._base(run)
        # The correction shows as many contexts again as there are mistakes.
        first = estimate_labels(run, base, features)
        more = 1 + run.config.mistakes / max(1, run.config.contexts)
        rewriting = (run.config.model, replace(first, read=more * first.read))
        judging = estimate_validation(run, validator_of(run), [base], features)
        return [*estimate_parts(run, [base], features), rewriting, judging, judging]


@dataclass(frozen=True)
class Wrong:
    """A label, what it misled the judge about on one half, and how it did on the other half."""

    label: Explanation
    correction: Correction
    judged: list[Context]
    """The contexts of the other half."""
    value: float


def _corrections(run: ExplainRun, labels: Sequence[Explanation], scores: Mapping[str, Score]) -> dict[int, Wrong]:
    """The corrections of the labels that have mistakes on the first half and a score on the second, by feature."""
    wrong: dict[int, Wrong] = {}
    every = dict.fromkeys(("top", "sampled", "negative"))
    for start in range(0, len(labels), BLOCK):
        block = labels[start : start + BLOCK]
        features = [label.feature for label in block]
        held = run.job.store.contexts_of(run.job.dictionary_id, run.job.harvest_id, features, "select", every)
        for label in block:
            score = scores.get(label.explanation_id)
            if label.status != "ok" or score is None:
                continue
            asked = {prediction.context_id for prediction in score.predictions}
            shown, judged = halves([c for c in held[label.feature] if c.context_id in asked])
            missed, alarms = mistakes(score, shown, run.config.mistakes)
            value = value_on(score, judged)
            if (missed or alarms) and value is not None:
                wrong[label.feature] = Wrong(label, Correction(label.judged_text, missed, alarms), judged, value)
    return wrong


async def _rewrite(work: OpenRun, digest: str, wrong: Mapping[int, Wrong]) -> dict[int, Explanation]:
    """The rewrites, by feature, written as rows of the explainer DRAFT."""
    run = work.run
    client = await work.client(run.config)
    prompt = await as_taken(run, REVISER.prompt(run.config, run.job.prompts), client)
    drafting = run.of(replace(run.config, explainer=DRAFT))
    rows: dict[int, Explanation] = {}

    async def rewrite(evidence: FeatureEvidence) -> None:
        # The rewrite stands in the place of all that the judge was told: of both meanings, where there are two.
        base, correction = wrong[evidence.feature].label, wrong[evidence.feature].correction
        told = await ask_label(run, prompt, client, evidence, correction)
        shown = [c.context_id for c in (*correction.missed, *correction.false_alarms)]
        row = replace(
            composite_row(drafting, digest, [base], shown), text=told.text, status=told.status, error=told.error,
            side=base.side if told.text else None, output_text=base.output_text if told.text else None,
            input_tokens=told.input_tokens, output_tokens=told.output_tokens, cost_usd=told.cost_usd,
        )  # fmt: skip
        await work.writer.explanation(row)
        rows[evidence.feature] = row

    blocks = Blocks(list(wrong), lambda block: evidence_for(run, prompt, block))
    await run_pool(blocks, min(run.job.in_flight, len(wrong)), rewrite, client.stop)
    return rows


def better(row: Explanation, base: Explanation, draft: Explanation, wrong: Wrong, score: Score | None) -> Explanation:
    """`row` with the text of the draft if it scores higher than the base on the half of select that it was not made
    from, else with the base's text and a note that says why. `score`: the draft's."""
    if draft.status == "gave_up":
        return replace(row, status="gave_up", error=draft.error)
    if draft.status != "ok":
        return with_meanings(row, base, f"not revised, the rewrite is {draft.status}")
    if draft.judged_text == base.judged_text:
        return with_meanings(row, base, "not revised, the rewrite is the same label")
    if score is None:
        return replace(row, status="gave_up", error="the endpoint gave up on the score of the rewrite")
    value = value_on(score, wrong.judged)
    if value is None:
        return with_meanings(row, base, f"not revised, the rewrite has no score: {score.status}")
    if value <= wrong.value:
        told = (
            f"not revised, the rewrite scores {value:.2f} on contexts it was not made from, the label {wrong.value:.2f}"
        )
        return with_meanings(row, base, told)
    return with_meanings(row, draft)


def kept(row: Explanation, base: Explanation, score: Score | None) -> Explanation:
    """`row` with the base's text, or with what became of the base."""
    if base.status != "ok":
        return replace(row, status=base.status, error=base.error)
    if score is None:
        return replace(row, status="gave_up", error="the endpoint gave up on the score of the label")
    note = None if score.value is not None else f"not revised, the label has no score: {score.status}"
    return with_meanings(row, base, note)
