"""The question that an LLM explainer asks about one feature, and how its reply is read. No I/O here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from autointerp.ask.beginnings import plain_excerpt
from autointerp.ask.chat import ReplyError, chat_body
from autointerp.ask.prompts import PromptTemplate, mark, one_line
from autointerp.config import ExplainConfig
from autointerp.explain.evidence_sections import Room, Section, lacking
from autointerp.explain.excerpts import excerpt
from autointerp.explain.format_words import is_of_the_form
from autointerp.explain.label_replies import Label, parse_label, parse_meanings
from autointerp.llm.requests import Reply, Request
from autointerp.records import Context, Explanation, FeatureEvidence, Side

Answers = Literal["label", "meanings"]
"""What an explainer asks for: one phrase, or the input side and the output side apart, with a second meaning."""
_LARGEST_SAMPLE = 2**31 - 1
"""The ledger numbers samples by integers of 32 bits."""


@dataclass(frozen=True)
class Correction:
    """What `revise` is shown: a label and the contexts of the select part on which it misled the judge."""

    label: str
    missed: Sequence[Context]
    """Active contexts that were judged silent."""
    false_alarms: Sequence[Context]
    """Silent contexts that were judged active."""


@dataclass(frozen=True)
class LabelPrompt:
    """One way to ask for a label: which evidence is shown, by which template, and with which settings."""

    name: str
    """The explainer's name."""
    reads: tuple[Section, ...]
    side: Side | None
    """What its labels describe; None: the LLM is asked."""
    listed: int
    """Tokens or words shown of one kind."""
    template: PromptTemplate
    config: ExplainConfig
    answers: Answers = "label"
    is_json: bool = False
    """Ask for a JSON object instead of lines such as `LABEL:`."""
    sends_seed: bool = True
    """Whether the seed is sent, unless it is 0. Without it a sample has its own number in the ledger, and is drawn by
    the temperature alone."""

    def missing(self, evidence: FeatureEvidence) -> str | None:
        """Which evidence is lacking to ask about the feature, in words; None where there is enough."""
        return lacking(self.name, self.reads, evidence)

    def request(self, evidence: FeatureEvidence, contexts: int, correction: Correction | None = None) -> Request:
        """The request about one feature, showing at most `contexts` of its strongest contexts."""
        room = Room(contexts, self.config.random_contexts, self.config.negatives, self.listed)
        values: dict[str, Any] = {section.name: section.shown(evidence, room) for section in self.reads}
        if correction is not None:
            scale = evidence.max_activation
            values["label"] = one_line(correction.label)
            values["missed"] = [excerpt(c, scale) for c in correction.missed]
            values["false_alarms"] = [one_line(plain_excerpt(c)) for c in correction.false_alarms]
        fence = mark(self.config.seed, evidence.feature, values)
        messages = [
            {"role": "system", "content": self.template.block("system", json=self.is_json)},
            {"role": "user", "content": self.template.block("user", mark=fence, **values)},
        ]
        return self._request(messages, evidence)

    def again(self, request: Request, reply: str, evidence: FeatureEvidence) -> Request:
        """The request that asks once more after a reply without a label, and shows that reply."""
        words = self.template.block("again", json=self.is_json)
        return self._request(asked_again(request, reply, words), evidence)

    def _request(self, messages: list[dict[str, str]], evidence: FeatureEvidence) -> Request:
        form = response_format(self.answers, self.side is None) if self.is_json else None
        return ask_request(self.config, messages, self.config.max_tokens, form, self.sends_seed, evidence)

    def read(self, reply: str) -> Label:
        """The label in a reply with its side: the explainer's own where it has one, else what the reply says. Words of
        the template's own form are no label."""
        label = parse_meanings(reply) if self.answers == "meanings" else parse_label(reply)
        if label.text is None:
            return label
        if self._is_form(label.text):
            return Label("unparseable", error=f"{label.text!r} is made of words of the prompt's own form")
        if self._is_form(label.second_text):
            label = replace(label, second_text=None, second_share=None)
        if self._is_form(label.output_text):
            label = replace(label, output_text=None)
        return label if self.side is None else replace(label, side=self.side)

    def _is_form(self, text: str | None) -> bool:
        return text is not None and is_of_the_form(text, self.template.source)


@dataclass(frozen=True)
class LabelQuestion:
    """A question for `ask.question.ask`: the label of one feature."""

    prompt: LabelPrompt
    evidence: FeatureEvidence
    contexts: int
    """Shown at most, of each kind."""
    correction: Correction | None = None
    halvings: int = 2
    """How often the contexts may still be halved where the prompt is too long for the LLM."""

    @cached_property
    def request(self) -> Request:
        return self.prompt.request(self.evidence, self.contexts, self.correction)

    def read(self, reply: Reply) -> Label:
        """Raises ReplyError where the reply holds no label. An abstention is one."""
        label = self.prompt.read(reply.text)
        if label.status == "unparseable":
            raise ReplyError(label.status, label.error or f"no label in the reply {reply.text[:200]!r}")
        return label

    def again(self, reply: str, problem: str) -> Request:
        return self.prompt.again(self.request, reply, self.evidence)

    def shorter(self) -> LabelQuestion | None:
        """The question with half of the contexts; None where it would be no shorter, or was halved often enough."""
        if self.contexts == 1 or self.halvings == 0:
            return None
        half = replace(self, contexts=(self.contexts + 1) // 2, halvings=self.halvings - 1)
        return None if half.request.sha256 == self.request.sha256 else half


def ask_request(
    config: ExplainConfig, messages: list[dict[str, str]], max_tokens: int, form: dict[str, Any] | None,
    sends_seed: bool, about: FeatureEvidence | Explanation,
) -> Request:  # fmt: skip
    """The request of an explainer about one feature. `form`: the schema of the reply, where it is to be JSON. Where the
    seed is not sent, the sample has its own number in the ledger."""
    extra = {} if form is None else {"response_format": form}
    seed, sample = (config.seed, 0) if sends_seed else (0, config.seed & _LARGEST_SAMPLE)
    body = chat_body(config, messages, max_tokens, seed=seed, **extra)
    return Request("chat", body, "explain", sample=sample, dictionary_id=about.dictionary_id, feature=about.feature)


def asked_again(request: Request, reply: str, words: str) -> list[dict[str, str]]:
    """The messages of a request, the reply to it that cannot be used, and the words that ask once more."""
    return [
        *request.body["messages"],
        {"role": "assistant", "content": reply},
        {"role": "user", "content": words},
    ]


def response_format(answers: Answers, asks_side: bool) -> dict[str, Any]:
    """The schema of a reply, in the form in which OpenAI's and compatible endpoints take it."""
    text, number = {"type": ["string", "null"]}, {"type": ["number", "null"]}
    properties: dict[str, Any]
    if answers == "meanings":
        properties = {"input": text, "share": number, "second": text, "second_share": number, "output": text}
    elif asks_side:
        properties = {"side": {"type": "string", "enum": ["input", "output", "both"]}, "label": text}
    else:
        properties = {"label": text}
    schema = {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip
    return {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": schema}}
