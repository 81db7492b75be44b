"""A brain for the test server that knows what every label of the planted world means, and errs at a chosen rate.

It applies the rule of the label in a question to the shown text, whatever the truth about the feature is, so it answers
a near miss like a reader who believes it. With probability 1 - `quality` an answer is turned into its opposite. That
depends on a hash of the text and not of the label, so that two labels of one feature meet equal mistakes:

    detection, fuzzing   yes for no
    simulation           silence where something fires; where nothing does, a full activation at one place
    explaining           the second-best label instead of the best
    embedding            a text without any word, whatever stands in it (a label is always understood)
    intruder, output     one of the others
    generation           a text of the other kind, by the text's number, since there is nothing else to hash

A handler answers a further template: `oracle.handlers["words of its system prompt"] = function`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from support.known_words import World
from support.llm_server import BrainReply, Fault
from support.planted_features import (
    ADJECTIVES,
    FUNCTION,
    NEVER,
    NOUNS,
    VERBS,
    VOCABULARY,
    Planted,
    Rule,
    labels_of,
    said_by,
)
from support.planted_reading import best_by_texts, best_by_words, breadth, listed_in, texts_in, words_in

Handler = Callable[[dict[str, Any]], BrainReply | Fault]
_ORDER = {word: i for i, word in enumerate(sorted(VOCABULARY))}
_TRIES = 10_000
"""Sentences that are tried before a rule counts as one that no text (or every text) fits."""


class Oracle(World):
    """`quality` is the probability that an answer follows the label. `logprobs` are those that the server gives (see
    World)."""

    def __init__(
        self, features: Sequence[Planted], quality: float = 1.0, seed: int = 0, logprobs: tuple[str, ...] = ()
    ) -> None:
        super().__init__(predict=self._predict, choose=self._choose, find=self._intruder, logprobs=logprobs)
        self.rules: Mapping[str, Rule] = labels_of(features)
        self.truths = [f.rules["truth"] for f in features if f.kind != "dead"]
        self.said = said_by(features)
        self.quality, self.seed = quality, seed
        self.handlers: dict[str, Handler] = {
            "You study one feature": self._explain,
            "what a push did": self._which_label,
            "You write test texts": self._write,
        }
        """Handlers by a marker in the system prompt. They are tried before World's own templates."""

    def __call__(self, kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        if kind == "embeddings":
            return BrainReply("", vectors=[self._vector(text) for text in body["input"]])
        if kind == "chat":
            system = body["messages"][0]["content"]
            for marker, handler in self.handlers.items():
                if marker in system:
                    return handler(body)
        return super().__call__(kind, body, attempt)

    def rule(self, label: str) -> Rule:
        """The rule of a label. An unknown label has a rule that says nothing."""
        return self.rules.get(label, NEVER)

    def named(self, label: str) -> tuple[str, ...]:
        """The words that an input or output label names; empty if it is about places or about all words."""
        if label in self.said:
            return self.said[label]
        rule = self.rule(label)
        return tuple(w for w in (*(rule.words or ()), *(rule.after or ())) if w in VOCABULARY)

    def draw(self, *question: Any) -> float:
        """A number 0..1 that depends only on the question."""
        digest = hashlib.sha256(json.dumps([self.seed, *question]).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    def errs(self, *question: Any) -> bool:
        return self.draw(*question) >= self.quality

    def _instead(self, right: int, n: int, *question: Any) -> int:
        """A number in 0..n-1: `right`, or another one if the oracle errs."""
        if n < 2 or not self.errs(*question):
            return right
        return (right + 1 + int(self.draw("instead", *question) * (n - 1))) % n

    # --- judging -----------------------------------------------------------------------------------------------------

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

    def _intruder(self, texts: list[str]) -> int:
        """The one text that lacks what all others have, by the narrowest known rule that tells them apart, or else the
        text that shares the fewest of the others' words."""
        words = [words_in(text) for text in texts]
        odd = [(breadth(rule), found) for rule in self.truths if (found := _lacking(rule, words)) is not None]
        if odd:
            right = min(odd)[1]
        else:
            sets = [set(w) - FUNCTION for w in words]
            shared = Counter(word for one in sets for word in one)
            right = min(range(len(sets)), key=lambda i: sum(shared[word] - 1 for word in sets[i]))
        return self._instead(right, len(texts), "intruder", texts)

    def _which_label(self, body: dict[str, Any]) -> BrainReply:
        """The label of whose words steering brought the most, or any label if it brought none."""
        lines = body["messages"][1]["content"].split("\n")
        texts = [json.loads(line) for line in lines if line.startswith("{")]
        labels = [json.loads(line.split(": ", 1)[1]) for line in lines if line[:1].isdigit()]
        count = {k: Counter(w for text in texts for w in words_in(text[k])) for k in ("as usual", "changed")}
        brought = [sum(count["changed"][w] - count["as usual"][w] for w in self.named(label)) for label in labels]
        most = max(brought)
        best = [i for i, n in enumerate(brought) if n == most] if most > 0 else list(range(len(labels)))
        right = best[int(self.draw("equal", texts, labels) * len(best))]
        return BrainReply(json.dumps({"answer": 1 + self._instead(right, len(labels), "output", texts, labels)}))

    # --- embedding ---------------------------------------------------------------------------------------------------

    def _vector(self, text: str) -> list[float]:
        """A bag of words. A query counts as the words that its label names.

        A text and a query that share no word have the cosine 0, whatever else they hold, so such texts are ties. Each
        of the two has an axis of its own, so that none is empty."""
        _, is_query, label = text.partition("\nQuery: ")
        words = self.named(label.strip()) if is_query else () if self.errs("embedding", text) else words_in(text)
        vector = [0.0] * (len(_ORDER) + 2)
        vector[-2 if is_query else -1] = 0.1
        for word in words:
            if word in _ORDER:
                vector[_ORDER[word]] += 1.0
        return vector

    # --- writing -----------------------------------------------------------------------------------------------------

    def _write(self, body: dict[str, Any]) -> BrainReply:
        lines = body["messages"][1]["content"].split("\n")
        label = json.loads(lines[0].removeprefix("description: "))
        count = int(lines[1].rsplit(" ", 1)[1])
        rule, texts = self.rule(label), {}
        for kind in (True, False):
            draw = random.Random(f"{self.seed} {label} {kind}")
            texts["active" if kind else "silent"] = [
                sentence(rule, kind != self.errs("generation", kind, i), i, draw) for i in range(count)
            ]
        draw = random.Random(f"{self.seed} {label} lookalike")
        texts["lookalike"] = [sentence(rule, self.errs("generation", "lookalike", i), i, draw) for i in range(count)]
        return BrainReply(json.dumps(texts))

    def _explain(self, body: dict[str, Any]) -> BrainReply:
        """The label that best fits what is shown. If there are excerpts, they decide, and the label is of the input."""
        asked = body["messages"][1]["content"]
        texts, where = texts_in(asked), listed_in(asked, "where it is active", "words where it is active")
        if texts:
            ranked = best_by_texts(self.rules, texts, where)
        elif heard := listed_in(asked, "promoted", "said more"):
            ranked = best_by_words(self.said, heard)
            if not set(self.said[ranked[0]]) & set(heard[:4]):
                ranked = ["no pattern"] * 2
        else:
            words = where or listed_in(asked, "tied to its direction")
            ranked = best_by_words({label: self.named(label) for label in self.rules}, words)
            if not words:  # all that is promoted recurs in the lists of many features, so it is not shown
                ranked = ["no pattern"] * 2
        label = ranked[1 if self.errs("explain", asked) else 0]
        return BrainReply(f"SIDE: {'output' if label in self.said else 'input'}\nLABEL: {label}")


def _lacking(rule: Rule, texts: Sequence[Sequence[str]]) -> int | None:
    """The only text that does not fit the rule; None if there are several such texts, or none."""
    silent = [i for i, words in enumerate(texts) if not any(rule.strengths(words))]
    return silent[0] if len(silent) == 1 else None


def sentence(rule: Rule, is_active: bool, number: int, draw: random.Random) -> str:
    """A short text that fits the rule (`is_active`), or that does not. The latter may hold the word that must come
    before, or the rule's words without it. If there is no such text, any text."""
    named = sorted(rule.words or ())
    for _ in range(_TRIES if rule.first is None else 1):
        subject, verb, noun = draw.choice(NOUNS), draw.choice(VERBS), draw.choice(NOUNS)
        before = draw.choice(ADJECTIVES)
        if is_active or rule.after is not None:
            noun = named[number % len(named)] if named else noun
        if is_active and rule.after is not None:
            before = draw.choice(sorted(rule.after & VOCABULARY) or [before])
        article = "the" if draw.random() < 0.5 else "a"
        # Without determiners where the rule is about them.
        words = (
            [subject, verb, before, noun]
            if not is_active
            and named
            and set(named) & FUNCTION
            or (not is_active and rule.after is not None and rule.after & FUNCTION)
            else ["every", subject, verb, article, before, noun]
        )
        if any(rule.strengths(words)) == is_active:
            break
    return " ".join(words)
