"""Where rules hold in a stream of tiles: counts and a few examples, in memory that does not grow with the text.

The examples of a rule are the tiles in which it predicts most, one of each document; where the documents are too few,
further tiles fill up. Of equally strong tiles those with the smallest hashes are kept, so that they come from all over
the text, and are the same however the stream is cut into blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.records import source_of
from autointerp.rules.language.groups import Places
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule
from autointerp.scan_rows import ScanExample


@dataclass(frozen=True)
class TileBlock:
    """Consecutive tiles of a stream."""

    documents: Sequence[str]
    """The name of each tile's document."""
    starts: Sequence[int]
    """The place of each tile's first token in its document's tokens."""
    texts: ManyTexts

    @cached_property
    def sources(self) -> list[str]:
        """What each tile's document was cut from: blocks of one large document are one document here."""
        return [source_of(name) for name in self.documents]

    @cached_property
    def source_codes(self) -> NDArray[np.int64]:
        """[tiles]: a number for each of the different `sources`, which may come back later in the stream."""
        return stats.numbered(self.sources)[0]

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """[tiles]: a hash of each tile's place."""
        of_document = np.array([_hash_of(name) for name in self.documents], dtype=np.uint64)
        return _mixed(of_document ^ _mixed(np.array(self.starts, dtype=np.uint64)))


@dataclass(frozen=True)
class Claims:
    """What a rule claims in a block."""

    tokens: Places
    """Where it predicts enough for a claim, ascending."""
    predicted: NDArray[np.float64]
    """[tokens]"""
    tiles: NDArray[np.intp]
    """The tiles in which these are, ascending."""
    first: NDArray[np.intp]
    """[tiles]: the first of each tile's tokens among `tokens`."""
    peaks: NDArray[np.float64]
    """[tiles]: the strongest prediction."""

    @classmethod
    def of(cls, rule: Rule, at_least: float, texts: ManyTexts) -> Claims:
        tokens, predicted = texts.claims(rule, at_least)
        tile_of = texts.text_of[tokens]
        first = np.flatnonzero(np.diff(tile_of, prepend=-1))
        peaks = np.maximum.reduceat(predicted, first) if len(first) else np.zeros(0)
        return cls(tokens, predicted, tile_of[first], first, peaks)

    def example(self, i: int, block: TileBlock) -> ScanExample:
        """The i-th tile, with its claimed tokens marked."""
        tile = int(self.tiles[i])
        own = slice(self.first[i], self.first[i + 1] if i + 1 < len(self.first) else None)
        places = (self.tokens[own] - block.texts.starts[tile]).tolist()
        peak = int(np.argmax(self.predicted[own]))
        tokens, claimed = block.texts.texts[tile], set(places)
        marked = "".join(f"<<{token}>>" if at in claimed else token for at, token in enumerate(tokens))
        return ScanExample(
            block.documents[tile], block.starts[tile] + places[peak], float(self.predicted[own][peak]),
            "".join(tokens), marked,
        )  # fmt: skip


@dataclass(frozen=True, order=True)
class Found:
    """A tile that a rule claims. The smaller, the better."""

    weakness: float
    """The rule's strongest prediction in the tile, negated."""
    key: int
    source: str
    example: ScanExample


@dataclass(frozen=True)
class RuleCount:
    """What was found of one rule so far."""

    n_claimed: int = 0
    """Tiles in which it predicts enough for a claim."""
    n_tokens: int = 0
    """Tokens on which it does."""
    n_documents: int = 0
    """Documents with such a tile. One that comes back later in the stream counts anew."""
    is_in_last: bool = False
    """Whether the document that the stream stopped in is among them."""
    best_of_documents: tuple[Found, ...] = ()
    """One of each document."""
    best: tuple[Found, ...] = ()

    @property
    def examples(self) -> tuple[ScanExample, ...]:
        """One of each document, then others where these are too few."""
        chosen = {found.key: found.example for found in (*self.best_of_documents, *self.best)}
        return tuple(chosen.values())[: len(self.best)]


@dataclass(frozen=True)
class ScanCounts:
    """What was found in a text so far. It is never changed: `plus` makes another one, so that a scan which is stopped
    anywhere has whole counts."""

    rules: Sequence[Rule]
    at_least: float
    """From which prediction on, 0..10, a rule claims a token, and with it the tile."""
    n_examples: int
    """Examples that are kept of each rule."""
    of_rule: Sequence[RuleCount]
    n_tiles: int = 0
    n_tokens: int = 0
    last: str | None = None
    """The document that the stream stopped in."""

    @classmethod
    def none(cls, rules: Sequence[Rule], at_least: float, n_examples: int) -> ScanCounts:
        """Before the first tile."""
        return cls(rules, at_least, n_examples, [RuleCount()] * len(rules))

    def plus(self, block: TileBlock) -> ScanCounts:
        """With the tiles that follow."""
        if not len(block.texts):
            return self
        before = [self.last, *block.sources]
        number = np.cumsum([one != last for one, last in zip(block.sources, before, strict=False)])
        """[tiles]: which document of the block each is in; 0 stands for the one that the stream had stopped in."""
        return replace(
            self,
            of_rule=[self._count(*pair, block, number) for pair in zip(self.rules, self.of_rule, strict=True)],
            n_tiles=self.n_tiles + len(block.texts),
            n_tokens=self.n_tokens + block.texts.n_tokens,
            last=block.sources[-1],
        )

    def _count(self, rule: Rule, held: RuleCount, block: TileBlock, number: NDArray[np.int64]) -> RuleCount:
        claims = Claims.of(rule, self.at_least, block.texts)
        claimed = claims.tiles
        documents = np.unique(number[claimed])
        is_counted = held.is_in_last and 0 in documents
        is_in_last = bool(number[-1] in documents or (held.is_in_last and number[-1] == 0))
        best_first = np.lexsort((block.keys[claimed], -claims.peaks))
        _, first = np.unique(block.source_codes[claimed[best_first]], return_index=True)
        of_documents = best_first[np.sort(first)]
        return RuleCount(
            held.n_claimed + len(claimed),
            held.n_tokens + len(claims.tokens),
            held.n_documents + len(documents) - int(is_counted),
            is_in_last,
            self._with(held.best_of_documents, of_documents, block, claims, one_of_each=True),
            self._with(held.best, best_first, block, claims),
        )

    def _with(
        self, held: tuple[Found, ...], chosen: NDArray[np.intp], block: TileBlock, claims: Claims,
        one_of_each: bool = False,
    ) -> tuple[Found, ...]:  # fmt: skip
        """The best of those held and of the chosen tiles of `claims`, the best of which come first."""
        found = list(held)
        for i in chosen[: self.n_examples].tolist():
            tile = int(claims.tiles[i])
            place = -float(claims.peaks[i]), int(block.keys[tile])
            if len(held) == self.n_examples and place > (held[-1].weakness, held[-1].key):
                break
            found.append(Found(*place, block.sources[tile], claims.example(i, block)))
        found.sort()
        if one_of_each:
            found = list({one.source: one for one in reversed(found)}.values())
            found.sort()
        return tuple(found[: self.n_examples])


@lru_cache(maxsize=4096)
def _hash_of(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The values with their bits mixed (splitmix64)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
