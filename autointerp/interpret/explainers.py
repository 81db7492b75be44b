"""Explainers that ask an LLM: build the question, read the label out of the reply. No I/O here.

`contexts` shows the strongest contexts with their activations (MaxAct; Bills et al. 2023). `combined` adds what the
feature promotes and what came after its peaks in the same prompt (the "raw ensemble" of Gur-Arieh et al. 2025).
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autointerp.config import EndpointConfig
from autointerp.interpret.prompts import PromptTemplate, load_template, mark, one_line
from autointerp.interpret.scale import shown
from autointerp.llm.requests import Request
from autointerp.records import Context, ExplanationStatus, FeatureEvidence, PromotedToken

LLM_EXPLAINERS = ("contexts", "combined")
MAX_LABEL = 300
"""Characters."""
MAX_LISTED = 15
"""Promoted, suppressed and following tokens shown."""


@dataclass(frozen=True)
class Label:
    """What was read from a reply: a text where status is 'ok', none otherwise."""

    status: ExplanationStatus
    text: str | None = None


@dataclass(frozen=True)
class LlmExplainer:
    """Builds requests and reads replies for one of LLM_EXPLAINERS."""

    name: str
    template: PromptTemplate
    endpoint: EndpointConfig
    seed: int

    @classmethod
    def named(cls, name: str, endpoint: EndpointConfig, seed: int, prompts: Path | None = None) -> LlmExplainer:
        return cls(name, load_template(f"explain/{name}", prompts), endpoint, seed)

    def request(self, evidence: FeatureEvidence, contexts: int) -> Request:
        """The question about one feature, showing at most `contexts` of its strongest contexts."""
        chosen = evidence.top[:contexts]
        values: dict[str, Any] = {"excerpts": [one_line(pieces(c, evidence.max_activation)) for c in chosen]}
        if self.name == "combined":
            values["after_peaks"] = one_line(_after_peaks(chosen))
            values["promoted"] = one_line(_listed(evidence.promoted))
            values["suppressed"] = one_line(_listed(evidence.suppressed))
        fence = mark(self.seed, evidence.feature, values)
        messages = [
            {"role": "system", "content": self.template.block("system")},
            {"role": "user", "content": self.template.block("user", mark=fence, **values)},
        ]
        return self._request(messages, evidence, sample=0)

    def again(self, request: Request, reply: str, evidence: FeatureEvidence) -> Request:
        """Asks once more after a reply without a label, the reply shown."""
        messages = [
            *request.body["messages"],
            {"role": "assistant", "content": reply},
            {"role": "user", "content": self.template.block("again")},
        ]
        return self._request(messages, evidence, sample=request.sample)

    def _request(self, messages: list[dict[str, str]], evidence: FeatureEvidence, sample: int) -> Request:
        return Request(
            "chat",
            chat_body(self.endpoint, messages, self.endpoint.max_tokens, seed=self.seed),
            "explain",
            sample=sample,
            dictionary_id=evidence.dictionary_id,
            feature=evidence.feature,
        )


def chat_body(
    endpoint: EndpointConfig, messages: list[dict[str, str]], max_tokens: int, seed: int = 0, **extra: Any
) -> dict[str, Any]:
    """The JSON body of a chat request. A seed other than 0 is sent: another seed is another sample."""
    body: dict[str, Any] = {"model": endpoint.model, "messages": messages, endpoint.max_tokens_field: max_tokens}
    if endpoint.temperature is not None:
        body["temperature"] = endpoint.temperature
    if seed:
        body["seed"] = seed
    return {**body, **extra}


def pieces(context: Context, max_activation: float) -> list[str | list[str | int]]:
    """A context as the LLM sees it: silent stretches as strings, active tokens as [token, 1..10]."""
    out: list[str | list[str | int]] = []
    silent = ""
    for token, level in zip(context.tokens, shown(context.activations, max_activation), strict=True):
        if level == 0:
            silent += token
            continue
        if silent:
            out.append(silent)
            silent = ""
        out.append([token, level])
    return [*out, silent] if silent else out


def _after_peaks(contexts: Sequence[Context]) -> list[str]:
    """The token after each context's strongest one, each once, in the contexts' order."""
    found = []
    for context in contexts:
        peak = max(range(len(context.tokens)), key=lambda i: context.activations[i])  # noqa: B023
        if peak + 1 < len(context.tokens):
            found.append(context.tokens[peak + 1])
    return list(dict.fromkeys(found))[:MAX_LISTED]


def _listed(tokens: Sequence[PromotedToken]) -> list[str]:
    return [t.token for t in tokens[:MAX_LISTED]]


_MARKER = re.compile(r"^[ \t>*_#`]*label[*_`]*[ \t]*:[*_`]*(.*)$", re.IGNORECASE | re.MULTILINE)
_URL = re.compile(r"\b(?:https?|ftp)://\S+|\bwww\.\S+", re.IGNORECASE)
_ABSTAINED = re.compile(
    r"(?:no (?:(?:clear|single|common|consistent|obvious|discernible) )?pattern|none|n/?a|unclear|cannot tell)\.?",
    re.IGNORECASE,
)


def parse_label(reply: str) -> Label:
    """The label in a reply: what the last `LABEL:` line holds, cleaned (see `clean_label`).

    Status 'abstained' where the LLM says that there is no pattern, 'unparseable' where no line holds a phrase.
    """
    found = _MARKER.findall(reply)
    text = clean_label(found[-1]) if found else ""
    if not text:
        return Label("unparseable")
    if _ABSTAINED.fullmatch(text):
        return Label("abstained")
    return Label("ok", text)


def clean_label(text: str) -> str:
    """One line of at most MAX_LABEL characters without control characters, URLs, or marks and quotes around it."""
    text = _URL.sub("", text)
    text = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    text = re.sub(r" +", " ", text).strip(" *_")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`" and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1].strip()
    if len(text) > MAX_LABEL:
        text = text[: MAX_LABEL - 1].rsplit(" ", 1)[0].rstrip(" ,;:") + "…"
    return text


def evidence_sha256(evidence: FeatureEvidence, contexts: int | None = None) -> str:
    """Of what an explainer reads: the first `contexts` of each kind (None: all), and the token lists."""

    def part(of: Sequence[Context]) -> list[Any]:
        return [[c.document, c.position, c.tokens, [round(a, 6) for a in c.activations]] for c in of[:contexts]]

    tokens = [[t.token, t.rank, t.sign] for t in (*evidence.promoted, *evidence.suppressed)]
    seen = [part(evidence.top), part(evidence.sampled), part(evidence.negatives), tokens]
    return hashlib.sha256(json.dumps(seen, ensure_ascii=True).encode()).hexdigest()
