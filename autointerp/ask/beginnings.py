"""How a prompt shows that an excerpt begins a document or a window.

In a JSON array an object {"begins": "document"} or {"begins": "window"} stands before the first piece. Text of a corpus
is in strings only, so no text can look like it. Every prompt that shows excerpts says what the object means.
"""

from __future__ import annotations

from autointerp.records import Context

Beginning = dict[str, str]


def beginning(context: Context) -> list[Beginning]:
    """The object in a list; an empty list for an excerpt from further on."""
    return [] if context.begins is None else [{"begins": context.begins}]


def plain_excerpt(context: Context) -> str | list[str | Beginning]:
    """An excerpt without activations: its text, in an array behind the object where it begins something."""
    begins = beginning(context)
    return [*begins, context.text] if begins else context.text
