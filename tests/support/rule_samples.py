"""Samples of tokens for rules: texts, the words on which a feature is active, and silent ordinary text."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from autointerp.rules.learning import learn
from autointerp.rules.samples import Sample
from autointerp.rules.sentences import sentence
from autointerp.rules.token_facts import facts_of

ORDINARY = [[" a", " of", " the", " tree", "."]] * 40


def sample(texts: Sequence[Sequence[str]], active: Collection[str], ordinary: Sequence[Sequence[str]]) -> Sample:
    """Each text is a document of its own. Ordinary text counts five times."""
    silent = [fact for tokens in ordinary for fact in facts_of(tokens)]
    y = [8.0 if token in active else 0.0 for tokens in texts for token in tokens]
    document = [i for i, tokens in enumerate(texts) for _ in tokens]
    n = len(silent)
    return Sample(
        [list(tokens) for tokens in texts],
        np.array(y + [0.0] * n),
        np.array(document + [len(texts)] * n),
        np.array([1.0] * len(y) + [5.0] * n),
        silent,
    )


def label(
    texts: Sequence[Sequence[str]], active: Collection[str], ordinary: Sequence[Sequence[str]] = ORDINARY
) -> str | None:
    """The sentence of the rule that is learned."""
    found = sample(texts, active, ordinary)
    return sentence(found, learn(found))
