"""Words of the model's vocabulary with their nearest neighbours in the input embedding (table near_words)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autointerp.errors import AutointerpError
from autointerp.store.connection import StoreConnection
from autointerp.store.values import clean


class StoreNearWords(StoreConnection):
    """Table near_words, which a harvest fills."""

    def replace_near_words(self, dictionary_id: int, near: Mapping[str, Sequence[tuple[str, float]]]) -> None:
        """Sets the neighbours of every word. `near`: (neighbour, cosine) by word, nearest first."""
        rows = {clean(word): [(clean(other), cosine) for other, cosine in found] for word, found in near.items()}
        for word, found in rows.items():
            if any(not -1.001 <= cosine <= 1.001 for _, cosine in found):
                raise AutointerpError(f"near words of {word!r}: a cosine is not between -1 and 1")
        with self.transaction() as con:
            con.execute("DELETE FROM near_words WHERE dictionary_id = ?", [dictionary_id])
            self.insert_columns(
                "near_words",
                {
                    "dictionary_id": [dictionary_id] * len(rows),
                    "word": list(rows),
                    "near": [[other for other, _ in found] for found in rows.values()],
                    "cosine": [[cosine for _, cosine in found] for found in rows.values()],
                },
            )

    def near_words(self, dictionary_id: int) -> dict[str, list[tuple[str, float]]]:
        """(neighbour, cosine) by word, nearest first; empty for a dictionary that was harvested before there were
        any."""
        found = self.rows(
            "SELECT word, near, cosine FROM near_words WHERE dictionary_id = ? ORDER BY word", [dictionary_id]
        )
        return {word: list(zip(near, cosine, strict=True)) for word, near, cosine in found}

    def has_near_words(self, dictionary_id: int) -> bool:
        return bool(self.rows("SELECT 1 FROM near_words WHERE dictionary_id = ? LIMIT 1", [dictionary_id]))
