"""Each feature's shares by attention head (table head_shares), for dictionaries of the heads' outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autointerp.errors import AutointerpError
from autointerp.store.connection import StoreConnection


@dataclass(frozen=True, slots=True)
class HeadShare:
    """One head's part in a feature."""

    head: int
    decoder_share: float
    """Its share of the squared length of the feature's decoder row."""
    output_share: float
    """Its share of the sum over heads of the squared length of what they write into the residual stream."""


class StoreHeadShares(StoreConnection):
    """Table head_shares, which a harvest fills."""

    def replace_head_shares(self, dictionary_id: int, decoder: np.ndarray, output: np.ndarray) -> None:
        """Sets the shares of every feature; both arrays [n features, n heads], a row of zeros where a decoder row is
        zero."""
        for shares in (decoder, output):
            if not (np.isfinite(shares).all() and (shares >= 0).all() and (shares <= 1.001).all()):
                raise AutointerpError(f"head shares of dictionary {dictionary_id}: one is not between 0 and 1")
        n_features, n_heads = decoder.shape
        view = {
            "feature": np.repeat(np.arange(n_features, dtype=np.int32), n_heads),
            "head": np.tile(np.arange(n_heads, dtype=np.int32), n_features),
            "decoder_share": np.ascontiguousarray(decoder, dtype=np.float32).ravel(),
            "output_share": np.ascontiguousarray(output, dtype=np.float32).ravel(),
        }
        with self.transaction() as con:
            con.execute("DELETE FROM head_shares WHERE dictionary_id = ?", [dictionary_id])
            con.register("new_head_shares", view)
            try:
                con.execute(
                    "INSERT INTO head_shares BY NAME SELECT ? AS dictionary_id, * FROM new_head_shares "
                    "ORDER BY feature, head",
                    [dictionary_id],
                )
            finally:
                con.unregister("new_head_shares")

    def head_shares(self, dictionary_id: int, feature: int) -> list[HeadShare]:
        """The heads of one feature, the one with the largest output share first; empty where the dictionary is not of
        heads, or was harvested before their shares were kept."""
        return self.records(
            HeadShare,
            "SELECT head, decoder_share, output_share FROM head_shares WHERE dictionary_id = ? AND feature = ? "
            "ORDER BY output_share DESC, head",
            [dictionary_id, feature],
        )

    def has_head_shares(self, dictionary_id: int) -> bool:
        return bool(self.rows("SELECT 1 FROM head_shares WHERE dictionary_id = ? LIMIT 1", [dictionary_id]))
