"""DuckDB: the schema, its migrations and views, and the only Python of this project that contains SQL."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autointerp.store.selection import Selection
    from autointerp.store.store import Store

__all__ = ["Selection", "Store"]


def __getattr__(name: str) -> Any:
    """Imported when first asked for: the processes that answer users' SQL need neither of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{name.lower()}"), name)
