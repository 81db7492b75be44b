"""The evidence method `words`: words whose presence goes with a feature's firing, found by counting documents.

A context holds a word when the word begins at or before the peak's token: what comes later cannot have made a causal
model's feature fire. The word in which the peak stands is read to its end. The contexts are the feature's sampled
ones, which are uniform over the tiles in which it fires. Contexts of one document are not independent: what the
document is about stands in all of them, whatever the feature does. So each document counts once, by the first of its
contexts, and a word has to stand in FEWEST_DOCUMENTS documents.

The background is the corpus at large: the negatives of tier `random` of all features together, each tile once. (One
feature's negatives are silent tiles only; those of all features together are uniform, as long as no feature fires
nearly everywhere.) The longer a text is, the more words it holds. So the background's tiles are read as far as the
contexts are: if a feature's contexts reach l_1 .. l_n tokens, a word's share of the background is the mean over j of
its share of the tiles cut after l_j tokens, among the tiles that are as long. Cutting each tile at a random one of the
feature's lengths would give this share on average, but with noise. Which documents a feature that has nothing to do
with words fires in may or may not go by their size, so the share is the larger of two: with each tile, or with each
document, weighing the same.

    pmi   log P(word | fires) / P(word), nats; half an occurrence is added to every cell
    G     2 sum O log(O / E) over the 2 x 2 table (documents, background) x (with, without the word)
    p     Fisher's exact test of that table, one-sided, since counts are small; then Benjamini-Hochberg over every word
          of the contexts and the background
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autointerp.config import EvidenceConfig
from autointerp.evidence.method import Found, Study, fields_of
from autointerp.evidence.page_lines import words_line
from autointerp.progress import Counting, uncounted
from autointerp.stats import benjamini_hochberg
from autointerp.store.finding_tables import INPUT_WORDS, Row
from autointerp.store.sampled_tokens import Stretch, last_feature, random_tiles, texts_up_to_peak, tile_texts
from autointerp.store.store import Store

BACKGROUND_TILES = 8192
"""Tiles of the background, at most; evenly spaced over those there are."""
SIGNIFICANT = 0.05
FEWEST_DOCUMENTS = 3
FEATURES_AT_ONCE = 512
_WORD = re.compile(r"[^\W\d_]{2,}")


class Words:
    """The evidence method: up to `words` rows of input_words for every feature."""

    name = "words"
    table = INPUT_WORDS
    scope: Literal["dictionary"] = "dictionary"

    def settings(self, config: EvidenceConfig) -> Mapping[str, object]:
        return {**fields_of(config, "words"), "counts": "whole documents"}

    def find(self, study: Study, features: Sequence[int]) -> Found:
        n_words, counting = study.evidence.words, study.counting
        found = find_input_words(study.store, study.dictionary_id, study.harvest_id, n_words, counting=counting)
        return Found(found)

    def page(self, rows: Sequence[Row]) -> list[str]:
        return words_line("words where it fires", rows, "pmi")


def find_input_words(
    store: Store,
    dictionary_id: int,
    harvest_id: int,
    n_words: int,
    features: Sequence[int] | None = None,
    counting: Counting = uncounted,
) -> dict[str, list[Any]]:
    """Columns feature, rank, word, pmi, g, p_value, n_with_word of the table `input_words`, for the given features or
    all: up to `n_words` words of each, the largest G first."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("feature", "rank", "word", "pmi", "g", "p_value", "n_with_word")
    }
    background = Background(_background_tiles(store, dictionary_id, harvest_id))
    if not background.n_tiles:
        return columns
    with counting("words", last_feature(store, dictionary_id) + 1, "features") as update:
        for feature, contexts in _contexts(store, dictionary_id, harvest_id, features):
            found = words_of(contexts, background)[:n_words]
            for rank, (word, pmi, g, p_value, n) in enumerate(found):
                for name, value in zip(columns, (feature, rank, word, pmi, g, p_value, n), strict=True):
                    columns[name].append(value)
            update(feature + 1)
    return columns


def words_in(tokens: Sequence[str], ahead: str, before: str) -> dict[str, int]:
    """The words that begin in `tokens`, lower-cased, each with the index of the token in which its first occurrence
    begins. `ahead` is the text after the tokens, which completes the last word; `before` is the token in front: a word
    that began there is not one of these."""
    text = "".join(tokens)
    ends = np.cumsum([len(token) for token in tokens])
    found: dict[str, int] = {}
    for match in _WORD.finditer(text + ahead):
        if match.start() >= len(text):
            break
        if match.start() == 0 and before[-1:].isalpha():
            continue
        found.setdefault(match.group().lower(), int(np.searchsorted(ends, match.start(), side="right")))
    return found


class Background:
    """How often each word stands in tiles cut after any number of tokens."""

    def __init__(self, tiles: Sequence[Stretch]) -> None:
        longest = max((len(tile.tokens) for tile in tiles), default=0)
        self._index: dict[str, int] = {}
        self.n_tiles = len(tiles)
        in_document = Counter(tile.document for tile in tiles)
        spans: list[tuple[int, int, int]] = []
        span_weights: list[float] = []
        totals = np.zeros((2, longest + 2))
        for tile in tiles:
            weight, n = 1 / in_document[tile.document], len(tile.tokens)
            totals[:, n] += (1.0, weight)
            for word, at in words_in(tile.tokens, tile.ahead, tile.before).items():
                spans.append((self._index.setdefault(word, len(self._index)), at + 1, n + 1))
                span_weights.append(weight)
        # Two of either table: in the first every tile weighs 1, in the second every document.
        self._total = np.cumsum(totals[:, ::-1], axis=1)[:, ::-1][:, : longest + 1]
        """[2, longest + 1]: the weight of the tiles of at least so many tokens."""
        row, begin, end = np.array(spans, dtype=np.int64).reshape(-1, 3).T
        steps = np.zeros((2, len(self._index) + 1, longest + 2))
        for table, weights in zip(steps, (np.ones(len(spans)), np.array(span_weights)), strict=True):
            np.add.at(table, (row, begin), weights)
            np.add.at(table, (row, end), -weights)
        self._held = np.cumsum(steps, axis=2)[:, :, : longest + 1]
        """[2, words + 1, longest + 1]: of those tiles, the weight of those that hold the word within so many tokens.
        The last row is that of words that none holds."""

    def n_words_with(self, words: Sequence[str]) -> int:
        """Distinct words of the background and `words` together."""
        return len(self._index) + sum(word not in self._index for word in words)

    def shares(self, words: Sequence[str], lengths: Sequence[int]) -> tuple[NDArray[np.float64], int]:
        """(each word's share of the tiles cut to `lengths`, over how many tiles that share is taken)."""
        longest = self._total.shape[1] - 1
        # A context longer than every tile is compared with the longest tiles.
        times = np.bincount(np.minimum(lengths, longest), minlength=longest + 1) / len(lengths)
        known = np.array([self._index.get(word, -1) for word in words], dtype=np.int64)
        by_tile, by_document = (
            held[known] @ (times / np.maximum(total, 1e-9)) for held, total in zip(self._held, self._total, strict=True)
        )
        return np.clip(np.maximum(by_tile, by_document), 0.0, 1.0), round(float(times @ self._total[0]))


def words_of(
    contexts: Sequence[tuple[dict[str, int], int]], background: Background
) -> list[tuple[str, float, float, float, int]]:
    """(word, pmi, G, adjusted p, documents with it) of the words that go with a feature's firing, the largest G first.

    `contexts`: the words of one context of each of its documents, and how many tokens that is.
    """
    counts = Counter(word for words, _ in contexts for word in words)
    if not counts:
        return []
    names = sorted(counts)
    n = len(contexts)
    with_word = np.array([counts[name] for name in names], dtype=np.int64)
    share, n_tiles = background.shares(names, [length for _, length in contexts])
    held = share * n_tiles
    pmi = np.log((with_word + 0.5) / (n + 1)) - np.log((held + 0.5) / (n_tiles + 1))
    g = g_statistic(with_word.astype(np.float64), float(n), held, float(n_tiles))
    p = fisher_upper(with_word, n, np.ceil(held - 1e-6).astype(np.int64), n_tiles)
    adjusted = benjamini_hochberg(p, background.n_words_with(names))
    listed = np.flatnonzero((pmi > 0) & (adjusted < SIGNIFICANT) & (with_word >= FEWEST_DOCUMENTS))
    order = sorted(listed.tolist(), key=lambda i: (-g[i], names[i]))
    return [(names[i], float(pmi[i]), float(g[i]), float(adjusted[i]), int(with_word[i])) for i in order]


def fisher_upper(a: NDArray[np.int64], n_a: int, b: NDArray[np.int64], n_b: int) -> NDArray[np.float64]:
    """P(A >= a) of the tables [[a, n_a - a], [b, n_b - b]] with all margins fixed: a hypergeometric tail, [tables]."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n_a + n_b + 1)))])

    def log_choose(n: NDArray[np.int64] | int, k: NDArray[np.int64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
        return found

    drawn = np.arange(n_a + 1)[None, :]
    margin = (a + b)[:, None]
    others = margin - drawn
    possible = (drawn >= a[:, None]) & (others >= 0) & (others <= n_b)
    others = np.where(possible, others, 0)
    log_p = log_choose(n_a, drawn) + log_choose(n_b, others) - log_choose(n_a + n_b, margin)
    return np.minimum(np.where(possible, np.exp(np.where(possible, log_p, 0.0)), 0.0).sum(axis=1), 1.0)


def g_statistic(a: NDArray[np.float64], n_a: float, b: NDArray[np.float64], n_b: float) -> NDArray[np.float64]:
    """2 sum O log(O / E) of the tables [[a, n_a - a], [b, n_b - b]]."""
    whole = n_a + n_b
    total = np.zeros_like(a)
    for with_word, n in ((a, n_a), (b, n_b)):
        for observed, margin in ((with_word, a + b), (n - with_word, whole - a - b)):
            expected = n * margin / whole
            ratio = np.where(observed > 0, observed / np.where(expected > 0, expected, 1.0), 1.0)
            total += np.where(observed > 0, observed * np.log(ratio), 0.0)
    return np.maximum(2 * total, 0.0)


def _background_tiles(store: Store, dictionary_id: int, harvest_id: int) -> list[Stretch]:
    tiles = random_tiles(store, dictionary_id, harvest_id)
    if len(tiles) > BACKGROUND_TILES:
        spread = np.linspace(0, len(tiles) - 1, BACKGROUND_TILES).round().astype(np.int64)
        tiles = [tiles[i] for i in spread]
    return tile_texts(store, tiles)


def _contexts(
    store: Store, dictionary_id: int, harvest_id: int, features: Sequence[int] | None
) -> Iterator[tuple[int, list[tuple[dict[str, int], int]]]]:
    """(feature, words and length of the first sampled context of each of its documents) of every feature that has any,
    in order. Sampled contexts are ranked by a hash, so the first is a random one."""
    wanted = None if features is None else sorted({int(f) for f in features})
    for low in range(0, last_feature(store, dictionary_id) + 1, FEATURES_AT_ONCE):
        high = low + FEATURES_AT_ONCE - 1
        own = None if wanted is None else [f for f in wanted if low <= f <= high]
        if own == []:
            continue
        found: dict[int, dict[str, tuple[dict[str, int], int]]] = {}
        for feature, text in texts_up_to_peak(store, dictionary_id, harvest_id, low, high, own):
            documents = found.setdefault(feature, {})
            if text.document not in documents:
                documents[text.document] = words_in(text.tokens, text.ahead, text.before), len(text.tokens)
        for feature, documents in found.items():
            yield feature, list(documents.values())
