"""Tiles of the corpus at large in which it is known of every feature whether it fires (see harvest.known_tiles)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.records import Begins, Split, beginning_of
from autointerp.store.connection import StoreConnection
from autointerp.store.evidence_file import has_known_tiles
from autointerp.store.first_tokens import BEGINS_DOCUMENT, BEGINS_WINDOW
from autointerp.store.named_rows import select_list


@dataclass(frozen=True, slots=True)
class KnownTile:
    """One tile. Its place in the list is its tile_id."""

    tile_id: int
    document: str
    tokens: list[str]
    begins_document: bool
    begins_window: bool
    """See Context."""

    @property
    def begins(self) -> Begins | None:
        return beginning_of(self.begins_document, self.begins_window)


_COLUMNS = select_list(
    KnownTile, "c", document="w.document", tokens='w.tokens[c."offset" + 1 : c."offset" + c.length]',
    begins_document=BEGINS_DOCUMENT, begins_window=BEGINS_WINDOW,
)  # fmt: skip


class StoreKnownTiles(StoreConnection):
    """Tables known_tiles and firing_tiles of the evidence file, which only a merge writes."""

    def _has_known_tiles(self) -> bool:
        with self._reading() as con:  # another thread may be in the middle of a commit
            return has_known_tiles(con)

    def known_tiles(self, harvest_id: int, split: Split) -> list[KnownTile]:
        """The known tiles of one split by tile_id; none where the evidence was merged without them."""
        if not self._has_known_tiles():
            return []
        return self.records(
            KnownTile,
            f"SELECT {_COLUMNS} FROM evidence.known_tiles AS c JOIN evidence.windows AS w USING (window_id) "
            "WHERE c.harvest_id = ? AND c.split = ? ORDER BY c.tile_id",
            [harvest_id, split],
        )

    def firing_tiles(self, harvest_id: int, split: Split, features: Sequence[int]) -> dict[int, NDArray[np.int64]]:
        """For each of the features, the ids of the known tiles in which it fires, ascending; in all others it is
        silent. Empty where the evidence was merged without known tiles."""
        wanted = [int(feature) for feature in features]
        firing: dict[int, list[int]] = {feature: [] for feature in wanted}
        if wanted and self._has_known_tiles():
            for feature, tile_id in self.rows(
                "SELECT feature, tile_id FROM evidence.firing_tiles WHERE harvest_id = ? AND split = ? "
                "AND feature BETWEEN ? AND ? AND feature IN (SELECT unnest(?::INTEGER[])) ORDER BY feature, tile_id",
                [harvest_id, split, min(wanted), max(wanted), wanted],
            ):
                firing[feature].append(tile_id)
        return {feature: np.array(ids, dtype=np.int64) for feature, ids in firing.items()}

    def active_tiles(
        self, dictionary_id: int, harvest_id: int, split: Split, features: Sequence[int]
    ) -> dict[int, float]:
        """In how many tiles of the split each of the features fires. Evidence that was merged without the numbers gives
        an estimate: the sum of 1 / inclusion probability over the sampled contexts (Horvitz and Thompson), in which a
        text that the corpus repeats counts once."""
        wanted = [int(feature) for feature in features]
        found = dict.fromkeys(wanted, 0.0)
        if wanted:
            chosen = "feature BETWEEN ? AND ? AND feature IN (SELECT unnest(?::INTEGER[]))"
            values: list[Any] = [harvest_id, split, min(wanted), max(wanted), wanted]
            if self._has_known_tiles():
                counted = (
                    f"SELECT feature, n FROM evidence.active_tiles WHERE harvest_id = ? AND split = ? AND {chosen}"
                )
            else:
                counted = (
                    "SELECT feature, sum(1 / sampling_probability) FROM evidence.context_rows WHERE harvest_id = ? "
                    f"AND split = ? AND {chosen} AND kind = 'sampled' AND dictionary_id = ? GROUP BY feature"
                )
                values.append(dictionary_id)
            found |= {int(feature): float(n) for feature, n in self.rows(counted, values)}
        return found

    def n_tiles(self, harvest_id: int, split: Split) -> int | None:
        """The number of tiles of the split in the harvested text; None where the harvest did not count them."""
        found = self.rows(
            "SELECT (report ->> ('n_tiles_' || ?))::BIGINT FROM harvests WHERE harvest_id = ?", [split, harvest_id]
        )
        return None if not found or found[0][0] is None else int(found[0][0])
