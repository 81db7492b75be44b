"""revise: the label by [explain] base, rewritten in view of the contexts of the select part on which it misled the
judge. Where there are none its text is kept, without a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
from autointerp.explain.validation import mistakes
from autointerp.records import Explanation, FeatureEvidence, Score, Side

REVISER = OneCall("revise", (EXCERPTS,), "input")
"""The question that shows a label and its mistakes. A revised label has its base's side, so the LLM is not asked."""


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
        correction: list[object] = [reviser.template.sha256, run.config.mistakes]
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
            rewritten = await _rewrite(work, digest, wrong) if wrong else {}
            return [
                rewritten[f]
                if f in rewritten
                else kept(composite_row(run, digest, [labels[f]]), labels[f], scores.get(labels[f].explanation_id))
                for f in block
            ]

        await make_in_blocks(work, features, make)

    def estimate(self, run: ExplainRun, features: Sequence[int]) -> list[tuple[str, Estimate]]:
        """The estimate if every label had mistakes."""
        base = self._base(run)
        # The correction shows as many contexts again as there are mistakes.
        first = estimate_labels(run, base, features)
        more = 1 + run.config.mistakes / max(1, run.config.contexts)
        rewriting = (run.config.model, replace(first, read=more * first.read))
        judging = estimate_validation(run, validator_of(run), [base], features)
        return [*estimate_parts(run, [base], features), rewriting, judging]


@dataclass(frozen=True)
class _Wrong:
    """A label, and what it misled the judge about."""

    label: Explanation
    correction: Correction


def _corrections(run: ExplainRun, labels: Sequence[Explanation], scores: Mapping[str, Score]) -> dict[int, _Wrong]:
    """The corrections of the labels that have mistakes, by feature."""
    wrong: dict[int, _Wrong] = {}
    every = dict.fromkeys(("top", "sampled", "negative"))
    for start in range(0, len(labels), BLOCK):
        block = labels[start : start + BLOCK]
        features = [label.feature for label in block]
        held = run.job.store.contexts_of(run.job.dictionary_id, run.job.harvest_id, features, "select", every)
        for label in block:
            score = scores.get(label.explanation_id)
            if label.status != "ok" or score is None:
                continue
            missed, alarms = mistakes(score, held[label.feature], run.config.mistakes)
            if missed or alarms:
                wrong[label.feature] = _Wrong(label, Correction(label.text or "", missed, alarms))
    return wrong


async def _rewrite(work: OpenRun, digest: str, wrong: Mapping[int, _Wrong]) -> dict[int, Explanation]:
    """The composite rows of the labels that have mistakes."""
    run = work.run
    client = await work.client(run.config)
    prompt = await as_taken(run, REVISER.prompt(run.config, run.job.prompts), client)
    rows: dict[int, Explanation] = {}

    async def rewrite(evidence: FeatureEvidence) -> None:
        base, correction = wrong[evidence.feature].label, wrong[evidence.feature].correction
        told = await ask_label(run, prompt, client, evidence, correction)
        shown = [c.context_id for c in (*correction.missed, *correction.false_alarms)]
        rows[evidence.feature] = replace(
            composite_row(run, digest, [base], shown), text=told.text, status=told.status, error=told.error,
            side=base.side if told.text else None, input_tokens=told.input_tokens, output_tokens=told.output_tokens,
            cost_usd=told.cost_usd,
        )  # fmt: skip

    blocks = Blocks(list(wrong), lambda block: evidence_for(run, prompt, block))
    await run_pool(blocks, min(run.job.in_flight, len(wrong)), rewrite, client.stop)
    return rows


def kept(row: Explanation, base: Explanation, score: Score | None) -> Explanation:
    """`row` with the base's text, or with what became of the base."""
    if base.status != "ok":
        return replace(row, status=base.status, error=base.error)
    if score is None:
        return replace(row, status="gave_up", error="the endpoint gave up on the score of the label")
    note = None if score.value is not None else f"not revised, the label has no score: {score.status}"
    return replace(row, text=base.text, status="ok", side=base.side, error=note)
