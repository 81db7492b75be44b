"""Where documents and windows begin, as SQL conditions on `w`, a row of evidence.windows, and `c`, a context in it.

A block of a huge document is a document of its own in the store, by the name `name#3`; only the first one, `name#0`,
begins the document. A name of the corpus that ends so by itself gets a `#0` when it is read (corpus/splits.py). Stores
from before that rule hold such names as they are, and nothing tells them from blocks: these count as no beginning.
"""

from __future__ import annotations

WINDOW_BEGINS_DOCUMENT = "(w.start = 0 AND NOT regexp_matches(w.document, '#[1-9][0-9]*$'))"
"""The window's first corpus token is the document's first."""
BEGINS_WINDOW = '(c."offset" = w.n_prefix)'
"""The stretch's first token is the first corpus token of its window; a BOS in front of it has no place."""
BEGINS_DOCUMENT = f"({BEGINS_WINDOW} AND {WINDOW_BEGINS_DOCUMENT})"
