"""An LLM that knows all rules of the rule world (rule_world.py) and nothing of which feature it is asked about: it
reads the texts that a prompt shows, and answers with the rule that fits them best."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autointerp.rules.many_texts import ManyTexts
from support.llm_server import BrainReply
from support.rule_world import FEATURES, RuleFeature, held

_TOKENS = re.compile(r" ?\w+| ?[^\w\s]|\n")
Shown = tuple[list[str], list[bool], str | None]
"""The tokens of a text, on which of them the feature is active, and what it begins."""


def shown_texts(prompt: str) -> list[Shown]:
    """All texts of a prompt in JSON lines: pairs [token, n] and triples [token, n, predicted]."""
    found: list[Shown] = []
    for line in prompt.split("\n"):
        if not line.startswith("["):
            continue
        tokens: list[str] = []
        active: list[bool] = []
        begins = None
        for piece in json.loads(line):
            if isinstance(piece, dict):
                begins = piece["begins"]
                continue
            text, level = (piece, 0) if isinstance(piece, str) else piece[:2]
            new = _TOKENS.findall(text) if isinstance(piece, str) else [text]
            tokens += new
            active += [level > 0] * len(new)
        if tokens:
            found.append((tokens, active, begins))
    return found


def agreement(clauses: list[dict[str, Any]], texts: Sequence[Shown]) -> float:
    """The share of tokens on which a rule holds where the feature is active and nowhere else, where active tokens count
    as much as all others together."""
    many = ManyTexts([tokens for tokens, _, _ in texts], [begins for _, _, begins in texts])  # type: ignore[misc]
    says = held(clauses, many) > 0
    truth = np.concatenate([active for _, active, _ in texts])
    parts = [float((says[of] == truth[of]).mean()) for of in (truth, ~truth) if of.any()]
    return sum(parts) / len(parts)


def label_in(prompt: str) -> str:
    return next((json.loads(line[7:]) for line in prompt.split("\n") if line.startswith('label: "')), "")


class RuleOracle:
    """Answers with the rule of this quality first, and in later rounds with what fits the mistakes that it is shown.

    `stubborn`: it answers every round with the first rule. `spoil` may replace a reply."""

    def __init__(
        self, quality: str = "truth", stubborn: bool = False,
        spoil: Callable[[str, dict[str, Any], int], Any] = lambda kind, body, attempt: None,
    ) -> None:  # fmt: skip
        self.quality, self.stubborn, self.spoil = quality, stubborn, spoil

    def __call__(self, kind: str, body: dict[str, Any], attempt: int) -> Any:
        spoiled = self.spoil(kind, body, attempt)
        if spoiled is not None:
            return spoiled
        system, asked = (message["content"] for message in body["messages"][:2])
        texts = shown_texts(asked)
        if "You study one feature" in system:
            feature = max(FEATURES, key=lambda one: agreement(one.truth, texts))
            return BrainReply(f"They share something.\n{feature.reply(self.quality)}")
        before = label_in(asked)
        own = next(one for one in FEATURES if before.endswith(f" of {one.kind}"))
        if self.stubborn:
            return BrainReply(own.reply(self.quality))

        def fit(candidate: tuple[RuleFeature, str]) -> tuple[float, bool]:
            feature, quality = candidate
            return agreement(feature.rule(quality), texts), feature is own

        every = [(feature, quality) for feature in FEATURES for quality in ("near_miss", "truth", "wrong")]
        feature, quality = max(every, key=fit)
        return BrainReply(feature.reply(quality))
