"""The store: one object with everything the other steps may ask of it. Opening and transactions live in connection.py,
the inserts in writes.py, the bulk reads in reads.py, the choice of features in selection.py, batches of LLM requests
in batches.py."""

from __future__ import annotations

from autointerp.store.llm_batches import StoreBatches
from autointerp.store.selection import StoreSelections


class Store(StoreSelections, StoreBatches):
    """`with Store.open(path) as store: ...`; see StoreConnection.open for the errors."""
