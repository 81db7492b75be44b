"""Which words are forms of one word, by their letters: `move`, `moved`, `moving`. English endings only; words of other
languages are forms of one another where the letters happen to allow it, or stand alone."""

from __future__ import annotations

from collections.abc import Sequence

_ENDINGS = frozenset(
    ("", "s", "es", "e", "ed", "d", "ing", "ings", "er", "ers", "est", "y", "ies", "ied", "ly", "n", "en")
    + ("'s", "’s", "ier", "iest", "ily")
)
_LEAST_STEM = 3
_LONGER_STEM = 4


def are_forms(one: str, other: str) -> bool:
    """Whether both words, in lower case, are one stem with two of the endings."""
    if one == other:
        return True
    stem = 0
    while stem < min(len(one), len(other)) and one[stem] == other[stem]:
        stem += 1
    for n in (stem, stem - 1):  # `mad|e`, `mad|ness`: the stem may end before the last letter that is shared
        if n < _LEAST_STEM or n < min(len(one), len(other)) - 3:
            continue
        endings = {one[n:], other[n:]}
        if n < _LONGER_STEM and "" in endings and endings & {"y", "e", "n"}:
            continue  # `they` and `then` are no forms of `the`
        if _is_form(one, n) and _is_form(other, n):
            return True
    return False


def _is_form(word: str, stem: int) -> bool:
    ending = word[stem:]
    doubled = len(ending) > 2 and ending[0] == word[stem - 1] and ending[1:] in ("ed", "ing", "er", "ers")
    return ending in _ENDINGS or doubled


def families(words: Sequence[str]) -> list[list[str]]:
    """The words in groups of forms of one word, in the order in which they come."""
    found: list[list[str]] = []
    for word in words:
        family = next((f for f in found if any(are_forms(word.lower(), held.lower()) for held in f)), None)
        if family is None:
            found.append([word])
        elif word not in family:
            family.append(word)
    return found
