"""What the texts are about in which a feature fires: words that stand in its contexts far more often than in ordinary
text, besides those on which it fires."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection

import numpy as np

from autointerp.rules.occurrences import Occurrences
from autointerp.rules.reference import Reference, words_of
from autointerp.rules.word_forms import are_forms

STRONG = 2.0
"""A context counts from this activation on, 0..10."""
LEAST_DOCUMENTS = 4
LEAST_SHARE = 0.08
"""Of the documents, that hold one of the words."""
LEAST_LIFT = 6.0
"""How many times as often a word must stand in the contexts as in ordinary text."""
COMMON = 0.015
"""A word in more than this share of ordinary text is no topic."""
WORDS = 4
COVER = 0.35
"""Share of the documents that must hold one of the words that are named."""


def topic_words(active: Occurrences, reference: Reference, named: Collection[str]) -> list[str]:
    """Up to WORDS words of the topic, the most telling first; none where there is no topic, or no ordinary text to
    compare with. `named`: words that the label has named already."""
    if not reference.n_texts:
        return []
    texts = _texts(active)
    n = len(texts)
    counts = Counter(word for words in texts.values() for word in words)
    found: list[tuple[float, str]] = []
    for word, held in counts.items():
        usual = (reference.n_texts_with(word) + 0.5) / (reference.n_texts + 1.0)
        lift = held / n / usual
        if held >= max(LEAST_DOCUMENTS, LEAST_SHARE * n) and lift >= LEAST_LIFT and usual <= COMMON:
            found.append((-held * float(np.log(lift)), word))
    chosen: list[str] = []
    for _, word in sorted(found):
        if len(chosen) < WORDS and not any(are_forms(word, other.lower()) for other in [*named, *chosen]):
            chosen.append(word)
    with_any = sum(bool(words & set(chosen)) for words in texts.values())
    return chosen if len(chosen) >= 2 and with_any >= COVER * n else []


def _texts(active: Occurrences) -> dict[int, set[str]]:
    """For each document the words of its first strong context, without those on which the feature fires: as much text
    as a tile of ordinary text has."""
    sample = active.sample
    first: dict[int, int] = {}
    fired: dict[int, set[str]] = defaultdict(set)
    for i in active.at:
        context = int(sample.context_of[i])
        fired[context].add(sample.words[i].lower())
        if sample.activations[i] >= STRONG:
            first.setdefault(int(sample.documents[i]), context)
    return {
        document: set(words_of("".join(sample.contexts[context]))) - fired[context]
        for document, context in first.items()
    }
