"""The question that `compile` asks: a label's words as a rule. No evidence is shown. No I/O here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from autointerp.ask.chat import ReplyError, chat_body
from autointerp.ask.json_reply import last_object
from autointerp.ask.prompts import PromptTemplate, mark, one_line
from autointerp.config import ExplainConfig
from autointerp.explain.label_question import ask_request
from autointerp.llm.requests import Reply, Request
from autointerp.records import Explanation
from autointerp.rules.language.parsing import RuleError, clauses_of
from autointerp.rules.near import NearWords
from autointerp.rules.patterns import Rule

REPLY_TOKENS = 900
"""A rule with long lists of words takes so many tokens; `explain.max_tokens` counts where it is more."""


@dataclass(frozen=True)
class CompilePrompt:
    """How rules are asked for: by which template, with which settings and near words."""

    template: PromptTemplate
    config: ExplainConfig
    near: NearWords
    is_json: bool = False
    """Ask for nothing but a JSON object."""
    sends_seed: bool = True

    def taken(self, is_json: bool, sends_seed: bool) -> CompilePrompt:
        """In the form that an endpoint takes."""
        return replace(self, is_json=is_json, sends_seed=sends_seed)

    def request(self, label: Explanation) -> Request:
        values = {"label": one_line(label.text), "second": one_line(label.second_text) if label.second_text else None}
        fence = mark(self.config.seed, label.feature, values)
        messages = [
            {"role": "system", "content": self.template.block("system", json=self.is_json, near=bool(self.near))},
            {"role": "user", "content": self.template.block("user", mark=fence, **values)},
        ]
        return self._sent(messages, label)

    def again(self, label: Explanation, reply: str, problem: str) -> Request:
        """The request that asks once more after a reply that cannot be read, and says why it cannot."""
        messages = [
            *self.request(label).body["messages"],
            {"role": "assistant", "content": reply},
            {"role": "user", "content": self.template.block("again", problem=one_line(problem)[1:-1])},
        ]
        return self._sent(messages, label)

    def _sent(self, messages: list[dict[str, str]], label: Explanation) -> Request:
        extra = {"response_format": _RESPONSE_FORMAT} if self.is_json else {}
        limit = max(self.config.max_tokens, REPLY_TOKENS)
        seed = self.config.seed if self.sends_seed else 0
        body = chat_body(self.config, messages, limit, seed=seed, **extra)
        return ask_request(body, self.config, self.sends_seed, label.dictionary_id, label.feature)


@dataclass(frozen=True)
class CompileQuestion:
    """A question for `ask.question.ask`: the rule that says what one label says."""

    prompt: CompilePrompt
    label: Explanation

    @cached_property
    def request(self) -> Request:
        return self.prompt.request(self.label)

    def read(self, reply: Reply) -> Rule | None:
        """None where the LLM says that nothing of the label can be seen in a text. Raises ReplyError."""
        found = last_object(reply.text, lambda value: "clauses" in value)
        if found is None:
            raise ReplyError("unparseable", 'it holds no JSON object with "clauses"')
        if found["clauses"] == []:
            return None
        try:
            told = {name: found[name] for name in ("clauses", "combine") if name in found}
            clauses, combine = clauses_of(told, self.prompt.near)
        except RuleError as error:
            raise ReplyError("unparseable", str(error)) from None
        return Rule(0.0, clauses=clauses, combine=combine)

    def again(self, reply: str, problem: str) -> Request:
        return self.prompt.again(self.label, reply, problem)


def _response_format() -> dict[str, Any]:
    """The outline of a rule. Conditions have too many forms for the schemas that endpoints take, so these are left open
    and checked when they are read."""
    clause = {
        "type": "object",
        "properties": {
            "says": {"type": "string"}, "strength": {"type": "number"},
            "all": {"type": "array", "items": {"type": "object"}},
        },
        "required": ["says", "strength", "all"],
    }  # fmt: skip
    properties = {"clauses": {"type": "array", "items": clause}, "combine": {"type": "string", "enum": ["max", "sum"]}}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "json_schema", "json_schema": {"name": "rule", "strict": False, "schema": schema}}


_RESPONSE_FORMAT = _response_format()
