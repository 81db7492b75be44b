"""Reads an explainer's prompt as a reader who knows every label of the planted world, and finds the best label.

    excerpts          pairs are active, strings are silent
    silent excerpts   plain strings, or pairs with 0
    cut texts         the last token is active, whatever was needed before it; a replacement is one more text, active at
                      its end or not at all
    lists of tokens   what is promoted or said more, and words; matched with the words that a label names

If several labels fit the texts equally well, the one that accounts for most of the words where the feature is active
wins, then the narrowest, as the prompts ask for. Needs no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from support.planted_features import Rule
from support.shown_excerpts import pieces_of

_WORD = re.compile(r"\w+|[^\w\s]")
Text = tuple[list[str], list[bool]]
"""The words of a text, and on which of them the feature is active."""
_SECTIONS = {
    "Excerpts,": "active", "excerpts:": "active", "active:": "active", "drawn,": "active",
    "the same token, silent here:": "active", "silent:": "silent", "Cut texts,": "cut", "cut texts:": "cut",
}  # fmt: skip
"""How the lines above texts begin, and what the texts show."""


def words_in(text: str) -> list[str]:
    """The words and punctuation of a text."""
    return _WORD.findall(text)


def texts_in(prompt: str) -> list[Text]:
    """All texts of an explainer's question with their activity."""
    texts: list[Text] = []
    section = ""
    cut: list[str | list[Any]] = []
    for line in prompt.split("\n"):
        section = next((shown for start, shown in _SECTIONS.items() if line.startswith(start)), section)
        if line.startswith(('"', "[")) and section == "silent":
            found = words_in("".join(pieces_of(line)))
            texts.append((found, [False] * len(found)))
        elif line.startswith("[") and section == "active":
            texts.append(_with_activity(pieces_of(line)))
        elif line.startswith("[") and section == "cut":
            cut = json.loads(line)
            texts.append(_at_the_end(cut, True))
        elif line.startswith("  ") and section == "cut":
            kind, _, pairs = line.strip().partition(": ")
            for place, _, new in json.loads(pairs):
                other = [*cut[: place - 1], new, *cut[place:]]
                texts.append(_at_the_end(other, kind == "still active"))
    return texts


def _with_activity(pieces: Sequence[str | list[Any]]) -> Text:
    words: list[str] = []
    active: list[bool] = []
    for piece in pieces:
        found = words_in(piece if isinstance(piece, str) else piece[0])
        words.extend(found)
        active.extend([not isinstance(piece, str) and piece[1] != 0] * len(found))
    return words, active


def _at_the_end(pieces: Sequence[str | list[Any]], is_active: bool) -> Text:
    words = words_in("".join(piece if isinstance(piece, str) else piece[0] for piece in pieces))
    return words, [False] * (len(words) - 1) + [is_active]


def best_by_texts(rules: Mapping[str, Rule], texts: Sequence[Text], listed: Sequence[str] = ()) -> list[str]:
    """The labels, ordered by how well their rule agrees with the activity (F1 over words). Among equal ones, the label
    that names most of the listed words comes first, then the narrowest."""

    def place(label: str) -> tuple[float, int, tuple[float, ...]]:
        rule = rules[label]
        named = set(rule.words or ()) & set(listed)
        return -round(agreement(rule, texts), 9), -len(named), breadth(rule)

    return sorted(rules, key=place)


def agreement(rule: Rule, texts: Sequence[Text]) -> float:
    both = said = true = 0
    for words, active in texts:
        fires = [s > 0 for s in rule.strengths(words)]
        both += sum(f and a for f, a in zip(fires, active, strict=True))
        said, true = said + sum(fires), true + sum(active)
    return 2 * both / (said + true) if said + true else 0.0


def breadth(rule: Rule) -> tuple[float, float, float, int]:
    """A sort key for how much a rule leaves open, which puts the narrowest first."""
    inf = float("inf")
    return (
        inf if rule.words is None else len(rule.words),
        inf if rule.after is None else len(rule.after),
        inf if rule.first is None else rule.first,
        -len(rule.not_after),
    )


def listed_in(prompt: str, *names: str) -> list[str]:
    """The tokens of the lists that have these names in the prompt, without spaces, in order."""
    found: list[str] = []
    for line in prompt.split("\n"):
        name, _, values = line.partition(": ")
        if name in names and values.startswith("["):
            found += [value.strip() for value in json.loads(values)]
    return found


def best_by_words(named: Mapping[str, Sequence[str]], listed: Sequence[str]) -> list[str]:
    """The labels. Those that name most of the tokens at the top of the list, and little else, come first."""

    def fit(label: str) -> float:
        words = set(named[label])
        return len(words & set(listed[: len(words)])) / len(words) if words else 0.0

    return sorted(named, key=lambda label: (-fit(label), len(named[label])))
