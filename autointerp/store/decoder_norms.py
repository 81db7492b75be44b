"""The norms of a feature's decoder at each part of a joined hookpoint (table decoder_norms)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autointerp.errors import AutointerpError
from autointerp.store.connection import StoreConnection
from autointerp.store.named_rows import select_list


@dataclass(frozen=True, slots=True)
class DecoderNorm:
    """One part of what a feature writes."""

    part: int
    """The part's place in the hookpoint."""
    hookpoint: str
    model: str
    norm: float
    """Of this part of the decoder row, which as a whole has length 1."""
    share: float
    """Of the sum of the norms of all parts, 0..1."""


class StoreDecoderNorms(StoreConnection):
    """Table decoder_norms, which has rows only for dictionaries that write a joined hookpoint."""

    def replace_decoder_norms(
        self, dictionary_id: int, hookpoints: Sequence[str], models: Sequence[str], norms: np.ndarray
    ) -> None:
        """Sets the norms [d_sae, parts] of a dictionary whose parts are at these hookpoints of these models."""
        if not (np.isfinite(norms).all() and (norms >= 0).all()):
            raise AutointerpError(f"decoder norms of dictionary {dictionary_id}: one is no length")
        total = norms.sum(axis=1, keepdims=True)
        shares = np.divide(norms, total, out=np.zeros_like(norms), where=total > 0)
        n, parts = norms.shape
        part = np.tile(np.arange(parts, dtype=np.int32), n)
        view = {
            "feature": np.repeat(np.arange(n, dtype=np.int32), parts),
            "part": part,
            "hookpoint": np.array(hookpoints, dtype=object)[part],
            "model": np.array(models, dtype=object)[part],
            "norm": np.ascontiguousarray(norms.ravel(), dtype=np.float32),
            "share": np.ascontiguousarray(shares.ravel(), dtype=np.float32),
        }
        with self.transaction() as con:
            con.execute("DELETE FROM decoder_norms WHERE dictionary_id = ?", [dictionary_id])
            con.register("new_decoder_norms", view)
            try:
                con.execute(
                    "INSERT INTO decoder_norms BY NAME SELECT ? AS dictionary_id, * FROM new_decoder_norms "
                    "ORDER BY feature, part",
                    [dictionary_id],
                )
            finally:
                con.unregister("new_decoder_norms")

    def has_decoder_norms(self, dictionary_id: int) -> bool:
        return bool(self.rows("SELECT 1 FROM decoder_norms WHERE dictionary_id = ? LIMIT 1", [dictionary_id]))

    def decoder_norms_of(self, dictionary_id: int, feature: int) -> list[DecoderNorm]:
        """The parts of what a feature writes, in the hookpoint's order; [] where the hookpoint is not joined."""
        rows = self.rows(
            f"SELECT {select_list(DecoderNorm)} FROM decoder_norms WHERE dictionary_id = ? AND feature = ? "
            "ORDER BY part",
            [dictionary_id, feature],
        )
        return [DecoderNorm(*row) for row in rows]
