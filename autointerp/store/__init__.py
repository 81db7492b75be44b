"""DuckDB: the schema, its migrations and views, and the only Python of this project that contains SQL."""

from autointerp.store.selection import Selection
from autointerp.store.store import Store

__all__ = ["Selection", "Store"]
