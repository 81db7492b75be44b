"""The rule language the plain way: every condition asked of every token, as its definition reads. Slow and short, it is
what the matcher must agree with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

import re2

from autointerp.records import Begins
from autointerp.rules.language.classes import in_class
from autointerp.rules.language.conditions import (
    Classes,
    Clause,
    Condition,
    Inside,
    Left,
    Near,
    Not,
    Regex,
    Starts,
    Strings,
    Topic,
    fold,
    normalised,
)
from autointerp.rules.language.inflections import forms_of
from autointerp.rules.language.nesting import marks_of, read_marks
from autointerp.rules.token_facts import facts_of

CLOSING = {"(": ")", "[": "]", "{": "}"}


class PlainText:
    def __init__(self, tokens: Sequence[str], begins: Begins | None = None) -> None:
        self.tokens, self.begins, self.facts = list(tokens), begins, facts_of(tokens)

    def predict(self, clauses: Sequence[Clause], combine: str) -> list[float]:
        together = {"max": lambda found: max(found, default=0.0), "sum": sum}[combine]
        return [
            min(10.0, together([c.strength for c in clauses if all(self.holds(one, i) for one in c.conditions)]))
            for i in range(len(self.tokens))
        ]

    def holds(self, condition: Condition, i: int) -> bool:
        match condition:
            case Not(inner):
                return not self.holds(inner, i)
            case Left(test, within):
                return any(self.holds(test, k) for k in range(max(0, i - within), i))
            case Starts(of):
                return any(self.starts(what, i) for what in of)
            case Inside(of):
                return any(self.inside(what, i) for what in of)
            case Topic(test, least):
                return len(self.topics(test)) >= least
            case Near(_, _, words):
                return self.holds(Strings("word", words), i)
            case Classes(of):
                return any(self.in_class(name, i) for name in of)
            case Regex(pattern):
                texts = {self.tokens[i].strip(), self.facts[i].word.strip()}
                return any(re2.compile(pattern).fullmatch(text) is not None for text in texts)
            case Strings(key, of):
                return self.is_one(key, of, i)

    def is_one(self, key: str, of: Sequence[str], i: int) -> bool:
        token, word = self.tokens[i], fold(self.facts[i].word)
        match key:
            case "token":
                return fold(token) in of
            case "exact":
                return normalised(token) in of
            case "prefix":
                return any(word.startswith(prefix) for prefix in of)
            case "suffix":
                return any(word.endswith(suffix) for suffix in of)
        words = set(of) if key == "word" else {form for one in of for form in forms_of(one)}
        has_signs = bool(re.search(r"\w", token)) and not re.fullmatch(r"\w+", token.strip())
        return word in words or (has_signs and fold(token) in words)

    def continues(self, i: int) -> bool:
        joins = re.fullmatch(r"\w+ ?", self.tokens[i])
        return i > 0 and bool(joins) and bool(re.search(r"\w\Z", self.tokens[i - 1]))

    def in_class(self, name: str, i: int) -> bool:
        if name in ("word", "piece") and (name == "piece") != self.continues(i):
            return False
        return in_class(name)(self.tokens[i])

    def starts(self, what: str, i: int) -> bool:
        if not self.tokens[i].strip():
            return False
        if what == "line" and re.search(r"\n\s*\S", self.tokens[i]):
            return True
        before = "".join(self.tokens[:i])
        last = re.search(r"(\n?)[^\S\n]*\Z" if what == "line" else r"()\s*\Z", before)
        if what == "line" and last is not None and last.group(1):
            return True
        begins = ("document",) if what in ("document", "line") else ("document", "window")
        return not before.strip() and self.begins in begins

    def inside(self, what: str, i: int) -> bool:
        if what in ("quote", "comment"):
            return self.quoted[i] == (1 if what == "quote" else 2)
        opened = 0
        for token in self.tokens[:i]:
            for c in token:
                opened = opened + 1 if c == what else max(0, opened - 1) if c == CLOSING[what] else opened
        for c in self.tokens[i]:
            opened = 0 if not opened else opened + (c == what) - (c == CLOSING[what])
        return opened > 0

    @cached_property
    def quoted(self) -> list[int]:
        """Of each token, 1 inside a quote, 2 in a comment. What a mark does, nesting.py says, and examples check."""
        state, last, found = "", "", []
        for token in self.tokens:
            marks = marks_of(token)
            inside, state = read_marks(marks, state, after_word=bool(re.search(r"\w\Z", last)))
            found.append(inside)
            last = token
        return found

    def topics(self, test: Strings | Regex) -> set[str]:
        every = range(len(self.tokens))
        if isinstance(test, Regex):
            return {fold(self.tokens[i]) for i in every if self.holds(test, i)}
        whole = [i for i in every if i + 1 == len(self.tokens) or not self.continues(i + 1)]
        signs = [i for i in every if i not in whole]
        return {word for word in test.of if any(self.holds(Strings(test.key, (word,)), i) for i in whole)} | {
            word
            for word in test.of
            for i in signs
            if not re.fullmatch(r"\w+", self.tokens[i].strip()) and self.is_sign(test.key, word, i)
        }

    def is_sign(self, key: str, word: str, i: int) -> bool:
        """Whether the token as a whole is the word, though a word goes on behind it."""
        words = {word} if key == "word" else forms_of(word)
        return bool(re.search(r"\w", self.tokens[i])) and fold(self.tokens[i]) in words
