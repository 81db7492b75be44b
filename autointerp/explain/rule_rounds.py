"""How one feature gets its rule: an LLM proposes one, the data say what it is worth, and its mistakes go back.

    call 1        evidence -> label and clauses -> fitted and pruned (rule_study.py)
    call 2, ...   the rule and what it gets wrong on the explain part -> a new rule -> fitted and pruned

A new rule replaces the one before only if its natural correlation on the select part is higher by more than the
standard error of the difference, over the same documents. The first round that brings nothing is the last.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from autointerp.ask.explanation_row import blank_row, evidence_sha256
from autointerp.ask.question import ask
from autointerp.explain.asking import paid, seed_notes, status_without, why_without
from autointerp.explain.explainer import ExplainRun
from autointerp.explain.rule_question import MendQuestion, Proposal, RulePrompt, RuleQuestion
from autointerp.explain.rule_study import Draft, RuleStudy
from autointerp.explain.rule_texts import RuleTexts, StudiedFeature
from autointerp.explain.rule_words import words_of
from autointerp.llm.client import LlmClient
from autointerp.llm.requests import Reply
from autointerp.paired import noise_of_difference
from autointerp.records import Explanation
from autointerp.rules.sentences import sentence

T = TypeVar("T")


def improves(new: Draft, old: Draft) -> bool:
    """Whether a draft is better than the one before it by more than their noise."""
    value, before = new.natural.value, old.natural.value
    if value is None or before is None:
        return False
    noise = noise_of_difference(new.natural.influences, old.natural.influences)
    return noise is not None and value - before > noise


@dataclass
class RuleWriter:
    """Asks for the rules of one run's features. What is computed is computed one feature at a time, in a worker thread,
    so that replies of other features are read meanwhile."""

    run: ExplainRun
    prompt: RulePrompt
    client: LlmClient
    texts: RuleTexts
    digest: str
    _computing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def row(self, of: StudiedFeature) -> Explanation:
        """The row of one feature: its label with its rule, or the reason why it has none. It is not written yet."""
        evidence, config = of.evidence, self.run.config
        row = blank_row(
            self.run.job, config, evidence.feature, config.model, self.digest, evidence_sha256(evidence)
        )  # fmt: skip
        lacks = self.prompt.missing(evidence)
        if lacks is not None:
            return dataclasses.replace(row, status="abstained", error=lacks)
        near = self.texts.reference.near
        contexts = min(config.rule_contexts, max(1, len(evidence.top)))
        asked = await ask(self.client, RuleQuestion(self.prompt, evidence, near, contexts))
        replies, notes = list(asked.replies), seed_notes(self.prompt.sends_seed)
        first = asked.value
        if first is None:
            notes.append(why_without(asked, "rule"))
            return _done(dataclasses.replace(row, status=status_without(asked)), replies, notes)
        study = await self._computed(partial(RuleStudy, of, self.texts))
        if first.label is None:
            return _done(_without_label(row, study, first), replies, notes)
        draft = await self._computed(partial(study.draft, first))
        for number in range(1, config.rounds + 1):
            mistakes = await self._computed(partial(study.mistakes, draft, config.mistakes))
            if not mistakes:
                break
            label = draft.proposal.label or ""
            mended = await ask(
                self.client, MendQuestion(self.prompt, evidence, near, label, draft.clauses, mistakes)
            )  # fmt: skip
            replies += mended.replies
            proposal = mended.value
            if proposal is None:
                notes.append(f"round {number}: {why_without(mended, 'rule')}")
                if status_without(mended) == "gave_up":
                    return _done(dataclasses.replace(row, status="gave_up"), replies, notes)
                break
            if not proposal.clauses:
                break
            new = await self._computed(partial(study.draft, proposal))
            if not improves(new, draft):
                break
            draft = new
        labelled = await self._computed(partial(_labelled, row, study, draft, notes))
        if labelled.text is not None:
            labelled = dataclasses.replace(labelled, output_text=first.output)
        return _done(labelled, replies, notes)

    async def _computed(self, work: Callable[[], T]) -> T:
        async with self._computing:
            return await asyncio.to_thread(work)


def _labelled(row: Explanation, study: RuleStudy, draft: Draft, notes: list[str]) -> Explanation:
    """The row with the rule and its words. Where no clause is left, rule and label are those of `patterns`."""
    rule = draft.rule.to_json()
    if draft.kept:
        dropped = len(draft.clauses) - len(draft.kept)
        if dropped:
            notes.append(f"{dropped} of {len(draft.clauses)} clauses dropped, which the select part does not support")
        text: str | None = words_of(study, draft)
    else:
        text = sentence(study.sample, study.patterns, study.reference)
        notes.append("no clause of the LLM is supported by the select part; the rule is that of patterns")
    if text is None:
        return dataclasses.replace(row, status="abstained", rule=rule)
    return dataclasses.replace(row, text=text, status="ok", side="input", rule=rule)


def _without_label(row: Explanation, study: RuleStudy, proposal: Proposal) -> Explanation:
    """The row where the LLM sees no pattern in where the feature is active."""
    rule = study.patterns.to_json()
    if proposal.output is None:
        return dataclasses.replace(row, status="abstained", rule=rule)
    return dataclasses.replace(
        row, text=proposal.output, status="ok", side="output", rule=rule, output_text=proposal.output
    )  # fmt: skip


def _done(row: Explanation, replies: list[Reply], notes: list[str]) -> Explanation:
    """The row with its notes and with what its calls came to."""
    return dataclasses.replace(paid(row, replies), error="; ".join(notes) or None)
