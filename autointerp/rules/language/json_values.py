"""Values of untrusted JSON, checked: each function gives what it names, or raises RuleError, which says where the value
stands, what it is, and what may stand there."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NoReturn

from autointerp.errors import nearest
from autointerp.rules.language.conditions import MAX_REGEX, MAX_WORD, normalised


class RuleError(ValueError):
    """A rule that cannot be used. The message says where, which value, and what may stand there."""


def object_of(value: object, at: str, known: Collection[str]) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        refuse(at, value, f"it is an object with {joined(known)}")
    for key in value:
        if key not in known:
            name = _shown(key)
            close = nearest(key[:MAX_WORD], known, 1) if isinstance(key, str) else ""
            raise RuleError(f"{at} has an unknown key {name}; it may have {joined(known)}.{close}")
    return value


def one_of(value: object, at: str, known: Collection[str]) -> tuple[str, object]:
    """The one key of an object, and its value."""
    found = object_of(value, at, known)
    if len(found) != 1:
        raise RuleError(f"{at} must have exactly one of {joined(known)}; it has {joined(found) or 'none'}")
    return next(iter(found.items()))


def one_with_number(value: object, at: str, known: Collection[str], number: str) -> tuple[str, object, object]:
    """The one key of an object besides that of a number, its value, and the number: 1 if it is left out."""
    found = dict(object_of(value, at, (*known, number)))
    counted = found.pop(number, 1)
    key, inner = one_of(found, at, known)
    return key, inner, counted


def list_of(value: object, at: str, most: int) -> list[object]:
    if not isinstance(value, list) or not value:
        refuse(at, value, f"it is a list of 1 to {most} entries")
    if len(value) > most:
        raise RuleError(f"{at} has {len(value)} entries, and {most} are the most; leave out the least important")
    return value


def text_of(value: object, at: str) -> str:
    if not isinstance(value, str):
        refuse(at, value, "it is a string")
    if any("\ud800" <= c <= "\udfff" for c in value[: MAX_REGEX + 1]):
        refuse(at, value, "half a character is no text")
    # A longer string is shortened, or refused for its length, by whoever asked; normalising it would take time.
    return normalised(value) if len(value) <= 4 * MAX_REGEX else value


def number_of(value: object, at: str, low: float, high: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or not math.isfinite(value):  # type: ignore[operator,arg-type]
        refuse(at, value, f"it is a number from {low:g} to {high:g}")
    return float(value)  # type: ignore[arg-type]


def whole_number(value: object, at: str, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
        refuse(at, value, f"it is a whole number from 1 to {high}")
    return value


def refuse(at: str, value: object, instead: str) -> NoReturn:
    raise RuleError(f"{at} is {_shown(value)}; {instead}")


def _shown(value: object) -> str:
    if value is None:
        return "missing"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = ascii(value[:MAX_WORD] if isinstance(value, str) else value) if _is_small(value) else "a huge number"
    return text if len(text) <= MAX_REGEX else f"{text[:MAX_REGEX]}..."


def _is_small(value: object) -> bool:
    """Python refuses to write out numbers of thousands of digits."""
    return not isinstance(value, int) or abs(value) < 10**100


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def joined(names: Collection[str]) -> str:
    return ", ".join(names)
