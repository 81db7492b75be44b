"""The English forms of a word: what `lemma` looks for. It is a finite list, so that a text is searched for it in one
pass. word_forms.py compares two words that are given; it calls more words forms of one another than one would look
for."""

from __future__ import annotations

import re
from functools import lru_cache

from autointerp.rules.language.irregular_forms import BASES, COMPARED, FAMILIES, VERBS

_LEAST = 3
"""Shorter words have no regular forms."""
_ONE_SYLLABLE = re.compile(r"(?:qu|[^aeiouy]|^y)*[aeiouy][^aeiouywx]\Z")
"""Its last letter is doubled before an ending: `plan`, `quit`."""
_LATE_STRESS = re.compile(r".*(?:er|ur|it|et|el|il|ip|op|ap|in|an)\Z")
"""The last letter of a longer word with such an end may be doubled: `refer`, `travel`, `equip`."""
_VOWEL = re.compile(r"[aeiouy]")


@lru_cache(maxsize=4096)
def forms_of(word: str) -> frozenset[str]:
    """The word, in lower case, with its regular forms and those of the irregular words that it belongs to."""
    found = {word} | FAMILIES.get(word, frozenset())
    for base in (word, *BASES.get(word, ())):
        if len(base) >= _LEAST and base.isalpha() and base.isascii():
            found |= _regular(base)
    return frozenset(found)


def _regular(word: str) -> set[str]:
    found = _with_s(word) | {f"{stem}ing" for stem in _stems(word, "ing")}
    if word not in VERBS:
        found |= {f"{stem}ed" for stem in _stems(word, "ed")}
    if word in COMPARED:
        found |= {stem + ending for stem in _stems(word, "ed") for ending in ("er", "est")}
    return found


def _with_s(word: str) -> set[str]:
    if re.search(r"(?:s|x|z|ch|sh)\Z", word):
        return {word + "es"}
    if re.search(r"[^aeiou]y\Z", word):
        return {word[:-1] + "ies"}
    return {word + "s", word + "es"} if word.endswith("o") else {word + "s"}


def _stems(word: str, ending: str) -> set[str]:
    """What stands before the ending."""
    if ending == "ing" and word.endswith("ie"):
        return {word[:-2] + "y"}  # `lying`
    if ending == "ed" and re.search(r"[^aeiou]y\Z", word):
        return {word[:-1] + "i"}  # `tried`
    if word.endswith("e") and _VOWEL.search(word[:-1]) and (ending == "ed" or not re.search(r"[eoy]e\Z", word)):
        return {word[:-1]}  # `moving`, but `seeing`
    if _ONE_SYLLABLE.match(word):
        return {word + word[-1]}
    ends_doubled = _LATE_STRESS.match(word) and re.search(r"[^aeiou][aeiou][^aeiouwxy]\Z", word)
    return {word, word + word[-1]} if ends_doubled else {word}
