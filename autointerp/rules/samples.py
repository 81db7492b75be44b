"""The evidence of one feature as one long list of tokens: what a rule is learned from and its sentence is written from.

Contexts of the evidence are no sample of text as it comes: a feature fires in most of them. So each token has a weight.
A tile in which the feature fires at random counts 1, and the silent tiles (negatives of tier `random`, and the known
tiles of ordinary text, see reference.py) count together for as many tiles as there are silent ones for each of those.
The strongest contexts and the silent ones that were chosen to look alike are no random sample of anything and count
CHOSEN_WEIGHT each. Where the harvest did not count tiles, every token counts 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from autointerp.ask.scale import scaled
from autointerp.records import Context, FeatureEvidence
from autointerp.rules.reference import NO_REFERENCE, Reference
from autointerp.rules.token_facts import Facts, facts_of, folded

CHOSEN_WEIGHT = 1.0


@dataclass(frozen=True)
class Sample:
    """Tokens of the contexts, then tokens of ordinary text in which the feature is silent. What stands around them is
    read when it is first asked for: `token_lookup` asks for nothing of it."""

    contexts: list[list[str]]
    """The tokens of each context."""
    activations: NDArray[np.float64]
    """0..10, one for each token of the contexts and of `ordinary`; so are documents and weights."""
    documents: NDArray[np.int64]
    """Index of the document of each token."""
    weights: NDArray[np.float64]
    """How many tokens of ordinary text each one stands for, up to a factor."""
    ordinary: list[Facts]
    """The facts of silent tokens that are in none of the contexts."""
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """The places of these among the tokens of all tiles of ordinary text."""
    silent_weight: float = 1.0
    """The weight of one token of a silent tile that was drawn from the corpus at large."""

    @cached_property
    def facts(self) -> list[Facts]:
        return [*(fact for tokens in self.contexts for fact in facts_of(tokens)), *self.ordinary]

    @cached_property
    def following(self) -> list[str]:
        """The token after each one of the contexts; '' at the end of a context."""
        return [token for tokens in self.contexts if tokens for token in (*tokens[1:], "")]

    @cached_property
    def words(self) -> list[str]:
        """The whole word that each token of the contexts is part of, as far as the context shows it; '' outside of
        words."""
        return [word for tokens in self.contexts for word in whole_words(tokens)]

    @cached_property
    def context_of(self) -> NDArray[np.int64]:
        """For each token of the contexts, which of them it stands in."""
        return np.repeat(np.arange(len(self.contexts)), [len(tokens) for tokens in self.contexts])

    def values(self, fact: str) -> Iterator[str]:
        """One of the facts, of every token."""
        if fact == "token" and not self.ordinary:
            return (token for tokens in self.contexts for token in tokens)
        return map(itemgetter(Facts._fields.index(fact)), self.facts)


def sample_of(evidence: FeatureEvidence, reference: Reference = NO_REFERENCE) -> Sample:
    """The tokens of all contexts of the evidence, active and silent, beside ordinary text."""
    contexts = distinct_contexts(evidence)
    silent = reference.silent(evidence.feature)
    activations: list[float] = []
    documents: list[int] = []
    weights: list[float] = []
    index: dict[str, int] = {}
    n_active = sum(context.kind == "sampled" for context in contexts)
    n_random = sum(context.tier == "random" for context in contexts)
    weight = 1.0 if silent is None else silent.for_each_active * n_active / max(1, silent.n_tiles + n_random)
    for context in contexts:
        own = weight if context.tier == "random" else 1.0 if context.kind == "sampled" else CHOSEN_WEIGHT
        activations += scaled(context.activations, evidence.max_activation)
        documents += [index.setdefault(context.source, len(index))] * len(context.tokens)
        weights += [own] * len(context.tokens)
    tokens = [context.tokens for context in contexts]
    y, document, w = np.array(activations), np.array(documents, dtype=np.int64), np.array(weights)
    if silent is None or not n_active:
        return Sample(tokens, y, document, np.ones_like(y), [])
    every = (token for context in contexts for token in context.tokens)
    active = {folded(token) for token, value in zip(every, activations, strict=True) if value > 0}
    facts, sources, stands_for, places = reference.ordinary_tokens(silent, active)
    others = [index.setdefault(source, len(index)) for source in sources]
    return Sample(
        tokens,
        np.concatenate([y, np.zeros(len(facts))]),
        np.concatenate([document, np.array(others, dtype=np.int64)]),
        np.concatenate([w, weight * stands_for]),
        facts,
        places,
        weight,
    )


def distinct_contexts(evidence: FeatureEvidence) -> list[Context]:
    """The contexts of the evidence, each once: a tile may be both a top and a sampled context."""
    seen: set[tuple[str, int, str]] = set()
    out = []
    for context in (*evidence.sampled, *evidence.top, *evidence.negatives):
        key = (context.document, context.position, context.text)
        if key not in seen:
            seen.add(key)
            out.append(context)
    return out


_WORD = re.compile(r"\w+")


def whole_words(tokens: Sequence[str]) -> list[str]:
    """For each token, the word of the joined text that its first word character belongs to."""
    words = _WORD.finditer("".join(tokens))
    word = next(words, None)
    out, start = [], 0
    for token in tokens:
        end = start + len(token)
        while word is not None and word.end() <= start:
            word = next(words, None)
        out.append(word.group() if word is not None and word.start() < end else "")
        start = end
    return out
