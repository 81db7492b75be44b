"""Where rules hold in a stream of tiles: counts and a few examples, in memory that does not grow with the text.

The examples of a rule are the places where it predicts most, one in each document. Of equally strong ones those are
kept whose documents have the smallest hashes, so that they come from all over the text, and are the same in every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from autointerp.records import source_of
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule


@dataclass(frozen=True)
class TileBlock:
    """Consecutive tiles of a stream."""

    documents: Sequence[str]
    """The name of each tile's document."""
    starts: Sequence[int]
    """The place of each tile's first token in its document's tokens."""
    texts: ManyTexts


@dataclass(frozen=True)
class Example:
    """A place where a rule holds."""

    document: str
    position: int
    """The place of the token on which the rule predicts most, in the document's tokens."""
    strength: float
    """What it predicts there, 0..10."""
    text: str
    """The tile."""
    marked: str
    """The tile with `<<` and `>>` around the tokens on which the rule predicts at least what a claim takes."""

    @property
    def place(self) -> tuple[float, int, int]:
        """Orders examples: the smaller, the better."""
        return -self.strength, _number_of(source_of(self.document)), self.position


@dataclass(frozen=True)
class RuleCount:
    """What was found of one rule so far."""

    n_claimed: int = 0
    """Tiles in which it predicts enough for a claim."""
    n_tokens: int = 0
    """Tokens on which it does."""
    n_documents: int = 0
    """Documents with such a tile."""
    examples: tuple[Example, ...] = ()
    """Best first."""


@dataclass(frozen=True)
class ScanCounts:
    """What was found in a text so far. It is never changed: `plus` makes another one, so that a scan that is stopped
    anywhere has whole counts."""

    rules: Sequence[Rule]
    at_least: float
    """From which prediction on, 0..10, a rule claims a token, and with it the tile."""
    n_examples: int
    """Examples that are kept of each rule."""
    n_tiles: int = 0
    n_tokens: int = 0
    n_documents: int = 0
    """Blocks of one large document count once."""
    of_rule: tuple[RuleCount, ...] = ()
    _last: str | None = None
    """The source of the last tile."""
    _last_claimed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    """[rules]: whether each holds anywhere in that source so far."""

    def plus(self, block: TileBlock) -> ScanCounts:
        """With the tiles that follow."""
        if not len(block.texts):
            return self
        sources = [source_of(name) for name in block.documents]
        is_new = [one != before for one, before in zip(sources, [self._last, *sources], strict=False)]
        number = np.cumsum(is_new)
        """[tiles]: the number of each tile's document; 0 is the one that the block before ended with."""
        held = self.of_rule or (RuleCount(),) * len(self.rules)
        began = self._last_claimed if len(self._last_claimed) else np.zeros(len(self.rules), dtype=np.bool_)
        counts, ends = [], []
        for rule, count, has_begun in zip(self.rules, held, began.tolist(), strict=True):
            predicted = block.texts.predict(rule)
            peaks = block.texts.peaks(predicted)
            claimed = np.flatnonzero(peaks >= self.at_least)
            of_claimed = np.unique(number[claimed])
            n_new = len(of_claimed) - bool(has_begun and len(of_claimed) and of_claimed[0] == 0)
            ends.append(bool(len(of_claimed) and of_claimed[-1] == number[-1]) or (has_begun and number[-1] == 0))
            counts.append(
                RuleCount(
                    count.n_claimed + len(claimed),
                    count.n_tokens + int((predicted >= self.at_least).sum()),
                    count.n_documents + n_new,
                    self._best(count.examples, block, claimed, peaks, number, predicted),
                )
            )
        return replace(
            self,
            n_tiles=self.n_tiles + len(block.texts),
            n_tokens=self.n_tokens + block.texts.n_tokens,
            n_documents=self.n_documents + sum(is_new),
            of_rule=tuple(counts),
            _last=sources[-1],
            _last_claimed=np.array(ends, dtype=np.bool_),
        )

    def _best(
        self, held: tuple[Example, ...], block: TileBlock, claimed: NDArray[np.intp], peaks: NDArray[np.float64],
        number: NDArray[np.int64], predicted: NDArray[np.float64],
    ) -> tuple[Example, ...]:  # fmt: skip
        """The best examples of those held and those in the block, one of each document."""
        if not len(claimed) or not self.n_examples:
            return held
        if len(held) == self.n_examples:
            claimed = claimed[peaks[claimed] >= held[-1].strength]
        strongest_first = claimed[np.lexsort((claimed, -peaks[claimed]))]
        _, first = np.unique(number[strongest_first], return_index=True)
        tiles = strongest_first[np.sort(first)]
        """The strongest of each document."""
        if len(tiles) > self.n_examples:
            tiles = tiles[peaks[tiles] >= peaks[tiles[self.n_examples - 1]]]
        best = sorted(tiles.tolist(), key=lambda tile: (-peaks[tile], _number_of(source_of(block.documents[tile]))))
        return self._one_of_each([*held, *(self._example(block, i, predicted) for i in best[: self.n_examples])])

    def _one_of_each(self, examples: Iterable[Example]) -> tuple[Example, ...]:
        best: dict[str, Example] = {}
        for one in sorted(examples, key=lambda one: one.place):
            best.setdefault(source_of(one.document), one)
        return tuple(best.values())[: self.n_examples]

    def _example(self, block: TileBlock, tile: int, predicted: NDArray[np.float64]) -> Example:
        tokens = block.texts.texts[tile]
        start, end = block.texts.starts[tile : tile + 2]
        of_tile = predicted[start:end]
        peak = int(np.argmax(of_tile))
        marked = "".join(
            f"<<{token}>>" if is_claimed else token
            for token, is_claimed in zip(tokens, of_tile >= self.at_least, strict=True)
        )
        strength = float(of_tile[peak])
        return Example(block.documents[tile], block.starts[tile] + peak, strength, "".join(tokens), marked)


@lru_cache(maxsize=4096)
def _number_of(source: str) -> int:
    """A number that depends on the name alone."""
    return int.from_bytes(hashlib.blake2b(source.encode("utf-8", "replace"), digest_size=8).digest(), "big")
