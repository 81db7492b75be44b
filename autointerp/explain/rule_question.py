"""The questions that the explainer `rule` asks: for a rule, and for a better one in view of its mistakes. No I/O here.

A reply is data. The last JSON object with "clauses" in it is read (rules/language/parsing.py); where it cannot be, the
LLM is told why and asked once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from autointerp.ask.chat import ReplyError
from autointerp.ask.json_reply import last_object
from autointerp.ask.prompts import PromptTemplate, mark, one_line
from autointerp.config import ExplainConfig
from autointerp.explain.evidence_sections import Room, Section, lacking
from autointerp.explain.format_words import is_of_the_form
from autointerp.explain.label_question import ask_request, asked_again
from autointerp.explain.label_replies import phrase_of
from autointerp.explain.rule_mistakes import Mistakes
from autointerp.explain.rule_reply import REPLY_TOKENS, clauses_in, rule_format
from autointerp.llm.requests import Reply, Request
from autointerp.records import FeatureEvidence
from autointerp.rules.language.conditions import Clause
from autointerp.rules.language.parsing import clause_to_json
from autointerp.rules.near import NearWords

LISTED = 15
"""Tokens or words shown of one kind."""
_FORM = rule_format(("label", "output"))


@dataclass(frozen=True)
class Proposal:
    """What an LLM says of a feature. Its strengths are a first guess, which the fit replaces."""

    label: str | None
    """None where it says that there is no pattern."""
    clauses: tuple[Clause, ...]
    output: str | None = None
    """What the feature makes the model say."""


@dataclass(frozen=True)
class RulePrompt:
    """How rules are asked for: which evidence is shown, by which templates, and with which settings."""

    reads: tuple[Section, ...]
    first: PromptTemplate
    mend: PromptTemplate
    config: ExplainConfig
    is_json: bool = False
    """Ask for nothing but a JSON object."""
    sends_seed: bool = True

    def missing(self, evidence: FeatureEvidence) -> str | None:
        """Which evidence is lacking to ask about the feature, in words; None where there is enough."""
        return lacking("rule", self.reads, evidence)

    def first_request(self, evidence: FeatureEvidence, contexts: int) -> Request:
        """The request for a rule, showing at most `contexts` contexts of each kind."""
        drawn = min(contexts, self.config.random_contexts)
        room = Room(contexts, drawn, self.config.negatives, LISTED)
        values: dict[str, Any] = {section.name: section.shown(evidence, room) for section in self.reads}
        return self._request(self.first, evidence, values)

    def mend_request(
        self, evidence: FeatureEvidence, label: str, clauses: Sequence[Clause], mistakes: Mistakes
    ) -> Request:
        """The request for a better rule. It holds the rule and its mistakes, and none of the evidence."""
        rule = {"clauses": [_shown(clause) for clause in clauses]}
        values = {
            "label": one_line(label), "rule": one_line(rule),
            "missed": mistakes.missed, "false_alarms": mistakes.false_alarms,
        }  # fmt: skip
        return self._request(self.mend, evidence, values)

    def _request(self, template: PromptTemplate, evidence: FeatureEvidence, values: dict[str, Any]) -> Request:
        fence = mark(self.config.seed, evidence.feature, values)
        messages = [
            {"role": "system", "content": template.block("system", json=self.is_json)},
            {"role": "user", "content": template.block("user", mark=fence, **values)},
        ]
        return self._sent(messages, evidence)

    def again(
        self, request: Request, template: PromptTemplate, reply: str, problem: str, evidence: FeatureEvidence
    ) -> Request:
        """The request that asks once more after a reply that cannot be read, and says why it cannot."""
        words = template.block("again", problem=one_line(problem)[1:-1])
        return self._sent(asked_again(request, reply, words), evidence)

    def _sent(self, messages: list[dict[str, str]], evidence: FeatureEvidence) -> Request:
        limit = max(self.config.max_tokens, REPLY_TOKENS)
        return ask_request(self.config, messages, limit, _FORM if self.is_json else None, self.sends_seed, evidence)

    def read(self, reply: str, near: NearWords) -> Proposal:
        """The label and the clauses in a reply. Raises ReplyError, which says what is wrong with it."""
        found = last_object(reply, lambda value: "clauses" in value)
        if found is None:
            raise ReplyError("unparseable", 'it holds no JSON object with "label" and "clauses"')
        label, output = (phrase_of(found.get(name)) for name in ("label", "output"))
        for text in (label, output):
            if text is not None and is_of_the_form(text, self.first.source):
                raise ReplyError("unparseable", f"{text!r} is made of words of the prompt's own form")
        if label is None and not found["clauses"]:
            return Proposal(None, (), output)
        if label is None:
            raise ReplyError("unparseable", '"label" is no phrase, though there are clauses')
        clauses, _ = clauses_in(found, near)
        return Proposal(label, tuple(clauses), output)


def _shown(clause: Clause) -> dict[str, Any]:
    """The clause as a prompt shows it: with one decimal of its strength, so that the request does not hang on the last
    bits of a fit, and without the words that `near` has found, which are found again."""
    shown = clause_to_json(replace(clause, strength=round(clause.strength, 1)))
    for condition in shown["all"]:
        for one in (condition, condition.get("not", {})):
            if "near" in one:
                del one["near"]["words"]
    return shown


@dataclass(frozen=True)
class RuleQuestion:
    """A question for `ask.question.ask`: the rule of one feature."""

    prompt: RulePrompt
    evidence: FeatureEvidence
    near: NearWords
    contexts: int
    """Shown at most, of each kind."""
    halvings: int = 2
    """How often the contexts may still be halved where the prompt is too long for the LLM."""

    @cached_property
    def request(self) -> Request:
        return self.prompt.first_request(self.evidence, self.contexts)

    def read(self, reply: Reply) -> Proposal:
        return self.prompt.read(reply.text, self.near)

    def again(self, reply: str, problem: str) -> Request:
        return self.prompt.again(self.request, self.prompt.first, reply, problem, self.evidence)

    def shorter(self) -> RuleQuestion | None:
        """The question with half of the contexts; None where it would be no shorter, or was halved often enough."""
        if self.contexts == 1 or self.halvings == 0:
            return None
        half = replace(self, contexts=(self.contexts + 1) // 2, halvings=self.halvings - 1)
        return None if half.request.sha256 == self.request.sha256 else half


@dataclass(frozen=True)
class MendQuestion:
    """A question for `ask.question.ask`: a better rule, in view of what the last one gets wrong."""

    prompt: RulePrompt
    evidence: FeatureEvidence
    near: NearWords
    label: str
    clauses: tuple[Clause, ...]
    """The last rule's, with the strengths that the data gave them."""
    mistakes: Mistakes

    @cached_property
    def request(self) -> Request:
        return self.prompt.mend_request(self.evidence, self.label, self.clauses, self.mistakes)

    def read(self, reply: Reply) -> Proposal:
        return self.prompt.read(reply.text, self.near)

    def again(self, reply: str, problem: str) -> Request:
        return self.prompt.again(self.request, self.prompt.mend, reply, problem, self.evidence)
