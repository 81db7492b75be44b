"""Tokens of a sample with their weights, and which values they have most often: what sentences are made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autointerp.rules.samples import Sample
from autointerp.rules.token_facts import Facts
from autointerp.rules.token_names import cased, is_word, quoted, token_name

EMPHASIS = 1.5
"""The weight of an active token is its activation to this power. At 0 every token would count alike, and at large
powers only the strongest."""


@dataclass(frozen=True)
class Share:
    """One value, and its share of the total weight."""

    value: str
    share: float
    shown: str
    """The heaviest of the values that count as this one."""


@dataclass(frozen=True)
class Occurrences:
    """Some tokens of the sample, with their weights."""

    sample: Sample
    at: list[int]
    weights: list[float]

    def shares(self, of: Callable[[int], str], same: Callable[[str], str] = str) -> list[Share]:
        """The shares of the values of `of` (a function of the position in the sample), largest first. Values count as
        one where `same` gives the same for them."""
        totals: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for i, weight in zip(self.at, self.weights, strict=True):
            value = of(i)
            totals[same(value)][value] += weight
        whole = sum(self.weights) or 1.0
        found = [
            Share(key, sum(values.values()) / whole, max(values.items(), key=lambda item: (item[1], item[0]))[0])
            for key, values in totals.items()
        ]
        return sorted(found, key=lambda s: (-s.share, s.value))

    def tokens(self) -> list[Share]:
        return self.shares(lambda i: self.sample.facts[i].token, cased)

    def befores(self) -> list[Share]:
        return self.shares(lambda i: self.sample.facts[i].before, cased)

    def where(self, test: Callable[[int], bool]) -> Occurrences:
        kept = [(i, w) for i, w in zip(self.at, self.weights, strict=True) if test(i)]
        return Occurrences(self.sample, [i for i, _ in kept], [w for _, w in kept])

    def share_of(self, test: Callable[[int], bool]) -> float:
        whole = sum(self.weights)
        return sum(w for i, w in zip(self.at, self.weights, strict=True) if test(i)) / whole if whole else 0.0

    @property
    def n_documents(self) -> int:
        return len({int(self.sample.documents[i]) for i in self.at})

    def fact(self, i: int) -> Facts:
        return self.sample.facts[i]


def active_of(sample: Sample) -> Occurrences:
    """The active tokens, each with its weight in what is said."""
    y = sample.activations
    at = [int(i) for i in np.flatnonzero(y > 0)]
    return Occurrences(sample, at, [float(y[i]) ** EMPHASIS for i in at])


def leading_of(shares: Sequence[Share], cover: float, most: int, least: float) -> list[Share] | None:
    """The first few shares that reach `cover` together, each of at least `least`. None where the first `most` do not
    reach it."""
    chosen: list[Share] = []
    total = 0.0
    for share in shares[:most]:
        if share.share < least:
            break
        chosen.append(share)
        total += share.share
        if total >= cover:
            return chosen
    return None


def is_blank(token: str) -> bool:
    return not token.strip()


def is_part(of: Occurrences, i: int) -> bool:
    """Whether the token is only a part of its word."""
    core = of.fact(i).token.strip()
    return is_word(core) and len(of.sample.words[i]) > len(core)


def with_words(token: Share, active: Occurrences, most: int) -> str:
    """The name of a token. A part of a word is shown with its words: '`is` (in `registered`, `permission`)'."""
    name = token_name(token.shown)
    if not is_word(token.value):
        return name
    own = active.where(lambda i: cased(active.fact(i).token) == token.value)
    if own.share_of(lambda i: is_part(own, i)) < 0.5:
        return name
    core = token.value.strip()
    whole = [s for s in own.shares(lambda i: own.sample.words[i], str.lower) if s.value != core]
    if not whole:
        return name
    if whole[0].share >= 0.75:
        return f"{name} of {quoted(whole[0].shown)}"
    begins = own.share_of(lambda i: own.sample.words[i].lower().startswith(core)) >= 0.8
    ends = own.share_of(lambda i: own.sample.words[i].lower().endswith(core)) >= 0.8
    how = "beginning of" if begins else "end of" if ends else "in"
    return f"{name} ({how} {', '.join(quoted(s.shown) for s in whole[:most])})"
