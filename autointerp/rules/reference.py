"""What the rule of a feature is learned beside: text of the corpus as it comes, and which words have near meanings.

Both come from the store. Ordinary text is the known tiles of the explain split (see store/known_tiles.py); a feature is
silent in most of them, which tells how common its words are where it does not fire. Near words are neighbours in the
model's input embedding (see store/near_words.py), so a word that the evidence lacks is judged by those it holds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.ask.job import RULE_BLOCK, Job
from autointerp.records import source_of
from autointerp.rules.near import NO_NEAR_WORDS, NearWords
from autointerp.rules.token_facts import Facts, facts_of, folded
from autointerp.store.known_tiles import KnownTile

SAME_WORDS = 1200
"""Silent tokens of ordinary text, at most, that are words on which the feature fires elsewhere."""
OTHER_WORDS = 800
"""Other silent tokens of ordinary text, at most."""
WORD = re.compile(r"[^\W\d_]{3,}")
"""Words that can tell what a text is about."""


@dataclass(frozen=True)
class Silent:
    """The known tiles in which a feature is silent."""

    tiles: NDArray[np.int64]
    """Their ids."""
    for_each_active: float
    """How many silent tiles the split holds for each in which the feature fires."""

    @property
    def n_tiles(self) -> int:
        return len(self.tiles)


@dataclass(frozen=True)
class Reference:
    """Ordinary text and near words. Without a job there are none, and rules are learned from contexts alone."""

    job: Job | None = None

    @cached_property
    def near(self) -> NearWords:
        return NO_NEAR_WORDS if self.job is None else NearWords(self.job.store.near_words(self.job.dictionary_id))

    @property
    def has_near_words(self) -> bool:
        return self.job is not None and self.job.store.has_near_words(self.job.dictionary_id)

    def silent(self, feature: int) -> Silent | None:
        """Where the feature is silent; None where that is not known, or where it fires in no tile."""
        if not self._n_tiles or not self._text.tiles:
            return None
        block = feature - feature % RULE_BLOCK
        if block not in self._blocks:
            assert self.job is not None
            job, features = self.job, range(block, block + RULE_BLOCK)
            self._blocks.clear()
            self._blocks[block] = (
                job.store.firing_tiles(job.harvest_id, "explain", features),
                job.store.active_tiles(job.dictionary_id, job.harvest_id, "explain", features),
            )
        firing, active = self._blocks[block][0][feature], self._blocks[block][1][feature]
        tiles = np.setdiff1d(np.arange(len(self._text.tiles)), firing)
        if not active or not len(tiles):
            return None
        return Silent(tiles, max(0.0, self._n_tiles - active) / active)

    def ordinary_tokens(
        self, silent: Silent, active: set[str]
    ) -> tuple[list[Facts], list[str], NDArray[np.float64], NDArray[np.int64]]:
        """Some tokens of the silent tiles: their facts, what their documents were cut from, how many each stands for,
        and its place among the tokens of all tiles. Words of `active` (folded) are taken before others, since the rule
        must tell these occurrences from those where the feature fires. Both kinds are evenly spaced over all there are,
        so they are the same every time."""
        text = self._text
        at = np.flatnonzero(np.isin(text.tile_of, silent.tiles))
        known = np.zeros(len(text.codes), dtype=np.bool_)
        known[[text.codes[word] for word in active if word in text.codes]] = True
        is_same = known[text.folded[at]]
        chosen, stands_for = [], []
        for group, most in ((at[is_same], SAME_WORDS), (at[~is_same], OTHER_WORDS)):
            some = group[np.linspace(0, len(group) - 1, min(most, len(group))).round().astype(np.int64)]
            chosen.append(some)
            stands_for.append(np.full(len(some), len(group) / max(1, len(some))))
        places = np.concatenate(chosen)
        return (
            [text.facts[i] for i in places.tolist()],
            [text.sources[text.tile_of[i]] for i in places.tolist()],
            np.concatenate(stands_for),
            places,
        )

    @property
    def tiles(self) -> Sequence[KnownTile]:
        """The tiles of ordinary text."""
        return self._text.known

    @property
    def n_texts(self) -> int:
        """How many tiles of ordinary text there are."""
        return len(self._text.tiles)

    def n_texts_with(self, word: str) -> int:
        """In how many of them the word stands; it is in lower case."""
        return self._text.texts_with[word]

    @cached_property
    def _text(self) -> _OrdinaryText:
        found = [] if self.job is None else self.job.store.known_tiles(self.job.harvest_id, "explain")
        return _OrdinaryText(found)

    @cached_property
    def _n_tiles(self) -> int:
        return 0 if self.job is None else self.job.store.n_tiles(self.job.harvest_id, "explain") or 0

    @cached_property
    def _blocks(self) -> dict[int, tuple[Mapping[int, NDArray[np.int64]], Mapping[int, float]]]:
        """Of the features that were last asked about: the known tiles in which they fire, and in how many of all."""
        return {}


class _OrdinaryText:
    """The tokens of the known tiles as one long list."""

    def __init__(self, known: Sequence[KnownTile]) -> None:
        self.known = known
        self.tiles = tiles = [tile.tokens for tile in known]
        self.sources = [source_of(tile.document) for tile in known]
        self.tile_of = np.repeat(np.arange(len(tiles)), [len(tile) for tile in tiles]) if tiles else np.zeros(0, int)
        self.folded, self.codes = stats.numbered(folded(token) for tile in tiles for token in tile)

    @cached_property
    def facts(self) -> list[Facts]:
        return [fact for tile in self.tiles for fact in facts_of(tile)]

    @cached_property
    def texts_with(self) -> Counter[str]:
        return Counter(word for tile in self.tiles for word in set(words_of("".join(tile))))


def words_of(text: str) -> list[str]:
    """The words of a text that can tell what it is about, in lower case."""
    return [word.lower() for word in WORD.findall(text)]


NO_REFERENCE = Reference()
