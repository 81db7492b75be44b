"""A brain for the test server that knows what every label of the planted world means, and errs as often as it is told.

The rule of the label in a question is applied to the text shown, whatever the truth about the feature is: a near miss
is answered as someone would who believes it. With probability 1 - `quality` an answer is turned into its opposite, by a
hash of the text asked about and not of the label, so that two labels of one feature meet with the same mistakes:

    detection, fuzzing   yes for no
    simulation           silence where something fires; where nothing does, a full activation at one place
    explaining           the second-best label instead of the best

An answer to further templates is added as a handler: `oracle.handlers["words of its system prompt"] = function`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from interpret_fixtures import World
from llm_server import BrainReply, Fault
from planted_features import NEVER, Planted, Rule, labels_of

Handler = Callable[[dict[str, Any]], BrainReply | Fault]
_WORD = re.compile(r"\w+|[^\w\s]")


def words_in(text: str) -> list[str]:
    """Words and punctuation of a text."""
    return _WORD.findall(text)


class Oracle(World):
    """`quality`: probability of an answer as the label has it. `logprobs`: which ones the server gives, see World."""

    def __init__(
        self, features: Sequence[Planted], quality: float = 1.0, seed: int = 0, logprobs: tuple[str, ...] = ()
    ) -> None:
        super().__init__(predict=self._predict, choose=self._choose, logprobs=logprobs)
        self.rules: Mapping[str, Rule] = labels_of(features)
        self.quality, self.seed = quality, seed
        self.handlers: dict[str, Handler] = {"LABEL:": self._explain}
        """By a marker in the system prompt; asked before World's own templates."""

    def __call__(self, kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        if kind == "chat":
            system = body["messages"][0]["content"]
            for marker, handler in self.handlers.items():
                if marker in system:
                    return handler(body)
        return super().__call__(kind, body, attempt)

    def rule(self, label: str) -> Rule:
        """What a label stands for; one that is unknown says nothing."""
        return self.rules.get(label, NEVER)

    def draw(self, *question: Any) -> float:
        """0..1, the same for the same question."""
        digest = hashlib.sha256(json.dumps([self.seed, *question]).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    def errs(self, *question: Any) -> bool:
        return self.draw(*question) >= self.quality

    def _predict(self, label: str, tokens: list[str]) -> list[int]:
        numbers = [round(10 * s) for s in self.rule(label).strengths([token.strip() for token in tokens])]
        if not self.errs("simulation", tokens):
            return numbers
        silent = [0] * len(tokens)
        if not any(numbers):
            silent[int(self.draw("place", tokens) * len(tokens))] = 10
        return silent

    def _choose(self, label: str, question: str, pieces: list[Any]) -> bool:
        words: list[str] = []
        marked: list[int] = []
        for piece in pieces:
            found = words_in(piece if isinstance(piece, str) else piece[0])
            if not isinstance(piece, str):
                marked.extend(range(len(words), len(words) + len(found)))
            words.extend(found)
        fires = [s > 0 for s in self.rule(label).strengths(words)]
        fits = all(fires[i] for i in marked) if marked else any(fires)
        return fits != self.errs("choice", pieces)

    def _explain(self, body: dict[str, Any]) -> BrainReply:
        """The label whose rule agrees best (F1 over words) with the activity shown in an explainer's excerpts."""
        asked = body["messages"][1]["content"]
        excerpts = [json.loads(line) for line in asked.split("\n") if line.startswith("[")]
        texts: list[tuple[list[str], list[bool]]] = []
        for excerpt in excerpts:
            words: list[str] = []
            active: list[bool] = []
            for piece in excerpt:
                found = words_in(piece if isinstance(piece, str) else piece[0])
                words.extend(found)
                active.extend([not isinstance(piece, str)] * len(found))
            texts.append((words, active))
        ranked = sorted(self.rules, key=lambda label: -_agreement(self.rules[label], texts))
        return BrainReply(f"LABEL: {ranked[1 if self.errs('explain', asked) else 0]}")


def _agreement(rule: Rule, texts: Sequence[tuple[list[str], list[bool]]]) -> float:
    both = said = true = 0
    for words, active in texts:
        fires = [s > 0 for s in rule.strengths(words)]
        both += sum(f and a for f, a in zip(fires, active, strict=True))
        said, true = said + sum(fires), true + sum(active)
    return 2 * both / (said + true) if said + true else 0.0
