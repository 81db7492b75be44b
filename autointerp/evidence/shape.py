"""The evidence method `shape`: what the numbers alone say about a feature, before any LLM is asked.

It reads the explain split alone. Sampled contexts are uniform over the tiles in which a feature fires, so the active
tokens in them stand for all of its active tokens.

    unigram_purity        share of the active tokens that are the commonest one
    unigram_recall        share of that token's occurrences, in sampled contexts and in negatives (of which one tier is
                          drawn to hold the feature's token without it firing), on which the feature fires
    position_dependence   (I(fires; place) - I0) / (H(fires) - I0), not below 0: the place of a token removes this share
                          of the uncertainty about whether the token is active. I follows from the token density, the
                          places of the active tokens and the places in the corpus's windows. With few samples I is
                          above 0 by chance; I0 is its mean over random placings of as many tokens.

It is found for two kinds of place. The place in the window is what the model can see: it knows of no documents, and
where all documents are shorter than a window, both places are the same. The place in the document is told apart by the
windows that begin amid a document: all tokens in them, and in the blocks of a huge document after the first, are at one
place, "further on". It is preferred where it says more by DOCUMENT_GAIN at least; where both say nearly as much, few
windows begin amid a document, and a label about the window is right about these, too.

A feature gets the first kind in this list that fits it:

    rare       the store's status: too few contexts for any claim
    token      purity above 0.9 and recall of at least 0.9; one without the other is an over-broad label
    position   dependence of at least 0.8 on either place. A feature that fires on 9 of 10 tokens at one place, and has
               9 of 10 active tokens there, reaches 0.81 in windows of 128 tokens and 0.83 in windows of 1,024
    dense      it fires on more than a tenth of all tokens
    other
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autointerp.config import EvidenceConfig
from autointerp.evidence.method import Describe, Found, Study
from autointerp.evidence.page_lines import token_text
from autointerp.progress import Counting, uncounted
from autointerp.records import ShapeFacts, ShapeKind
from autointerp.store.finding_tables import FEATURE_SHAPES, Row
from autointerp.store.sampled_tokens import (
    FiringFeature,
    WindowCount,
    active_tokens,
    firing_features,
    occurrences,
    share_of_first_windows,
    stored_windows,
)
from autointerp.store.store import Store

PURE_ABOVE, RECALL_FROM, POSITION_FROM, DENSE_ABOVE = 0.9, 0.9, 0.8, 0.1
FEWEST_TOKENS = 10
"""Active tokens seen, below which a feature is not called a token or a position feature."""
PLACINGS = 32
"""Random placings that the mutual information is compared with."""
PLACE_SHARE = 0.9
"""Share of the active tokens that lie in the stretch of places which is said to be the feature's."""
DOCUMENT_GAIN = 0.05
"""By how much more the place in the document has to say than that in the window, to be what a feature goes by. A
feature that fires where documents begin gains 0.06 if 9 of 10 windows of 128 tokens begin one, and 0.2 if half do."""
FEATURES_AT_ONCE = 512


class Shape:
    """The evidence method: one row of feature_shapes for every feature that has a sampled context."""

    name = "shape"
    table = FEATURE_SHAPES
    scope: Literal["dictionary"] = "dictionary"

    def settings(self, config: EvidenceConfig) -> Mapping[str, object]:
        return {"places": "in windows and documents"}

    def find(self, study: Study, features: Sequence[int]) -> Found:
        return Found(
            find_shapes(
                study.store, study.dictionary_id, study.harvest_id, study.describe_shape, counting=study.counting
            )
        )

    def page(self, rows: Sequence[Row]) -> list[str]:
        """shape  other; 34 % of its active tokens are ` raise`; position dependence 0.02"""
        lines = []
        for shape in rows:
            told = [shape["kind"]]
            told += [word for word in ("dense", "rare") if shape[f"is_{word}"] and word != shape["kind"]]
            if shape["unigram_purity"] is not None:
                unigram = token_text(shape["unigram"] or "")
                told.append(f"{100 * shape['unigram_purity']:.0f} % of its active tokens are `{unigram}`")
            if shape["position_dependence"] is not None:
                told.append(f"position dependence {shape['position_dependence']:.2f}")
            lines.append(f"shape  {'; '.join(told)}")
        return lines


def find_shapes(
    store: Store,
    dictionary_id: int,
    harvest_id: int,
    describe: Describe,
    features: Sequence[int] | None = None,
    counting: Counting = uncounted,
) -> dict[str, list[Any]]:
    """Columns of the table `feature_shapes`, for the given features or all. Dead ones and those without any sampled
    context have no row."""
    found = [(facts, *describe(facts)) for facts in shape_facts(store, dictionary_id, harvest_id, features, counting)]
    names = ("feature", "kind", "unigram", "unigram_purity", "position_dependence", "is_dense", "is_rare")
    columns: dict[str, list[Any]] = {name: [getattr(facts, name) for facts, _, _ in found] for name in names}
    return columns | {"text": [text for _, text, _ in found], "rule": [rule for _, _, rule in found]}


def shape_facts(
    store: Store,
    dictionary_id: int,
    harvest_id: int,
    features: Sequence[int] | None = None,
    counting: Counting = uncounted,
) -> list[ShapeFacts]:
    """The shapes in the order of features. See `find_shapes`."""
    firing = firing_features(store, dictionary_id, features)
    corpus = Places.of(stored_windows(store, dictionary_id, harvest_id), share_of_first_windows(store, harvest_id))
    facts = []
    with counting("shape", len(firing), "features") as update:
        for low in range(0, len(firing), FEATURES_AT_ONCE):
            block = firing[low : low + FEATURES_AT_ONCE]
            seen = _active_tokens(store, dictionary_id, harvest_id, [one.feature for one in block])
            top = {feature: active.unigram for feature, active in seen.items() if active.n_tokens}
            found = occurrences(store, dictionary_id, harvest_id, top)
            recalls = {feature: fired / n for feature, n, fired in found if n}
            facts += [
                _facts(one, seen[one.feature], recalls.get(one.feature), corpus) for one in block if one.feature in seen
            ]
            update(low + len(block))
    return facts


class _Active:
    """A feature's active tokens over its sampled contexts."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self.by_token: dict[str, tuple[int, float]] = {}
        """How often it fires on each token, and the sum of its activations there."""
        self.by_place: dict[tuple[int, bool], int] = {}
        """How many are at each place of a window, apart for windows that begin a document and others."""

    @property
    def unigram(self) -> str:
        """The commonest; of equally common ones the first in the alphabet."""
        return min(self.by_token, key=lambda token: (-self.by_token[token][0], token))


def _active_tokens(store: Store, dictionary_id: int, harvest_id: int, features: Sequence[int]) -> dict[int, _Active]:
    """The active tokens of those features that have a sampled context on the explain split."""
    found: dict[int, _Active] = defaultdict(_Active)
    for feature, token, place, begins_document, n, total in active_tokens(store, dictionary_id, harvest_id, features):
        active = found[feature]
        count, activation = active.by_token.get(token, (0, 0.0))
        active.by_token[token] = count + n, activation + total
        active.by_place[place, begins_document] = active.by_place.get((place, begins_document), 0) + n
        active.n_tokens += n
    return found


@dataclass(frozen=True)
class Places:
    """How many tokens the corpus has at each place, in proportion."""

    in_window: NDArray[np.float64]
    """[longest window]: index i is place i + 1."""
    in_document: NDArray[np.float64] | None
    """[longest window + 1]: the same for windows that begin a document; the last is all tokens further on. None where
    nothing is further on, or no window begins a document: the place in the document then says nothing of its own."""

    @classmethod
    def of(cls, windows: Sequence[WindowCount], first_share: float | None) -> Places:
        """From the windows that hold a context. These are more often the first of their document than other windows, so
        they are weighted until the share of first ones is `first_share`, that of all windows (None: not known)."""
        longest = max((w.length for w in windows), default=0)
        beginning, others = np.zeros(longest), np.zeros(longest)
        for window, weight in zip(windows, _weights(windows, first_share), strict=True):
            (beginning if window.begins_document else others)[: window.length] += weight * window.n
        known = bool(beginning.any() and others.any())
        return cls(beginning + others, np.append(beginning, others.sum()) if known else None)

    def counted(self, by_place: Mapping[tuple[int, bool], int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A feature's active tokens at the places in windows, and at those in documents."""
        in_window, in_document = np.zeros(len(self.in_window)), np.zeros(len(self.in_window) + 1)
        for (place, begins_document), n in by_place.items():
            in_window[place - 1] += n
            in_document[place - 1 if begins_document else -1] += n
        return in_window, in_document


def _weights(windows: Sequence[WindowCount], first_share: float | None) -> list[float]:
    """One weight for each kind of window, with which the share of first ones is `first_share`."""
    n, n_first = sum(w.n for w in windows), sum(w.n for w in windows if w.is_first)
    # Documents of one token have no window, so a corpus of many such has too few windows for its documents.
    if first_share is None or not 0 < n_first < n or not 0 < first_share < 1:
        return [1.0] * len(windows)
    return [first_share * n / n_first if w.is_first else (1 - first_share) * n / (n - n_first) for w in windows]


def _facts(one: FiringFeature, active: _Active, recall: float | None, corpus: Places) -> ShapeFacts:
    unigram = active.unigram
    n, total = active.by_token[unigram]
    purity = n / active.n_tokens
    density, largest = one.token_density, one.largest
    at = _stretch_of(one, active, corpus)
    is_dense, is_rare = density > DENSE_ABOVE, one.status == "rare"
    kind: ShapeKind = "dense" if is_dense else "other"
    if is_rare:
        kind = "rare"
    elif active.n_tokens >= FEWEST_TOKENS:
        # A piece of a character has no text of its own, and all such pieces look alike.
        if unigram and purity > PURE_ABOVE and recall is not None and recall >= RECALL_FROM:
            kind = "token"
        elif at.dependence >= POSITION_FROM:
            kind = "position"
    return ShapeFacts(
        one.feature, kind, unigram, purity, recall, total / n / largest if largest > 0 else 0.0, at.dependence,
        at.places, at.recall, is_dense, is_rare, at.place_in,
    )  # fmt: skip


@dataclass(frozen=True)
class _Stretch:
    """The places at which a feature fires, of one kind."""

    place_in: Literal["window", "document"]
    dependence: float
    places: tuple[int, int]
    recall: float


def _stretch_of(one: FiringFeature, active: _Active, corpus: Places) -> _Stretch:
    """Its places in windows or in documents, whichever says more; the head of this file tells when."""
    in_window, in_document = corpus.counted(active.by_place)
    by_window = _stretch(one, "window", in_window, corpus.in_window)
    if corpus.in_document is None:
        return by_window
    by_document = _stretch(one, "document", in_document, corpus.in_document)
    is_further_on = by_document.places[1] > len(in_window)
    return by_window if is_further_on or by_document.dependence < by_window.dependence + DOCUMENT_GAIN else by_document


def _stretch(
    one: FiringFeature, place_in: Literal["window", "document"], counts: NDArray[np.float64],
    tokens_at: NDArray[np.float64],
) -> _Stretch:  # fmt: skip
    low, high = _shortest_stretch(counts)
    share = float(tokens_at[low - 1 : high].sum() / tokens_at.sum())
    held = float(counts[low - 1 : high].sum() / counts.sum())
    dependence = position_dependence(counts, tokens_at, one.token_density, seed=one.feature)
    return _Stretch(place_in, dependence, (low, high), min(1.0, one.token_density * held / share))


def position_dependence(
    counts: NDArray[np.float64], tokens_at: NDArray[np.float64], density: float, seed: int
) -> float:
    """0 where the place of a token says nothing of whether the feature fires on it, 1 where it says all.

    `counts`: active tokens seen at each place; `tokens_at`: in proportion to the tokens that the corpus has there;
    `density`: share of all tokens on which the feature fires.
    """
    share = tokens_at / tokens_at.sum()
    n = int(counts.sum())
    density = min(max(density, 1e-12), 1 - 1e-12)
    whole = float(_binary_entropy(np.array(density)))

    def information(placed: NDArray[np.float64]) -> NDArray[np.float64]:
        fires = np.minimum(density * placed / (n * np.maximum(share, 1e-300)), 1.0)
        return np.maximum(whole - (share * _binary_entropy(fires)).sum(-1), 0.0)

    random = np.random.default_rng(seed).multinomial(n, share, size=PLACINGS).astype(np.float64)
    by_chance = float(information(random).mean())
    if whole - by_chance <= 1e-9 * whole:
        return 0.0
    return float(np.clip((information(counts) - by_chance) / (whole - by_chance), 0.0, 1.0))


def _binary_entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nats; 0 at both ends."""
    inside = np.clip(p, 1e-300, 1.0)
    outside = np.clip(1.0 - p, 1e-300, 1.0)
    return -p * np.log(inside) - (1.0 - p) * np.log(outside)


def _shortest_stretch(counts: NDArray[np.float64]) -> tuple[int, int]:
    """Places (from 1) of the shortest stretch that holds PLACE_SHARE of the counts; the earliest of equally long
    ones."""
    total = np.concatenate([[0.0], np.cumsum(counts)])
    wanted = PLACE_SHARE * total[-1]
    ends = np.searchsorted(total, total[:-1] + wanted - 1e-9)
    lengths = np.where(ends < len(total), ends - np.arange(len(ends)), len(total))
    low = int(np.argmin(lengths))
    return low + 1, low + int(lengths[low])
