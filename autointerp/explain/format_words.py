"""Words that are no label: a small model answers with words of the instructions, "excerpts" or "output", and not with a
description. They are read from the template itself, so that a new heading needs no second entry here.

An answer is of the form where it can be taken apart into whole headings, field names and placeholders: "excerpts,
output" can, "direction words" cannot, though both words stand in headings. Many of these are ordinary words that a
feature may well respond to ("share", "percent", "words"), so one of them alone is taken for a label. Where that is
wrong, many features have the same label, and it is flagged as `repeated` (see `label_flag` in views.sql).
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
_USER = re.compile(r"\{% block user %\}(.*?)\{% endblock %\}", re.DOTALL)
_TAG = re.compile(r"\{[%#{].*?[%#}]\}")
_HEADING = re.compile(r"^ *([A-Za-z][a-z ]{1,40})(?:[:,]|$)", re.MULTILINE)
"""`excerpts:` and `Evidence, {{ mark }}` in the block `user`, once its tags are taken out."""
_ALONE = frozenset({"label", "labels", "phrase", "excerpt", "excerpts", "input", "output"})
"""Words that are no label even alone, in any template: the names of what is shown and of what is to be written."""
_ANYWHERE = ("json object", "your phrase", *_ALONE)
"""Phrases of the form of any template."""
_BETWEEN = frozenset({"a", "an", "the", "and", "or"})
_QUOTED = re.compile(r"[\"“”`«»]|(?<!\w)'|'(?!\w)")


@lru_cache(maxsize=64)
def phrases_of(template: str) -> frozenset[tuple[str, ...]]:
    """The headings, field names and placeholders of a template's source, and the words between them, each as words."""
    user = _TAG.sub("", "\n".join(_USER.findall(template)))
    answer = "\n".join(_ANSWER.findall(template))
    found = [*_ANYWHERE, *_MARKER.findall(template), *_FIELD.findall(answer), *_HEADING.findall(user)]
    for placeholder in _PLACEHOLDER.findall(template):
        found += [placeholder, *re.split(r"[,;:]| or ", placeholder)]
    return frozenset(words for phrase in (*found, *_BETWEEN) if (words := _words(phrase)))


def is_of_the_form(text: str, template: str) -> bool:
    """Whether `text` consists of words of the template's form alone. A text with a quoted part does not: a feature may
    well respond to the word `output`."""
    words = _words(text)
    if _QUOTED.search(text) or not words:
        return False
    phrases = phrases_of(template)
    longest = max(map(len, phrases))
    can_end = [True]  # whether the first n words can be taken apart
    for end in range(1, len(words) + 1):
        starts = (start for start in range(max(0, end - longest), end) if can_end[start])
        can_end.append(any(words[start:end] in phrases for start in starts))
    telling = [word for word in words if word not in _BETWEEN]
    return can_end[-1] and (len(telling) > 1 or (len(telling) == 1 and telling[0] in _ALONE))


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower()))
