"""Explainers that ask an LLM: build the question, read the label out of the reply. No I/O here.

Each shows one kind of evidence, and `combined` all of it in one prompt (the "raw ensemble" of Gur-Arieh et al. 2025):

    contexts            the strongest contexts with their activations (MaxAct; Bills et al. 2023)
    contrastive         the same, against silent contexts that look alike (hard negatives)
    pruned              the least text that keeps each peak, and what each token is worth (Foote et al. 2023)
    mutual_information  words tied to the feature, by its direction and by where it fires (Wu et al. 2025)
    vocab_projection    next tokens that its decoder row promotes and suppresses
    token_change        tokens that the model says more and less when it is clamped (Gur-Arieh et al. 2025)
    combined            all of that but the silent contexts, contexts drawn at random, and what came after the peaks

Every label says its side: the first four describe the input, the next two the output, and `combined` asks the LLM.
`revise` (see compose_run.py) shows a label's mistakes on held-out text of the select part beside the contexts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from autointerp.ask.chat import chat_body
from autointerp.ask.prompts import PromptTemplate, load_template, mark, one_line
from autointerp.ask.scale import TOP, shown
from autointerp.config import ExplainConfig
from autointerp.explain.label_replies import Label, Side, parse_label
from autointerp.llm.requests import Request
from autointerp.records import ChangedToken, Context, FeatureEvidence, PrunedContext

_READS: dict[str, tuple[str, ...]] = {
    "contexts": ("excerpts",),
    "pruned": ("pruned",),
    "vocab_projection": ("promoted", "suppressed"),
    "mutual_information": ("related_words", "input_words"),
    "token_change": ("raised", "lowered"),
    "contrastive": ("excerpts", "silent"),
    "combined": (
        "excerpts", "drawn", "pruned", "after_peaks", "promoted", "suppressed", "raised", "lowered", "related_words",
        "input_words", "is_output",
    ),
    "revise": ("excerpts",),
}  # fmt: skip
"""The sections of evidence that each template is given."""
LLM_EXPLAINERS = tuple(name for name in _READS if name != "revise")
SIDES: dict[str, Side] = {
    "contexts": "input", "pruned": "input", "contrastive": "input", "mutual_information": "input",
    "vocab_projection": "output", "token_change": "output",
}  # fmt: skip
"""What an explainer's labels describe; of the others the LLM says."""
MAX_LISTED = 15
"""Tokens or words shown of one kind among other evidence."""
MAX_LISTED_ALONE = 25
"""The same where there is nothing else."""


@dataclass(frozen=True)
class Correction:
    """What `revise` is shown: a label and the contexts of the select part on which it misled the judge."""

    label: str
    missed: Sequence[Context]
    """Active, judged silent."""
    false_alarms: Sequence[Context]
    """Silent, judged active."""


@dataclass(frozen=True)
class LlmExplainer:
    """Builds requests and reads replies for one of LLM_EXPLAINERS, or for `revise`."""

    name: str
    template: PromptTemplate
    config: ExplainConfig
    seed: int
    is_json: bool = False
    """Ask for a JSON object instead of a `LABEL:` line."""

    @classmethod
    def named(cls, name: str, config: ExplainConfig, seed: int, prompts: Path | None = None) -> LlmExplainer:
        return cls(name, load_template(f"explain/{name}", prompts), config, seed, config.reply == "json")

    def in_json(self, is_json: bool) -> LlmExplainer:
        return replace(self, is_json=is_json)

    @property
    def asks_side(self) -> bool:
        return self.name == "combined"

    def missing(self, evidence: FeatureEvidence) -> str | None:
        """Which evidence this explainer lacks to say anything of the feature, in words; None where it has enough."""
        reads = _READS[self.name]
        if "excerpts" in reads and not evidence.top:
            return "the explain split has no context of it"
        if "silent" in reads and not evidence.negatives:
            return "the explain split has no silent context of it"
        if "excerpts" not in reads and not any(_sections(self.name, evidence, 1, self.config).values()):
            return f"there is no evidence of the kind that {self.name!r} reads"
        return None

    def request(self, evidence: FeatureEvidence, contexts: int, correction: Correction | None = None) -> Request:
        """The question about one feature, showing at most `contexts` of its strongest contexts."""
        values = _sections(self.name, evidence, contexts, self.config)
        if correction is not None:
            scale = evidence.max_activation
            values["label"] = one_line(correction.label)
            values["missed"] = [one_line(pieces(c, scale)) for c in correction.missed]
            values["false_alarms"] = [one_line(c.text) for c in correction.false_alarms]
        fence = mark(self.seed, evidence.feature, values)
        messages = [
            {"role": "system", "content": self.template.block("system", json=self.is_json)},
            {"role": "user", "content": self.template.block("user", mark=fence, **values)},
        ]
        return self._request(messages, evidence, sample=0)

    def again(self, request: Request, reply: str, evidence: FeatureEvidence) -> Request:
        """Asks once more after a reply without a label, the reply shown."""
        messages = [
            *request.body["messages"],
            {"role": "assistant", "content": reply},
            {"role": "user", "content": self.template.block("again", json=self.is_json)},
        ]
        return self._request(messages, evidence, sample=request.sample)

    def _request(self, messages: list[dict[str, str]], evidence: FeatureEvidence, sample: int) -> Request:
        extra = {"response_format": response_format(self.asks_side)} if self.is_json else {}
        return Request(
            "chat",
            chat_body(self.config, messages, self.config.max_tokens, seed=self.seed, **extra),
            "explain",
            sample=sample,
            dictionary_id=evidence.dictionary_id,
            feature=evidence.feature,
        )

    def read(self, reply: str) -> Label:
        """The label in a reply with its side: the explainer's own where it has one, else what the reply says."""
        label = parse_label(reply)
        side = SIDES.get(self.name, label.side)
        return replace(label, side=side if label.status == "ok" else None)


def response_format(asks_side: bool) -> dict[str, Any]:
    """The schema of a reply, in the form in which OpenAI's and compatible endpoints take it."""
    properties: dict[str, Any] = {"label": {"type": ["string", "null"]}}
    if asks_side:
        properties = {"side": {"type": "string", "enum": ["input", "output", "both"]}, **properties}
    schema = {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip
    return {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": schema}}


# --- evidence as an LLM sees it -------------------------------------------------------------------------------------


def _sections(name: str, evidence: FeatureEvidence, contexts: int, config: ExplainConfig) -> dict[str, Any]:
    """What the template of explainer `name` is given: lines of JSON, empty where there is no evidence of the kind."""
    most = MAX_LISTED if name == "combined" else MAX_LISTED_ALONE
    chosen = evidence.top[:contexts]
    built: Mapping[str, Any] = {
        "excerpts": [one_line(pieces(c, evidence.max_activation)) for c in chosen],
        "drawn": [
            one_line(pieces(c, evidence.max_activation))
            for c in _drawn(evidence, chosen, min(contexts, config.random_contexts))
        ],
        "silent": [one_line(c.text) for c in hard_negatives(evidence.negatives, config.negatives)],
        "pruned": [_pruned(p) for p in evidence.pruned if p.status == "ok"][: max(1, contexts)],
        "after_peaks": _line(_after_peaks(chosen)),
        "promoted": _line([t.token for t in evidence.promoted[:most]]),
        "suppressed": _line([t.token for t in evidence.suppressed[:most]]),
        "raised": _line(_changed(evidence.changed, 1, most)),
        "lowered": _line(_changed(evidence.changed, -1, most)),
        "related_words": _line([w.word for w in evidence.related_words[:most]]),
        "input_words": _line([w.word for w in evidence.input_words[:most]]),
        "is_output": evidence.is_output,
    }
    return {section: built[section] for section in _READS[name]}


def _drawn(evidence: FeatureEvidence, shown_already: Sequence[Context], n: int) -> list[Context]:
    """`n` of the uniform samples of where the feature is active: the strongest contexts alone may be of one of its
    meanings only."""
    peaks = {(c.document, c.position) for c in shown_already}
    return [c for c in evidence.sampled if (c.document, c.position) not in peaks][:n]


def _line(values: Sequence[Any]) -> str:
    return one_line(list(values)) if values else ""


def pieces(context: Context, max_activation: float) -> list[str | list[str | int]]:
    """A context as the LLM sees it: silent stretches as strings, active tokens as [token, 1..10]."""
    return _joined(context.tokens, shown(context.activations, max_activation))


def _joined(tokens: Sequence[str], levels: Sequence[int]) -> list[str | list[str | int]]:
    out: list[str | list[str | int]] = []
    silent = ""
    for token, level in zip(tokens, levels, strict=True):
        if level == 0:
            silent += token
            continue
        if silent:
            out.append(silent)
            silent = ""
        out.append([token, level])
    return [*out, silent] if silent else out


def _pruned(pruned: PrunedContext) -> dict[str, str]:
    """A pruned context: `text` with the importance of each token, 1..10, and which substitutes it took or refused, as
    [token, substitute] pairs."""
    levels = [min(TOP, math.ceil(TOP * i - 1e-6)) if i > 0 else 0 for i in pruned.importance]
    tried = [(c.kept, [pruned.tokens[c.position], c.substitute]) for c in pruned.counterfactuals]
    return {
        "text": one_line(_joined(pruned.tokens, levels)),
        "kept": _line([pair for kept, pair in tried if kept]),
        "lost": _line([pair for kept, pair in tried if not kept]),
    }


def hard_negatives(negatives: Sequence[Context], n: int) -> list[Context]:
    """`n` silent contexts, those most like active ones first: where its neighbours fire and where its top tokens
    stand, in turn, then random ones."""

    def tier(name: str) -> list[Context]:
        return [c for c in negatives if (c.tier or "random") == name]

    pairs = zip_longest(tier("neighbour"), tier("same_token"))
    return [*(c for pair in pairs for c in pair if c is not None), *tier("random")][:n]


def _after_peaks(contexts: Sequence[Context]) -> list[str]:
    """The token after each context's strongest one, each once, in the contexts' order."""
    found = []
    for context in contexts:
        peak = max(range(len(context.tokens)), key=lambda i: context.activations[i])  # noqa: B023
        if peak + 1 < len(context.tokens):
            found.append(context.tokens[peak + 1])
    return list(dict.fromkeys(found))[:MAX_LISTED]


def _changed(tokens: Sequence[ChangedToken], sign: Literal[1, -1], most: int) -> list[str]:
    return [t.token for t in tokens if t.sign == sign][:most]
