"""What a rule gets wrong on the explain part, as the LLM that wrote it is shown.

A text counts by the activation that was missed in it, or by what was predicted where there is none: the sums over its
tokens of truth minus prediction, and of prediction minus truth. The texts with the largest sums are shown, at most
WIDTH tokens of each. Only where there is room are there more than SAME_TOKEN texts whose worst token is the same, since
eight times the same mistake teach less than eight mistakes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autointerp.ask.prompts import one_line
from autointerp.ask.scale import TOP
from autointerp.rules.token_facts import folded

WIDTH = 32
"""Tokens shown of a text."""
BEFORE = 24
"""Of them, those that stand before the worst one, where the text is longer."""
SAME_TOKEN = 2
LEAST_MISSED, LEAST_FALSE = 2.0, 1.0
"""By how much the worst token is missed or wrongly predicted, on the scale of 0..10; less is no mistake to speak of."""


@dataclass(frozen=True)
class ReadText:
    """One text, the truth about it and what a rule predicts of it, both 0..10 for each token."""

    tokens: Sequence[str]
    truth: NDArray[np.float64]
    predicted: NDArray[np.float64]
    begins: Literal["document", "window"] | None = None


@dataclass(frozen=True)
class Mistakes:
    """Texts as a prompt shows them, the worst ones first."""

    missed: list[str]
    false_alarms: list[str]

    def __bool__(self) -> bool:
        return bool(self.missed or self.false_alarms)


def mistakes_in(texts: Iterable[ReadText], most: int) -> Mistakes:
    """The worst mistakes in the texts, at most `most` of either kind."""
    missed: list[tuple[float, ReadText, int]] = []
    false_alarms: list[tuple[float, ReadText, int]] = []
    for text in texts:
        if not len(text.tokens):
            continue
        short = text.truth - text.predicted
        worst, most_false = int(short.argmax()), int(short.argmin())
        lacking, excess = float(np.maximum(short, 0.0).sum()), float(np.maximum(-short, 0.0).sum())
        if short[worst] >= LEAST_MISSED and lacking >= excess:
            missed.append((lacking, text, worst))
        elif -short[most_false] >= LEAST_FALSE and excess > lacking:
            false_alarms.append((excess, text, most_false))
    return Mistakes(_shown(missed, most), _shown(false_alarms, most))


def _shown(found: list[tuple[float, ReadText, int]], most: int) -> list[str]:
    """The texts with the largest sums; equal ones in the order in which they came."""
    times: Counter[str] = Counter()
    first: dict[str, None] = {}
    others: dict[str, None] = {}
    for _, text, place in sorted(found, key=lambda one: -one[0]):
        line, token = marked_text(text, place), folded(text.tokens[place])
        if line not in first and line not in others:
            times[token] += 1
            (first if times[token] <= SAME_TOKEN else others)[line] = None
    return [*first, *others][:most]


def marked_text(text: ReadText, place: int) -> str:
    """The text around a token on one line: strings, and [token, truth, prediction] where one of the two is above 0."""
    start = max(0, min(place - BEFORE, len(text.tokens) - WIDTH))
    end = min(len(text.tokens), start + WIDTH)
    pieces: list[object] = [{"begins": text.begins}] if text.begins is not None and start == 0 else []
    plain = ""
    for i in range(start, end):
        levels = min(TOP, math.ceil(text.truth[i] - 1e-6)), round(float(text.predicted[i]))
        if not any(levels):
            plain += text.tokens[i]
            continue
        if plain:
            pieces.append(plain)
        pieces.append([text.tokens[i], *levels])
        plain = ""
    return one_line([*pieces, plain] if plain else pieces)
