"""The question that `compile` asks: a label's words as a rule. No evidence is shown. No I/O here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from autointerp.ask.chat import ReplyError
from autointerp.ask.json_reply import last_object
from autointerp.ask.prompts import PromptTemplate, mark, one_line
from autointerp.config import ExplainConfig
from autointerp.explain.label_question import ask_request, asked_again
from autointerp.explain.rule_reply import REPLY_TOKENS, clauses_in, rule_format
from autointerp.llm.requests import Reply, Request
from autointerp.records import Explanation
from autointerp.rules.near import NearWords
from autointerp.rules.patterns import Rule

_FORM = rule_format()


@dataclass(frozen=True)
class CompilePrompt:
    """How rules are asked for: by which template, with which settings and near words."""

    template: PromptTemplate
    config: ExplainConfig
    near: NearWords
    is_json: bool = False
    """Ask for nothing but a JSON object."""
    sends_seed: bool = True

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
        words = self.template.block("again", problem=one_line(problem)[1:-1])
        return self._sent(asked_again(self.request(label), reply, words), label)

    def _sent(self, messages: list[dict[str, str]], label: Explanation) -> Request:
        limit = max(self.config.max_tokens, REPLY_TOKENS)
        return ask_request(self.config, messages, limit, _FORM if self.is_json else None, self.sends_seed, label)


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
        clauses, combine = clauses_in(found, self.prompt.near)
        return Rule(0.0, clauses=clauses, combine=combine)

    def again(self, reply: str, problem: str) -> Request:
        return self.prompt.again(self.label, reply, problem)
