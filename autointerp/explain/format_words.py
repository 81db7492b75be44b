"""Words that are no label: a small model answers with words of the instructions, "excerpts" or "output", and not with a
description. They are read from the template itself, so that a new heading needs no second entry here.

An answer is of the form where it can be taken apart into whole headings, field names and placeholders: "excerpts,
output" can, "direction words" cannot, though both words stand in headings. Many of these are ordinary words that a
feature may well respond to ("share", "percent", "words"). One of them alone is a label, and where it is none, many
features have it, and it is flagged as `repeated` (see `label_flag` in views.sql).
"""

from __future__ import annotations

import re
from functools import lru_cache

_PLACEHOLDER = re.compile(r"<([^<>{}\n]{1,80})>")
"""`<your phrase>`: stands for what is to be written."""
_MARKER = re.compile(r"^([A-Z][A-Z ]{1,30}):", re.MULTILINE)
"""`LABEL:` at the beginning of a line of the answer."""
_FIELD = re.compile(r'"([a-z][a-z_ ]{1,30})":')
_ANSWER = re.compile(r"^.*JSON object.*$", re.MULTILINE)
"""The lines that give the form of an answer in JSON, with fields such as `"label":`."""
_HEADING = re.compile(r"^ *([A-Za-z][a-z ]{1,40})(?:[:,]|$)", re.MULTILINE)
"""`excerpts:` and `Evidence, {{ mark }}` in the block `user`."""
_USER = re.compile(r"\{% block user %\}(.*?)\{% endblock %\}", re.DOTALL)
_ALONE = frozenset({"label", "labels", "phrase", "excerpt", "excerpts", "input", "output"})
"""Words of the form that are no label alone either: the names of what is shown and of what is to be written."""
_BETWEEN = frozenset({"a", "an", "the", "and", "or"})
_QUOTED = re.compile(r"[\"“”`«»]|(?<!\w)'|'(?!\w)")


@lru_cache(maxsize=64)
def phrases_of(template: str) -> frozenset[tuple[str, ...]]:
    """The headings, field names and placeholders of a template's source, each as its words."""
    user = "\n".join(_USER.findall(template))
    user = re.sub(r"\{[%#{].*?[%#}]\}", "", user)
    found = [
        *_MARKER.findall(template),
        *_FIELD.findall("\n".join(_ANSWER.findall(template))),
        *_HEADING.findall(user),
        *_ALONE,
        "json object",
        "your phrase",
    ]
    for placeholder in _PLACEHOLDER.findall(template):
        found += [placeholder, *re.split(r"[,;:]| or ", placeholder)]
    return frozenset(words for phrase in found if (words := _words(phrase)))


def is_of_the_form(text: str, template: str) -> bool:
    """Whether `text` consists of words of the template's form alone. A text with a quoted part does not: a feature may
    well respond to the word `output`."""
    words = _words(text)
    if _QUOTED.search(text) or not words:
        return False
    phrases = phrases_of(template)
    longest = max(map(len, phrases))
    can_end = [True] + [False] * len(words)  # whether the first n words can be taken apart
    for end in range(1, len(words) + 1):
        can_end[end] = any(
            can_end[start] and (words[start:end] in phrases or (end - start == 1 and words[start] in _BETWEEN))
            for start in range(max(0, end - longest), end)
        )
    telling = [word for word in words if word not in _BETWEEN]
    return can_end[-1] and bool(telling) and (len(telling) > 1 or telling[0] in _ALONE)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower()))
